"""Server optimisers by hand: their formulas, row by row, their state, and the plain mean as a special case."""

import math

import numpy as np
import pytest

from fedray.federated import rounds
from fedray.federated.aggregate import mean_deltas, merge, sum_dense, sum_rows
from fedray.methods import build
from fedray.methods.plugins.fedopt import Config, update
from fedray.types import ServerState
from tests.evaluation.naive import clients as client_data
from tests.helpers import executor, run, tiny_config, tiny_data
from tests.methods.test_fcf import TABLE

DATA = tiny_data(clients=12)
FCF = {"name": "fcf", "dim": 4}
FEDNCF = {"name": "fedncf", "dim": 3, "hidden": [4], "item_lr_scale": 1.0}
GPFEDREC = {"name": "gpfedrec", "dim": 4, "hidden": [4], "lr": 0.05, "item_lr_scale": 2.0}
PLAIN = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0}


def config_of(backbone, settings, **train):
    plugins = {} if settings is None else {"fedopt": settings}
    return tiny_config({"backbone": backbone, "plugins": plugins}, {"negatives": 1, **train})


def steps(changes, settings, x=(1.0,), rows=True, lr=0.1):
    """(value, moments) after each of the changes, of one row or several."""
    x, moments = np.float32(x).reshape(len(x), -1), dict.fromkeys(("m", "v", "t"))
    for change in changes:
        x, moments = update(Config(**settings), lr, x, np.float64(change).reshape(x.shape), moments, rows)
        yield x, moments


def last(*args, **kwargs):
    return list(steps(*args, **kwargs))[-1][0].ravel().tolist()


def test_sgd_with_momentum_by_hand():
    """Changes 1 and 2, momentum 0.5: m = -1, -2.5; x = 1 + 0.1 + 0.25."""
    assert last([[1], [2]], {"optimizer": "sgd", "momentum": 0.5}) == pytest.approx([1.35])


@pytest.mark.parametrize(
    ("optimizer", "v"),
    [
        ("adam", (0.75 * 0.25 * 1 + 0.25 * 4) / (1 - 0.75**2)),
        ("yogi", (0.25 + 0.25 * 4) / (1 - 0.75**2)),  # 4 is above v: v grows by its quarter
        ("adagrad", 1 + 4),
    ],
)
def test_two_steps_of_the_adaptive_ones_by_hand(optimizer, v):
    """Changes 1 and 2, so g = -1 and -2; momentum 0.5, beta2 0.75. m: -0.5, -1.25, over 1/2 and 3/4."""
    settings = {"optimizer": optimizer, "momentum": 0.5, "beta2": 0.75, "eps": 0.1}
    first, second = (x[0, 0] for x, _ in steps([[1], [2]], settings))
    assert first == pytest.approx(1 + 0.1 / 1.1)
    assert second == pytest.approx(first + 0.1 * (1.25 / 0.75) / (math.sqrt(v) + 0.1))


def test_yogi_lets_v_fall_more_slowly_than_adam():
    """Changes 4 and 1: v = 4, then yogi takes 0.25 x 1 from it, adam a quarter of the way to 1."""
    for optimizer, v in (("yogi", 3.75), ("adam", 3.25)):
        assert list(steps([[4], [1]], {"optimizer": optimizer, "beta2": 0.75}))[-1][1]["v"] == pytest.approx(v)


def test_rows_without_a_change_keep_value_and_moments_and_count_their_own_steps():
    settings = {"optimizer": "adam", "momentum": 0.5, "beta2": 0.75, "weight_decay": 0.3}
    changes = [[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.5]], [[1.0, 0.0], [0.0, 0.0]]]
    seen = list(steps(changes, settings, x=[[1.0, 2.0], [1.0, 2.0]]))
    assert [x[1].tolist() for x, _ in seen[:1]] == [[1.0, 2.0]]
    np.testing.assert_array_equal(seen[0][0][0], seen[1][0][0])  # kept in the second round, decay or not
    np.testing.assert_array_equal(seen[0][0][0], seen[1][0][1])  # its first step, one round later, is a first step
    np.testing.assert_array_equal(seen[1][0][1], seen[2][0][1])
    for name, shape in (("m", (2, 2)), ("v", (2, 2)), ("t", (2, 1))):
        assert seen[2][1][name].shape == shape
        np.testing.assert_array_equal(seen[0][1][name][0], seen[1][1][name][0])
    assert seen[2][1]["t"].ravel().tolist() == [2, 1]


def test_dense_tensors_step_as_one_and_go_on_without_a_change():
    """The momentum moves a dense tensor on; a row would have stayed."""
    settings = {"optimizer": "sgd", "momentum": 0.5}
    assert last([[1, 0], [0, 0]], settings, x=[0, 0], rows=False) == pytest.approx([0.15, 0])
    assert last([[1, 0], [0, 0]], settings, x=[0, 0]) == pytest.approx([0.1, 0])


def test_one_second_moment_a_row():
    """Changes 3 and 4 in a row: v-hat is 12.5 for both, so they keep their proportion; element-wise each goes 1."""
    row = last([[[3, 4]]], {"second_moment": "row"}, x=[[0, 0]])
    assert row == pytest.approx([0.1 * 3 / math.sqrt(12.5), 0.1 * 4 / math.sqrt(12.5)])
    assert last([[[3, 4]]], {"second_moment": "element"}, x=[[0, 0]]) == pytest.approx([0.1, 0.1])
    dense = last([[3, 4]], {"second_moment": "row"}, x=[0, 0], rows=False)
    assert dense == pytest.approx([0.1, 0.1])  # a dense tensor has no rows


def test_weight_decay_is_decoupled():
    """x = 2 - 0.1 (step + 0.5 x 2): the step does not see it."""
    assert last([[-4]], {"optimizer": "adam", "weight_decay": 0.5}, x=[2.0]) == pytest.approx([2 - 0.1 * (1 + 1)])
    assert last([[0]], {"optimizer": "adam", "weight_decay": 0.5}, x=[2.0]) == [2.0]


@pytest.mark.parametrize("backbone", [FCF, FEDNCF, GPFEDREC], ids=lambda b: b["name"])
@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_sgd_with_rate_one_is_the_plain_mean(backbone, decay):
    train = {"clients_per_round": 0.5, "weight_decay": decay}
    plain, stepped = (run(config_of(backbone, s, **train), DATA) for s in (None, PLAIN))
    for k, v in plain[0].state.params.items():
        np.testing.assert_allclose(stepped[0].state.params[k], v, rtol=1e-6, atol=1e-7)
    assert stepped[2].test == pytest.approx(plain[2].test, abs=1e-6)


@pytest.mark.parametrize("backbone", [FCF, GPFEDREC], ids=lambda b: b["name"])
@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"schedule": "constant"}, [0.5] * 4),
        ({"schedule": "exponential", "decay": 0.5}, [0.5, 0.25, 0.125, 0.0625]),
        ({"schedule": "cosine"}, [0.5 * 0.5 * (1 + math.cos(math.pi * r / 4)) for r in range(4)]),
    ],
)
def test_schedules_by_the_round_whoever_takes_the_mean(backbone, schedule, rates):
    """Rounds 0 to 3 of 4. The share of the mean's step that is taken is the round's rate."""
    config = config_of(backbone, {**PLAIN, "lr": 0.5, **schedule}, rounds=4)
    where = executor(config, DATA)
    state = rounds.start(config, where._hosts[0].method)
    for rate in rates:
        before = state.state.params[TABLE].astype(np.float64)
        state, _ = rounds.step(state, where)
        m = -state.state.extra[f"fedopt/m/{TABLE}"].reshape(before.shape)
        np.testing.assert_allclose(state.state.params[TABLE] - before, rate * m, atol=1e-6)
        assert np.abs(m).max() > 1e-3


STEPPING = pytest.mark.parametrize("settings", [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.9}])


@STEPPING
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_rows_decay_by_their_factor_and_step_from_there(settings, factor):
    """One client and row a round, three rounds, its factor exact in binary: without decay (1) the step is from the old
    values; a row that was touched before and is not now has its factor alone, whatever its moments are."""
    m = build(config_of(FCF, settings, weight_decay=1 - factor), 5)
    state, one, moments = ServerState(0, m.init_server(0)), np.ones(1, np.int64), dict.fromkeys(("m", "v", "t"))
    for hit in (2, 1, 2):
        base = state.params[TABLE]
        shrunk, mine = np.float32(factor) * base, np.int32([hit])
        total = sum_rows(TABLE, base, shrunk[mine] + 1, mine, np.array([0, 1]), np.array([factor]), one)
        expected, moments = update(Config(**settings), 0.01, shrunk, mean_deltas(total)[TABLE], moments, True)
        state = m.server_step(state, total)
        np.testing.assert_array_equal(state.params[TABLE], expected)
        away = np.arange(5) != hit
        np.testing.assert_array_equal(state.params[TABLE][away], shrunk[away])
        assert np.all(state.params[TABLE][hit] > shrunk[hit])


@STEPPING
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_in_a_run_rows_that_nobody_has_decay_as_under_the_plain_mean(settings, decay):
    """Client 0 takes two steps a round, client 1 one; the item rate is 0.1 x 9 items."""
    data = client_data([[0, 1, 4], [2]], [[5]] * 2, [[6]] * 2, 9)
    train = {"negatives": 0, "batch_size": 2, "weight_decay": decay}
    plain, stepped = (run(config_of(FCF, s, **train), data)[0].state.params[TABLE] for s in (None, settings))
    start = build(config_of(FCF, None), 9).init_server(0)[TABLE]
    away, keep = [3, 5, 6, 7, 8], 1 - 0.9 * decay
    np.testing.assert_array_equal(stepped[away], plain[away])
    np.testing.assert_allclose(stepped[away], start[away] * ((keep**2 + keep) / 2) ** 3, rtol=1e-6)
    assert np.abs(stepped[[0, 1, 2, 4]] - plain[[0, 1, 2, 4]]).max() > 1e-3


def ncf_step(settings, table_change, bias_change):
    """A step of the server from changes of one table row and of the output's bias."""
    m = build(config_of(FEDNCF, settings), 5)
    state = ServerState(0, m.init_server(0))
    base, ptr, one = state.params[TABLE], np.array([0, 1]), np.ones(1, np.int64)
    total = sum_rows(TABLE, base, base[2:3] + np.float32(table_change), np.int32([2]), ptr, np.ones(1), one)
    bias = state.params["output_bias"]
    other = sum_dense("output_bias", bias, bias[None] + np.float32(bias_change), one)
    return state, m.server_step(state, merge(total, other))


def test_dense_tensors_have_a_scale_of_their_own():
    before, after = ncf_step({**PLAIN, "lr": 0.5, "dense_lr_scale": 0.1}, 1.0, 1.0)
    assert (after.params[TABLE] - before.params[TABLE])[2].tolist() == pytest.approx([0.5] * 3)
    assert (after.params["output_bias"] - before.params["output_bias"]).tolist() == pytest.approx([0.05])
    np.testing.assert_array_equal(after.params[TABLE][[0, 1, 3, 4]], before.params[TABLE][[0, 1, 3, 4]])


def test_parameters_that_nobody_sent_stay_and_the_round_counts():
    before, after = ncf_step({}, 1.0, 1.0)
    assert after.round == 1
    assert {k.split("/")[2] for k in after.extra} == {TABLE, "output_bias"}
    np.testing.assert_array_equal(after.params["mlp_1_bias"], before.params["mlp_1_bias"])


@pytest.mark.parametrize("backbone", [FCF, FEDNCF, GPFEDREC], ids=lambda b: b["name"])
def test_its_state_goes_with_the_server_and_two_runs_give_the_same_bits(backbone):
    config = config_of(backbone, {"eps": 1e-3}, rounds=3, clients_per_round=0.5)
    one, two = (run(config, DATA)[0] for _ in range(2))
    shared = build(config, 60).init_server(0)
    assert set(one.state.extra) == {f"fedopt/{p}/{k}" for p in "mvt" for k in shared}
    for k in one.state.extra:
        np.testing.assert_array_equal(one.state.extra[k], two.state.extra[k])
    for k in shared:
        np.testing.assert_array_equal(one.state.params[k], two.state.params[k])
    assert one.state.extra[f"fedopt/t/{TABLE}"].max() == 3


def test_a_step_reads_no_state_but_the_one_it_is_given():
    """Twice from the same state: the same; and the state given is not written to."""
    config = config_of(FCF, {"eps": 1e-3})
    where = executor(config, DATA)
    state, _ = rounds.step(rounds.start(config, where._hosts[0].method), where)
    kept = {k: v.copy() for k, v in state.state.extra.items()}
    trained, _ = rounds.train_round(state, where)
    a, b = (rounds.serve(state, trained)[0] for _ in range(2))
    for k, v in kept.items():
        np.testing.assert_array_equal(state.state.extra[k], v)
        np.testing.assert_array_equal(a.extra[k], b.extra[k])
    np.testing.assert_array_equal(a.params[TABLE], b.params[TABLE])


def test_on_gpfedrec_it_steps_the_global_table_and_leaves_the_targets():
    """Half of the way to the mean of the targets."""
    plain, half = (run(config_of(GPFEDREC, s, rounds=1), DATA)[0] for s in (None, {**PLAIN, "lr": 0.5}))
    start = plain.method.init_server(0)[TABLE].astype(np.float64)
    expected = start + 0.5 * (plain.state.params[TABLE] - start)
    np.testing.assert_allclose(half.state.params[TABLE], expected, atol=1e-6)
    np.testing.assert_array_equal(half.targets.tables[TABLE], plain.targets.tables[TABLE])
