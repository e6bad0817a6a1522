"""FCF and FedAvg by hand: one step of one client, the starts, the rates and the weights."""

import math

import numpy as np
import pytest

from fedray.config import make_config
from fedray.data.blocks import RoundSamples
from fedray.federated.aggregate import sum_rows
from fedray.federated.local import LocalStart
from fedray.federated.local_training import train_clients
from fedray.methods import build
from fedray.types import ServerState
from tests.evaluation.naive import clients
from tests.helpers import run, tiny_config

TABLE, WEIGHT, BIAS = "item_embedding", "head_weight", "head_bias"
PATHS = pytest.mark.parametrize("path", ["compiled", "vmap"])


def method(backbone, n_items=2, plugins=None, **train):
    config = make_config({"backbone": backbone, "plugins": plugins or {}, "train": train})
    return build(config, n_items), config.train


def samples(items, labels, n_rows):
    """One client, one epoch, in the given order."""
    n = len(items)
    return RoundSamples(
        np.zeros(1, np.int64), np.array([0, n_rows]), np.arange(n_rows, dtype=np.int32), np.array([0, n]),
        np.array(items, np.int32), np.array(labels, np.float32), np.arange(n, dtype=np.int32)[None],
    )  # fmt: skip


def start(table, weight, bias):
    own = {WEIGHT: np.array([weight], np.float32), BIAS: np.array([bias], np.float32)}
    return LocalStart({TABLE: np.array(table, np.float32)}, {TABLE: np.arange(len(table))}, {}, own)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@PATHS
@pytest.mark.parametrize(("name", "item_lr"), [("fcf", 0.1 * 2 * 3), ("fedavg", 0.1)])
def test_one_joint_step_by_hand(name, item_lr, path):
    """M 2, d 1: z = (0.5, -1), w = 2, b = 0.1, one positive, item 0. dL/dx = sigmoid(1.1) - 1; all move at once."""
    backbone = {"name": name, "dim": 1, "lr": 0.1, **({"item_lr_scale": 3} if name == "fcf" else {})}
    m, train = method(backbone, path=path)
    found = train_clients(m, train, 0, start([[0.5], [-1]], [2], 0.1), samples([0], [1], 2))
    error = sigmoid(1.1) - 1
    assert found.private[WEIGHT][0, 0] == pytest.approx(2 - 0.1 * error * 0.5, abs=1e-6)
    assert found.private[BIAS][0] == pytest.approx(0.1 - 0.1 * error, abs=1e-6)
    assert found.rows[TABLE][0, 0] == pytest.approx(0.5 - item_lr * error * 2, abs=1e-6)
    assert found.rows[TABLE][1, 0] == -1
    assert found.loss[0] == pytest.approx(-math.log(sigmoid(1.1)), abs=1e-6)


@PATHS
def test_a_batch_is_a_mean_and_an_item_seen_twice_counts_twice(path):
    """Items 0, 1, 1 with labels 1, 0, 0 in one batch of three."""
    m, train = method({"name": "fedavg", "dim": 1, "lr": 0.3}, path=path)
    found = train_clients(m, train, 0, start([[0.5], [-1]], [2], 0.1), samples([0, 1, 1], [1, 0, 0], 2))
    a, b = sigmoid(1.1) - 1, sigmoid(-1.9)
    assert found.rows[TABLE][:, 0] == pytest.approx([0.5 - 0.1 * a * 2, -1 - 0.1 * 2 * b * 2], abs=1e-6)
    assert found.private[WEIGHT][0, 0] == pytest.approx(2 - 0.1 * (a * 0.5 + 2 * b * -1), abs=1e-6)
    assert found.private[BIAS][0] == pytest.approx(0.1 - 0.1 * (a + 2 * b), abs=1e-6)
    assert found.loss[0] == pytest.approx((-math.log(sigmoid(1.1)) - 2 * math.log(1 - b)) / 3, abs=1e-6)


@PATHS
def test_two_batches_are_two_steps(path):
    """Items 0 then 1 with batch size 1: the second step starts from the first one's head."""
    m, train = method({"name": "fedavg", "dim": 1, "lr": 0.1}, path=path, batch_size=1)
    found = train_clients(m, train, 0, start([[0.5], [-1]], [2], 0.1), samples([0, 1], [1, 0], 2))
    a = sigmoid(1.1) - 1
    w, bias = 2 - 0.1 * a * 0.5, 0.1 - 0.1 * a
    b = sigmoid(-w + bias)
    assert found.rows[TABLE][:, 0] == pytest.approx([0.5 - 0.1 * a * 2, -1 - 0.1 * b * w], abs=1e-6)
    assert found.private[WEIGHT][0, 0] == pytest.approx(w - 0.1 * b * -1, abs=1e-6)
    assert found.private[BIAS][0] == pytest.approx(bias - 0.1 * b, abs=1e-6)


@PATHS
def test_weight_decay_is_added_to_the_gradient_and_names_the_untouched_rows_factor(path):
    m, train = method({"name": "fedavg", "dim": 1, "lr": 0.1}, path=path, weight_decay=0.5, batch_size=1)
    found = train_clients(m, train, 0, start([[0.5], [-1]], [2], 0.1), samples([0, 0], [1, 1], 2))
    z, w, bias = 0.5, 2.0, 0.1
    for _ in range(2):
        a = sigmoid(w * z + bias) - 1
        z, w, bias = z - 0.1 * (a * w + 0.5 * z), w - 0.1 * (a * z + 0.5 * w), bias - 0.1 * (a + 0.5 * bias)
    assert found.rows[TABLE][:, 0] == pytest.approx([z, -0.95 * 0.95], abs=1e-6)
    assert [found.private[WEIGHT][0, 0], found.private[BIAS][0]] == pytest.approx([w, bias], abs=1e-6)
    assert found.decay[TABLE] == pytest.approx([0.95**2], abs=1e-12)


def mean_of(m, deltas, sizes):
    """The new value of one item that started at 0 and moved by `deltas[c]` on a client with `sizes[c]` samples."""
    n = len(deltas)
    trained = np.array(deltas, np.float32).reshape(n, 1)
    rows, ptr, weight = np.zeros(n, np.int32), np.arange(n + 1), m.weight(np.array(sizes))
    total = sum_rows(TABLE, np.zeros((2, 1), np.float32), trained, rows, ptr, np.ones(n), weight)
    return m.server_step(ServerState(0, {TABLE: np.zeros((2, 1), np.float32)}), total).params[TABLE][0, 0]


def test_fcf_weighs_clients_alike_and_fedavg_by_their_samples():
    fcf, fedavg = (method({"name": name, "dim": 1})[0] for name in ("fcf", "fedavg"))
    assert mean_of(fcf, [1, 5], [30, 10]) == 3
    assert mean_of(fedavg, [1, 5], [30, 10]) == 2
    for m in (fcf, fedavg):
        assert mean_of(m, [1, 5], [30, 0]) == 1  # no samples, no say


def test_negatives_count_as_samples_in_fedavgs_weights():
    """Two clients with 1 and 3 positives and 4 negatives each, from the same head: weights 5 and 15."""
    data = clients([[0], [1, 2, 3]], [[]] * 2, [[]] * 2, 30)
    config = tiny_config({"backbone": {"name": "fedavg", "dim": 2, "lr": 0.5}}, {"rounds": 1})
    final, _, _, where = run(config, data)
    assert where._hosts[0].method.weight(np.array([5, 15])).tolist() == [5, 15]
    alone = [run(config, data.take(np.array([c])))[0].state.params[TABLE].astype(np.float64) for c in range(2)]
    np.testing.assert_allclose(final.state.params[TABLE], (5 * alone[0] + 15 * alone[1]) / 20, atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "rate"),
    [
        ({"name": "fcf", "lr": 0.1}, 0.1 * 1682),
        ({"name": "fcf", "lr": 0.2, "item_lr_scale": 0.5}, 0.2 * 1682 * 0.5),
        ({"name": "fedavg", "lr": 0.1}, 0.1),
    ],
)
def test_the_item_learning_rate(backbone, rate):
    (phase,) = method(backbone, 1682)[0].phases(0)
    assert phase[TABLE] == pytest.approx(rate)
    assert phase[WEIGHT] == phase[BIAS] == backbone["lr"]


def test_pfedrecs_item_learning_rate_on_ml100k_is_the_papers():
    m, _ = method({"name": "fcf", "lr": 0.1}, 1682, plugins={"dualper": {}})
    assert m.phases(0)[1][TABLE] == pytest.approx(13_456)


@pytest.mark.parametrize("std", [0.0, 0.1, 1.0])
def test_the_table_starts_normal_with_the_asked_deviation(std):
    table = method({"name": "fcf", "dim": 32, "init_std": std}, 2000)[0].init_server(0)[TABLE]
    assert table.shape == (2000, 32)
    assert table.dtype == np.float32
    assert abs(table.mean()) <= 5 * std / math.sqrt(table.size)
    assert table.std() == pytest.approx(std, rel=5 / math.sqrt(2 * table.size))
    assert np.mean(np.abs(table) < std) == pytest.approx(0.6827 * (std > 0), abs=0.01)


def test_all_clients_start_from_one_head_within_one_over_root_d():
    m, _ = method({"name": "fcf", "dim": 16}, 5)
    head = m.init_clients(0, np.array([3, 9, 4]))
    assert head[WEIGHT].shape == (3, 16)
    assert head[BIAS].shape == (3,)
    assert len(np.unique(head[WEIGHT], axis=0)) == len(np.unique(head[BIAS])) == 1
    draws = np.concatenate(
        [np.append(h[WEIGHT][0], h[BIAS][0]) for h in (m.init_clients(s, np.arange(1)) for s in range(60))]
    )
    assert 0.24 < np.abs(draws).max() <= 0.25
    assert draws.std() == pytest.approx(0.25 / math.sqrt(3), rel=0.1)
    assert not np.array_equal(head[WEIGHT][0], m.init_clients(1, np.arange(1))[WEIGHT][0])
