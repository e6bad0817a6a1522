"""A model without a part of its item rows: what would go down, and the numbers at the end of a run."""

import warnings

import numpy as np
import pytest

from fedray.federated.executor import SerialExecutor
from fedray.methods import build
from fedray.types import Broadcast, ItemFeatures
from tests.helpers import run, tiny_config, tiny_data, tiny_features

DATA = tiny_data(clients=17, items=40)
FEATURES = tiny_features(40)
FCF = {"name": "fcf", "dim": 6, "lr": 0.3}
TABLE = "item_embedding"
ALL = ["without_id", "without_image", "without_text", "without_content"]


def method_of(backbone=FCF, plugins=None, features=FEATURES):
    return build(tiny_config({"backbone": backbone, "plugins": plugins or {"fedvlr": {"gain": 0.5}}}), 40, features)


def trained(method, seed=0):
    """Server parameters away from their start."""
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=v.shape).astype(np.float32) for k, v in method.init_server(0).items()}


def masked(*names):
    return ItemFeatures(
        FEATURES.tables, {m: p & (m not in names) for m, p in FEATURES.present.items()}, f"without {names}"
    )


@pytest.mark.parametrize("plugin", ["fedvlr", "fedmr", "mlp", "vbpr"])
def test_without_a_feature_is_the_model_of_items_that_do_not_have_it(plugin):
    plugins = {plugin: {"gain": 0.5}}
    method = method_of(plugins=plugins)
    params = trained(method)
    found = method.ablations(params)
    assert list(found) == ALL
    gone = {"without_text": ["text"], "without_image": ["image"], "without_content": ["image", "text"]}
    for name, features in gone.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no rows
            expected = method_of(plugins=plugins, features=masked(*features)).down(params)
        assert found[name].keys() == expected.keys() == method.down(params).keys()
        for k, table in expected.items():
            np.testing.assert_array_equal(found[name][k], table)
    assert any(not np.array_equal(found["without_text"][k], v) for k, v in method.down(params).items())


def test_without_content_a_residual_model_that_hears_none_is_itself():
    method = method_of(plugins={"fedvlr": {"gain": 0.0}})
    params = method.init_server(0)
    full, found = method.down(params), method.ablations(params)["without_content"]
    for k in full:
        np.testing.assert_array_equal(full[k], found[k])


@pytest.mark.parametrize(
    ("backbone", "plugins", "ids"),
    [
        (FCF, {"fedvlr": {"views": ["id", "text"]}}, ["view/id"]),
        ({"name": "fedncf", "dim": 6, "hidden": [5]}, {"fedvlr": {"views": ["id"]}}, ["view/id", TABLE]),
        (FCF, {"vbpr": {}}, [TABLE]),
    ],
    ids=["fedvlr", "fedncf", "vbpr"],
)
def test_without_ids_nothing_of_them_goes_down(backbone, plugins, ids):
    method = method_of(backbone, plugins)
    params = trained(method)
    a = method.ablations(params)["without_id"]
    b = method.ablations({**params, TABLE: params[TABLE] + 1})["without_id"]
    assert not any(a[k].any() for k in ids)
    for k in a:
        np.testing.assert_array_equal(a[k], b[k])


def test_a_single_feature_is_the_content():
    method = method_of(features=tiny_features(40, text=6))
    assert list(method.ablations(trained(method))) == ["without_id", "without_content"]


@pytest.mark.parametrize(
    ("backbone", "plugins"),
    [
        (FCF, {"dualper": {}, "fedvlr": {}}),
        (FCF, {"fedvlr": {}, "dualper": {}}),
        (FCF, {"dualper": {}}),
        ({"name": "gpfedrec", "dim": 6, "item_lr_scale": 5.0}, {"fedvlr": {}}),
    ],
)
def test_there_are_none_without_content_or_where_clients_rank_with_their_own_copies(backbone, plugins):
    assert method_of(backbone, plugins).ablations is None


def config_of(backbone=FCF, **evaluation):
    settings = {"fedvlr": {"gain": 0.5, "operator_lr": 0.2, "views": ["id", "sum"]}}
    return tiny_config({"backbone": backbone, "plugins": settings}, evaluation={"k": [5, 10], **evaluation})


@pytest.mark.parametrize("backbone", [FCF, {"name": "fedrap", "dim": 6, "item_lr": 0.5}], ids=["fcf", "fedrap"])
def test_a_run_ends_with_the_selected_round_scored_without_each_part(backbone):
    state, _, outcome, where = run(config_of(backbone), DATA, features=FEATURES)
    assert list(outcome.ablation) == ALL
    for name, params in state.method.ablations(state.best.state.params).items():
        sums = where.evaluate(Broadcast(state.best.round, params), ("test",), "best")[0]["test"]
        found = outcome.ablation[name]
        assert found.test == sums.means() and found.errors == sums.standard_errors()
        assert found.users["client"].tolist() == outcome.users["client"].tolist()
        assert np.mean(found.users["ndcg_at_10"]) == pytest.approx(found.test["ndcg_at_10"], abs=1e-6)
        assert not [k for k in found.users if "router" in k]
    assert outcome.ablation["without_id"].test["score_std"] != outcome.test["score_std"]


def test_under_several_selecting_metrics_they_are_means_over_the_selected_rounds():
    options = {"select_on": ["hr_at_5", "ndcg_at_5"]}
    state, _, outcome, where = run(config_of(options=options), DATA, features=FEATURES)
    each = [
        where.per_client(Broadcast(best.round, state.method.ablations(best.state.params)["without_text"]), slot)[
            0
        ].means()
        for slot, best in zip(("best", "ndcg_at_5"), state.kept.values(), strict=True)
    ]
    expected = {k: (each[0][k] + each[1][k]) / 2 for k in each[0]}
    assert outcome.ablation["without_text"].test == pytest.approx(expected)


def test_on_request_there_are_none_and_the_test_set_is_scored_once(monkeypatch):
    asked, real = [], SerialExecutor.per_client
    monkeypatch.setattr(SerialExecutor, "per_client", lambda *a: asked.append(1) or real(*a))
    assert not run(config_of(ablation=False), DATA, features=FEATURES)[2].ablation and len(asked) == 1
    assert run(config_of(), DATA, features=FEATURES)[2].ablation and len(asked) == 1 + 5
