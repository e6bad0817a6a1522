"""`gfmfr`: its laws. tests/federated/test_gfmfr_against_loop.py has the naive loop."""

import weakref

import numpy as np
import pytest

from fedray.data.dataset import client_data, load
from fedray.data.protocols import rules_of
from fedray.errors import UnsupportedError
from fedray.federated import clients, rounds
from fedray.federated.grouping import rand_index
from fedray.methods import build
from fedray.methods.plugins.gfmfr import GROUP, MOST, PREFERENCE, joined
from tests.helpers import FCF, FEDAVG, executor, run, tiny_config, tiny_data, tiny_features
from tests.properties.test_packing import assert_same, everything, packings

DATA, FEATURES = tiny_data(), tiny_features()
FEDNCF = {"backbone": {"name": "fedncf", "dim": 8, "hidden": [8, 4], "lr": 0.1}}
FEDRAP = {"backbone": {"name": "fedrap", "dim": 8, "lr": 0.1, "item_lr": 5.0}}
GPFEDREC = {"backbone": {"name": "gpfedrec", "dim": 8, "hidden": [8, 4], "lr": 0.05, "user_lr_scale": 1}}
DUAL = {"dualper": {"item_lr_scale": 3}}
ROUTED = {"fedvlr": {"router_dim": 4}}
BASES = {
    "fcf": (FCF, {}),
    "pfedrec": (FCF, DUAL),
    "fedavg": (FEDAVG, {}),
    "fedncf": (FEDNCF, {}),
    "fedrap": (FEDRAP, {}),
    "gpfedrec": (GPFEDREC, {}),
    "fcf+fedvlr": (FCF, ROUTED),
    "pfedrec+fedvlr": (FCF, {**ROUTED, **DUAL}),
    "fedncf+fedvlr": (FEDNCF, ROUTED),
}
SMALL = {"groups": 3, "group_dim": 5, "fit_epochs": 4, "weight": 1.0}


def of(base, train=None, **settings):
    method, plugins = BASES[base]
    return tiny_config({**method, "plugins": {**plugins, "gfmfr": {**SMALL, **settings}}}, train)


def bare(base, train=None):
    method, plugins = BASES[base]
    return tiny_config({**method, "plugins": plugins}, train)


def done(config, parts=None):
    return run(config, DATA, parts, FEATURES)


def without_groups(found):
    """What a run without the plug-in has, too; what grouping adds to the uploads is left out."""
    params, losses, test, _ = everything(*found)
    kept = {k: v for k, v in params.items() if not k.startswith("gfmfr/")}
    return kept, [{k: v for k, v in r.items() if not k.startswith("group/")} for r in losses], test


@pytest.mark.parametrize("base", BASES)
def test_weight_zero_is_the_backbone_bit_by_bit(base):
    assert_same(without_groups(done(of(base, weight=0.0))), without_groups(done(bare(base))))


@pytest.mark.parametrize("base", BASES)
def test_a_weight_is_felt(base):
    with_it, without = done(of(base)), done(bare(base))
    name = next(k for k in without[0].state.params if "item_embedding" in k)
    assert np.abs(with_it[0].state.params[name] - without[0].state.params[name]).max() > 1e-4


@pytest.mark.parametrize("base", ["fcf", "fedncf", "pfedrec+fedvlr"])
@pytest.mark.parametrize("ratio", ["constant", "client"])
def test_packing_changes_nothing(base, ratio):
    config = of(base, {"clients_per_round": 0.6, "rounds": 5}, ratio=ratio, sketch=4 if base == "fedncf" else 0)
    whole = everything(*done(config))
    for packing in packings(len(DATA)).values():
        assert_same(whole, everything(*done(config, packing)))


def test_the_map_and_the_groups_are_the_same_under_packing_and_on_a_re_run():
    config = of("fcf", {"clients_per_round": 0.6, "rounds": 4})
    first = done(config)[2]
    assert first.groups.at.shape == (len(first.groups.client), 2) and first.groups.share.sum() > 0.3
    group = np.append(first.groups.group, -1)[np.minimum(first.users["client"], len(first.groups.group))]
    np.testing.assert_array_equal(first.users["group"], group)
    for packing in (None, *packings(len(DATA)).values()):
        again = done(config, packing)[2]
        for a, b in zip((*first.groups, first.users["group"]), (*again.groups, again.users["group"])):
            np.testing.assert_array_equal(a, b)


def test_groups_at_the_end_are_those_of_the_selected_round():
    final, _, outcome, _ = done(of("fcf", {"rounds": 6}))
    best = final.best.state
    assert best.round == outcome.best_round
    np.testing.assert_array_equal(outcome.groups.group, best.params[GROUP])
    np.testing.assert_array_equal(outcome.groups.preference, best.params[PREFERENCE])
    assert done(bare("fcf"))[2].groups is None


def test_one_group_is_one_vector_for_all():
    final, *_ = done(of("fcf", groups=1))
    params = final.state.params
    assert params[PREFERENCE].shape == (1, DATA.n_items) and np.all(params[GROUP] == 0)
    assert len(np.unique(params[PREFERENCE])) > 1


@pytest.mark.parametrize("base", BASES)
def test_preferences_are_probabilities(base):
    preference = done(of(base, groups=25))[0].state.params[PREFERENCE]  # more groups than clients: some are empty
    assert preference.dtype == np.float32 and preference.min() >= np.float32(1e-7) and preference.max() <= MOST < 1


def test_the_same_run_again_has_the_same_groups():
    first, second = (done(of("fedncf"))[0].state.params for _ in range(2))
    np.testing.assert_array_equal(first[GROUP], second[GROUP])


def test_random_groups_stay_from_round_to_round():
    _, reports, *_ = done(of("fcf", grouping="random"))
    assert [r.metrics.get("group/stability") for r in reports] == [None, 1.0, 1.0]


def test_the_fit_goes_on_where_it_stood():
    _, reports, *_ = done(of("fcf", {"rounds": 8}, weight=0.0, fit_epochs=30))
    losses = [r.metrics["group/fit_loss"] for r in reports]
    assert losses[-1] < losses[0]


def test_a_client_that_never_took_part_has_no_group():
    config = of("fcf", {"clients_per_round": 3, "rounds": 2})
    final, *_ = done(config)
    group = final.state.params[GROUP]
    assert 3 <= (group >= 0).sum() <= 6 and len(group) <= len(DATA)


def test_the_rows_of_a_round_are_gone_before_those_of_the_next_are_made(monkeypatch):
    config, train, made, alive = of("fcf"), clients.train_clients, [], []

    def watched(*args):
        alive.append(sum(result() is not None for result in made))
        result = train(*args)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(clients, "train_clients", watched)
    where = executor(config, DATA, features=FEATURES)
    state = rounds.start(config, build(config, DATA.n_items, FEATURES))
    for _ in range(3):
        state, _ = rounds.step(state, where)
    assert alive == [0, 0, 0]
    assert made[-1]() is not None


def test_groups_of_this_round_join_those_of_the_last():
    found = joined(np.array([2, -1], np.int32), np.array([1, 4]), np.array([0, 1]))
    assert found.tolist() == [2, 0, -1, -1, 1]


def test_what_goes_down_is_one_row_of_preferences_for_a_client():
    with_it, without = done(of("fcf")), done(bare("fcf"))
    down = [b.bytes_down - a.bytes_down for a, b in zip(without[1], with_it[1])]
    assert down == [len(DATA) * DATA.n_items * 4] * 3


def test_what_goes_up_is_the_private_head_beside():
    with_it, without = done(of("fcf")), done(bare("fcf"))
    up = [b.bytes_up - a.bytes_up for a, b in zip(without[1], with_it[1])]
    assert up == [len(DATA) * 9 * 4] * 3  # weight of 8 and bias; the mean head is made of these vectors
    alone, both = done(bare("fedncf")), done(of("fedncf"))
    assert both[1][0].bytes_up - alone[1][0].bytes_up == len(DATA) * 8 * 4  # user vectors, in sums


def test_teacher_head_wants_a_last_layer_as_wide_as_item_rows():
    with pytest.raises(UnsupportedError, match="last layer"):
        build(of("fedncf", teacher="head"), DATA.n_items, FEATURES)
    method, plugins = BASES["fedncf"]
    wide = {"backbone": {**method["backbone"], "hidden": [8]}, "plugins": {"gfmfr": {**SMALL, "teacher": "head"}}}
    final, *_ = done(tiny_config(wide))
    assert final.state.params[PREFERENCE].std() > 0


@pytest.mark.parametrize(
    "plugins",
    [
        {"gfmfr": SMALL, "fedvlr": {}},
        {"laplace_ldp": {}, "gfmfr": SMALL},
        {"gfmfr": SMALL, "laplace_ldp": {}},
        {"vbpr": {}, "gfmfr": SMALL},
    ],
)
def test_pairs_that_make_no_sense_are_named(plugins):
    with pytest.raises(UnsupportedError):
        build(tiny_config({**FCF, "plugins": plugins}), DATA.n_items, FEATURES)


def test_dualper_before_and_after_is_the_same():
    before = tiny_config({**FCF, "plugins": {**ROUTED, **DUAL, "gfmfr": SMALL}})
    after = tiny_config({**FCF, "plugins": {**ROUTED, "gfmfr": SMALL, **DUAL}})
    assert_same(without_groups(done(before)), without_groups(done(after)))


PLANTED = {
    "source": "synthetic",
    "users": 160,
    "items": 200,
    "groups": 4,
    "own_taste": 0.05,
    "popularity": 0.3,
    "interactions": 40,
}
TASTE = {"name": "fcf", "dim": 16, "lr": 0.3, "item_lr_scale": 1}


def planted(**settings):
    config = tiny_config(
        {"backbone": TASTE, "plugins": {"gfmfr": {"groups": 4, "weight": 1.0, **settings}}},
        {"rounds": 30, "batch_size": 256, "private_steps": 3},
        data=PLANTED,
    )
    dataset = load(config.data, rules_of(config.evaluation))
    method = build(config, dataset.interactions.n_items, dataset.features)
    where = executor(config, client_data(dataset), features=dataset.features)
    found = rounds.start(config, method)
    while not rounds.finished(found):
        found, _ = rounds.step(found, where)
    return dataset, found


def test_planted_groups_are_found_and_are_of_use():
    dataset, found = planted()
    true = np.array([int(u) for u in range(dataset.interactions.n_users)])
    group = found.state.params[GROUP]
    planted_group = np.array([int(str(dataset.interactions.user_ids[u]).strip("u")) % 4 for u in true])
    assert rand_index(group, planted_group) > 0.8
    _, together = planted(groups=1)
    assert found.best.value > together.best.value
