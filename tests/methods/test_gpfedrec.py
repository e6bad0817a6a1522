"""GPFedRec: neighbourhoods by hand, the pull in closed form, who is sent what, and what is refused."""

import numpy as np
import pytest

from fedray.config import make_config
from fedray.errors import OutOfRangeError, UnsupportedError
from fedray.federated import clients, rounds
from fedray.federated.aggregate import ZERO
from fedray.federated.clients import own_targets, samples_of
from fedray.federated.cohort import EVERYONE
from fedray.federated.local_training import plan_of
from fedray.federated.method import Uploads
from fedray.federated.reports import TrainReport
from fedray.methods import build
from fedray.methods.backbones.gpfedrec import Config, neighbours_mean
from fedray.types import Broadcast, ServerState
from tests.evaluation.naive import clients as client_data
from tests.helpers import executor, run, tiny_config, tiny_data
from tests.methods.test_fcf import TABLE

DATA = tiny_data(clients=12)
SMALL = {"name": "gpfedrec", "dim": 4, "hidden": [4], "lr": 0.05, "item_lr_scale": 2.0, "user_lr_scale": 10.0}


def small(train=None, plugins=None, **settings):
    return tiny_config({"backbone": {**SMALL, **settings}, "plugins": plugins or {}}, {"negatives": 1, **(train or {})})


def vectors(*rows):
    """Tables [n, M, 1] of one number an item."""
    return np.array(rows, np.float32)[..., None]


def means(tables, **settings):
    return neighbours_mean(tables, Config(**settings))[..., 0].tolist()


def rough(rows):
    return [pytest.approx(r, abs=1e-6) for r in rows]


TWO_AND_ONE = vectors([1, 0], [3, 0], [0, 2])  # cosines: 1 within the first two, 0 with the third; their mean 5/9


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (1.0, [[2, 0], [2, 0], [0, 2]]),  # above 5/9: the two with each other, the third with itself
        (0.0, [[2, 0], [2, 0], [0, 2]]),  # 0 is not above 0
        (-0.1, [[4 / 3, 2 / 3]] * 3),  # everybody
        (1.9, [[1, 0], [3, 0], [0, 2]]),  # nobody is above 1.05: each is alone with itself
    ],
)
def test_neighbours_above_the_threshold_times_the_mean_similarity(threshold, expected):
    assert means(TWO_AND_ONE, threshold=threshold) == rough(expected)


def test_cosine_distance_links_the_most_different():
    """1 - S: 0 within the two, 1 with the third; mean 4/9. The two get the third's table, it gets theirs."""
    assert means(TWO_AND_ONE, metric="cosine_distance") == rough([[0, 2], [0, 2], [2, 0]])


def test_euclidean_neighbours_are_the_near_ones():
    """At 0, 1, 5 and 6: distances sum to 44, so minus their mean is -2.75, and 1 is nearer than that."""
    line = vectors([0], [1], [5], [6])
    assert means(line, metric="euclidean") == rough([[0.5], [0.5], [5.5], [5.5]])
    assert means(line, metric="euclidean", neighbours=3) == rough([[2], [2], [4], [4]])


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.5, [0.5, 2, 4, 5.5]), (1.5, [0.5, 0.5, 5.5, 5.5]), (2.0, [0, 1, 5, 6])],  # nearer than 4.125, 1.375 and 0
)
def test_a_higher_threshold_lets_fewer_in_where_the_mean_is_below_0(threshold, expected):
    line = vectors([0], [1], [5], [6])
    assert [x for (x,) in means(line, metric="euclidean", threshold=threshold)] == rough([expected])[0]


@pytest.mark.parametrize(("k", "expected"), [(1, [0, 1, 3]), (2, [0.5, 0.5, 2]), (3, [4 / 3] * 3), (9, [4 / 3] * 3)])
def test_the_k_most_similar_include_oneself_and_k_may_be_more_than_there_are(k, expected):
    assert [x for (x,) in means(vectors([0], [1], [3]), metric="euclidean", neighbours=k)] == rough(expected)


def test_ties_go_to_the_first_client():
    """All four alike: the two first of them, whoever asks."""
    tables = vectors([1, 0], [2, 0], [3, 0], [4, 0])
    assert means(tables, metric="cosine_distance", neighbours=2) == rough([[1.5, 0]] * 4)


def test_layers_pass_on_what_neighbours_have():
    """On a line 0, 1, 3 with the two nearest: (0.5, 0.5, 2), and then again over the same graph."""
    line = vectors([0], [1], [3])
    assert means(line, metric="euclidean", neighbours=2, graph_layers=2) == rough([[0.5], [0.5], [1.25]])


def test_alone_in_the_world_a_client_gets_its_own_table():
    one = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    for settings in ({}, {"neighbours": 5}, {"metric": "cosine_distance"}, {"metric": "euclidean"}):
        np.testing.assert_array_equal(neighbours_mean(one, Config(**settings)), one)


def test_where_a_table_lies_in_memory_changes_no_bit():
    """The clients' tables are joined anew in every process."""
    tables = np.random.default_rng(0).normal(size=(9, 13, 5)).astype(np.float32)
    found = set()
    for offset in range(0, 64, 4):
        room = np.empty(tables.nbytes + 128, np.uint8)
        first = -room.ctypes.data % 64 + offset
        shifted = room[first : first + tables.nbytes].view(np.float32).reshape(tables.shape)
        shifted[:] = tables
        found.add(neighbours_mean(shifted, Config()).tobytes())
    assert len(found) == 1


def test_in_a_complete_graph_without_a_pull_all_targets_are_the_mean_of_the_tables():
    config = small({"rounds": 1}, reg=0, neighbours=12)
    final, _, _, where = run(config, DATA)
    tables = where._hosts[0].store.whole[TABLE].astype(np.float64)
    assert final.targets.client.tolist() == list(range(12))
    for own in final.targets.tables[TABLE]:
        np.testing.assert_array_equal(own, final.targets.tables[TABLE][0])
        np.testing.assert_allclose(own, tables.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(final.state.params[TABLE], tables.mean(axis=0), atol=1e-6)


def test_the_global_table_is_the_mean_of_the_targets_and_the_round_goes_on():
    m = build(small(threshold=1.0), DATA.n_items)
    tables = TWO_AND_ONE.repeat(4, axis=2)
    state, own = m.personalise(ServerState(3, {TABLE: tables[0]}), Uploads(np.array([2, 5, 6]), {TABLE: tables}))
    assert own[TABLE][..., 0].tolist() == rough([[2, 0], [2, 0], [0, 2]])
    assert state.params[TABLE][:, 0].tolist() == pytest.approx([4 / 3, 2 / 3])
    assert state.round == 3  # the server's step has counted it


def trained(config, targets):
    """(host after round 1, the broadcast and each client's number of local steps), with the given targets."""
    host = executor(config, DATA)._hosts[0]
    params = host.method.init_server(7)
    samples = samples_of(host, np.arange(12), 1)
    after, _ = clients.train(host, Broadcast(1, params), EVERYONE, targets)
    steps = len(samples.order) * -(-samples.n_samples() // config.train.batch_size)
    return after, params[TABLE], steps, samples


@pytest.mark.parametrize("path", ["compiled", "vmap"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_rows_a_client_does_not_touch_go_to_its_target_by_the_closed_form(path, decay):
    """n steps of z <- z - r (decay z + a (z - A)): with k = 1 - r (decay + a), k^n z + r a A (1 - k^n) / (1 - k)."""
    config = small({"weight_decay": decay, "path": path, "local_epochs": 2}, reg=3.0)
    target = np.random.default_rng(0).normal(size=(12, 60, 4)).astype(np.float32)
    after, base, steps, samples = trained(config, Uploads(np.arange(12), {TABLE: target}))
    rate, a = 0.05 * 60 * 2.0, 2 * 3.0 / (60 * 4)
    k = (1 - rate * (decay + a)) ** steps[:, None, None].astype(np.float64)
    expected = k * base + rate * a * target * (1 - k) / (rate * (decay + a))
    away = np.ones((12, 60), bool)
    away[np.repeat(np.arange(12), samples.n_rows()), samples.rows] = False
    np.testing.assert_allclose(after.store.whole[TABLE][away], expected[away], atol=1e-5)
    assert np.abs(expected[away] - np.broadcast_to(base, (12, 60, 4))[away]).max() > 0.1
    assert not np.allclose(after.store.whole[TABLE][~away], expected[~away], atol=1e-3)


def test_the_first_round_pulls_untouched_rows_nowhere():
    after, base, _, samples = trained(small(reg=3.0), None)
    away = np.setdiff1d(np.arange(60), samples.rows[: samples.row_ptr[1]])
    np.testing.assert_allclose(after.store.whole[TABLE][0][away], base[away], atol=1e-6)


def test_a_stronger_pull_ends_nearer_to_the_target():
    target = Uploads(np.arange(12), {TABLE: np.zeros((12, 60, 4), np.float32)})
    sizes = [np.abs(trained(small(reg=reg), target)[0].store.whole[TABLE]).mean() for reg in (0.0, 1.0, 10.0)]
    assert sizes[0] > 1.02 * sizes[1] > 1.05 * sizes[2]


def test_a_client_without_a_target_is_pulled_to_the_broadcast():
    """Targets for clients 3 and 5 of the three that train."""
    host = executor(small(), DATA)._hosts[0]
    params, given = host.method.init_server(0), np.random.default_rng(0).normal(size=(2, 60, 4)).astype(np.float32)
    found = own_targets(host, np.array([1, 3, 5]), Broadcast(2, params), Uploads(np.array([3, 5]), {TABLE: given}))
    np.testing.assert_array_equal(found[TABLE], [params[TABLE], given[0], given[1]])
    alone = own_targets(host, np.array([1]), Broadcast(2, params), None)
    np.testing.assert_array_equal(alone[TABLE], [params[TABLE]])


def test_targets_are_those_of_the_last_cohort_alone():
    config = small({"clients_per_round": 0.5, "rounds": 4})
    where = executor(config, DATA)
    state = rounds.start(config, where._hosts[0].method)
    for round_ in range(4):
        state, _ = rounds.step(state, where)
        cohort = np.flatnonzero(where._hosts[0].store.last_round == round_)
        assert state.targets.client.tolist() == cohort.tolist()
        assert len(cohort) == len(state.targets.tables[TABLE]) == 6


def test_a_round_without_uploads_leaves_table_and_clients_as_they_were():
    config = small()
    run_ = rounds.start(config, build(config, 60))
    state, targets = rounds.serve(run_, TrainReport(ZERO, 0, 0, {}))
    assert targets is None
    assert state.round == 1
    np.testing.assert_array_equal(state.params[TABLE], run_.state.params[TABLE])


def test_bytes_are_whole_tables_up_and_a_second_one_down_for_those_with_a_target():
    """M 5, d 4: a table is 80 bytes. Two of four clients a round, the cohort of the round before known."""
    data = client_data([[0], [1], [2], [3]], [[4]] * 4, [[0]] * 4, 5)
    config = small({"negatives": 0, "clients_per_round": 2, "rounds": 5})
    where = executor(config, data)
    state, before = rounds.start(config, where._hosts[0].method), set()
    for round_ in range(5):
        state, report = rounds.step(state, where)
        now = set(np.flatnonzero(where._hosts[0].store.last_round == round_).tolist())
        assert report.bytes_up == 2 * 80
        assert report.bytes_down == 2 * 80 + len(now & before) * 80
        before = now


@pytest.mark.parametrize(("settings", "step"), [({"dim": 8}, 2.0), ({"dim": 4, "item_lr_scale": 160.0}, 8.0)])
def test_steps_that_overshoot_the_target_more_and_more_are_refused(settings, step):
    """lr 0.1, item_lr_scale 80, reg 1: 16 / d of the way in each step."""
    config = make_config({"backbone": {"name": "gpfedrec", **settings}})
    with pytest.raises(OutOfRangeError, match=f"{step:g} times"):
        build(config, 60)


def test_the_plan_knows_how_far_one_step_goes():
    """2 reg / (M d), and a step just short of twice the way is allowed."""
    config = make_config({"backbone": {"name": "gpfedrec", "dim": 9}})
    method = build(config, 60)
    assert plan_of(method, config.train, 0).pull == {TABLE: pytest.approx(2 / (60 * 9))}
    assert method.phases(0)[0][TABLE] * method.pull[TABLE] == pytest.approx(16 / 9)


@pytest.mark.parametrize(
    ("plugins", "train", "match"),
    [
        ({"dualper": {}}, {}, "dualper on gpfedrec"),
        ({"fedopt": {}, "dualper": {}}, {}, r"dualper on fedopt\(gpfedrec\)"),
        ({"laplace_ldp": {"clip": 1.0}}, {}, "laplace_ldp with clip on gpfedrec"),
        ({}, {"optimizer": "adam"}, "adam with gpfedrec"),
        ({"laplace_ldp": {}}, {"optimizer": "adam"}, r"adam with laplace_ldp\(gpfedrec\)"),
    ],
)
def test_what_does_not_go_with_it_is_refused(plugins, train, match):
    with pytest.raises(UnsupportedError, match=match):
        build(small(train, plugins), 60)


def test_adam_is_allowed_where_nothing_pulls():
    final, reports, _, _ = run(small({"optimizer": "adam"}, reg=0, item_lr_scale=1 / 60), DATA)
    assert reports[-1].metrics["train/loss"] < reports[0].metrics["train/loss"]


def test_hosts_without_clients_are_no_trouble():
    config = small()
    a, b = (run(config, DATA, parts)[0] for parts in (None, [np.zeros(0, np.int64), np.arange(12)]))
    np.testing.assert_array_equal(a.state.params[TABLE], b.state.params[TABLE])
