"""Clients' traits, of which the router's weights are the first: by hand, by their laws, however clients are packed."""

import math

import numpy as np
import pytest

from fedray.federated.client_store import NEVER
from fedray.federated.scoring import by_base, own_tables
from fedray.federated.traits import rows_of, summed_traits, traits_of
from fedray.methods import build
from fedray.types import ClientData, Ragged
from tests.helpers import executor, run, tiny_config, tiny_data, tiny_features
from tests.properties.test_packing import packings

DATA = tiny_data(clients=17, items=61)
FEATURES = tiny_features(61)
FCF = {"name": "fcf", "dim": 7, "lr": 0.3}
BACKBONES = {
    "fcf": ({"name": "fcf", "dim": 7}, {}),
    "dualper": ({"name": "fcf", "dim": 7}, {"dualper": {"item_lr_scale": 10}}),
    "gpfedrec": ({"name": "gpfedrec", "dim": 7, "hidden": [9, 5], "item_lr_scale": 5.0, "user_lr_scale": 10.0}, {}),
}
NAMES = ("router/sum", "router/mlp", "router/gate")


def config_of(backbone=FCF, before=None, train=None, **settings):
    settings = {"gain": 0.5, "router_dim": 5, "router_lr_scale": 20.0, **settings}
    return tiny_config({"backbone": backbone, "plugins": {**(before or {}), "fedvlr": settings}}, train)


def traits_after(config, data=DATA):
    """(each client's traits, the host, what went down last) after a run."""
    state, _, _, where = run(config, data, features=FEATURES)
    (host,), params = where._hosts, state.broadcast.params
    return traits_of(host.method, data, host.store, params), host, params


def softmax(a):
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(("weights", "kind"), [("item", "single"), ("client", "single"), ("client", "double")])
def test_they_are_the_mean_weights_over_a_clients_training_items(weights, kind):
    found, host, params = traits_after(config_of(weights=weights, softmax=kind))
    own = {k: v.astype(np.float64) for k, v in host.store.private.items()}
    for c in range(len(DATA)):
        rows = np.concatenate([params[f"view/{v}"][DATA.train.row(c)] for v in ("sum", "mlp", "gate")], axis=1)
        hidden = np.maximum(rows @ own["router_1_weight"][c].T + own["router_1_bias"][c], 0)
        mean = softmax(hidden @ own["router_2_weight"][c].T + own["router_2_bias"][c]).mean(axis=0)
        expected = softmax(mean) if kind == "double" else mean
        np.testing.assert_allclose([found[name][c] for name in NAMES], expected, atol=1e-6)
    assert np.ptp(found["router/sum"]) > 1e-3
    np.testing.assert_allclose(sum(found[name] for name in NAMES), 1.0, atol=1e-6)


def test_a_router_that_knows_one_view_only_gives_it_everything():
    method = build(config_of(), 61, FEATURES)
    (host,) = executor(config_of(), DATA, features=FEATURES)._hosts
    host.store.private["router_2_bias"][:, 1] = 200.0
    found = traits_of(method, DATA, host.store, method.down(method.init_server(0)))
    assert found["router/mlp"].tolist() == [1.0] * 17 and not found["router/sum"].any()


@pytest.mark.parametrize("name", BACKBONES)
def test_packing_changes_nothing(name):
    backbone, before = BACKBONES[name]
    config = config_of(backbone, before, {"clients_per_round": 0.6, "rounds": 2})
    _, reports, outcome, _ = run(config, DATA, features=FEATURES)
    assert {"router/sum", "router/sum_p10", "router/sum_p50", "router/sum_p90"} <= reports[-1].metrics.keys()
    for parts in ("two", "five shuffled"):
        _, others, other, _ = run(config, DATA, packings(17)[parts], features=FEATURES)
        assert [r.metrics for r in others] == [r.metrics for r in reports]
        assert other.users.keys() == outcome.users.keys() and set(NAMES) < other.users.keys()
        for column in outcome.users:
            np.testing.assert_array_equal(outcome.users[column], other.users[column])


@pytest.mark.parametrize("name", BACKBONES)
def test_the_rows_read_are_those_the_client_scores_with(name):
    backbone, before = BACKBONES[name]
    train = {"clients_per_round": 0.5, "rounds": 2, "weight_decay": 0.0 if name == "gpfedrec" else 1e-2}
    _, host, params = traits_after(config_of(backbone, before, train))
    assert 0 < np.sum(host.store.last_round == NEVER) < 17
    items = np.array([0, 7, 8, 30, 60])
    for base, who in by_base(host.store, params):
        for c in who.tolist():
            whole = {**base, **own_tables(host.store, base, c)}
            for table in host.method.shared_rows:
                np.testing.assert_array_equal(rows_of(host.store, base, table, c, items), whole[table][items])


def test_their_means_by_round_are_those_of_the_clients_that_have_training_items():
    ptr = np.append(DATA.train.ptr, DATA.train.ptr[-1])
    held = [DATA.valid.take(np.append(np.arange(17), 0)), DATA.test.take(np.append(np.arange(17), 0))]
    data = ClientData(np.arange(18), Ragged(ptr, DATA.train.values), *held, 61)
    _, reports, outcome, _ = run(config_of(train={"rounds": 2}), data, features=FEATURES)
    column = outcome.users["router/mlp"]
    assert math.isnan(column[17]) and np.isfinite(column[:17]).all()
    (same,) = [r.metrics["router/mlp"] for r in reports if r.round == outcome.best_round]
    assert same == pytest.approx(column[:17].mean(), abs=1e-8)
    assert summed_traits({"router/mlp": column}).weights() == {"router/mlp": 17}


@pytest.mark.parametrize("settings", [{"views": ["sum"]}, None], ids=["one view", "no views"])
def test_a_method_without_a_router_has_none(settings):
    config = config_of(train={"rounds": 1}, **settings) if settings else tiny_config({"backbone": FCF}, {"rounds": 1})
    _, reports, outcome, _ = run(config, DATA, features=FEATURES)
    assert not [k for k in (*reports[0].metrics, *reports[0].seconds, *outcome.users) if "router" in k or k == "traits"]
