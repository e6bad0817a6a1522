"""FedRAP by hand: one step with its two terms, the schedules, what stays private, and FCF as a special case."""

import math

import numpy as np
import pytest

from fedray.federated import clients
from fedray.federated.cohort import EVERYONE
from fedray.federated.local import LocalStart
from fedray.federated.local_training import train_clients
from fedray.methods.backbones.fedrap import PERSONAL
from fedray.types import Broadcast
from tests.evaluation.naive import clients as client_data
from tests.helpers import executor, run, tiny_config, tiny_data
from tests.methods.test_fcf import BIAS, PATHS, TABLE, WEIGHT, method, samples, sigmoid

HAND = {"name": "fedrap", "dim": 1, "lr": 0.1, "item_lr": 0.4, "step_decay": 1.0, "independence": 0.3, "sparsity": 0.2}
HAND |= {"personal_lr_scale": 1.0}


def start(shared, personal, weight=(2.0,), bias=0.1):
    tables = {TABLE: np.array(shared, np.float32), PERSONAL: np.array(personal, np.float32)}
    index = dict.fromkeys(tables, np.arange(len(shared)))
    own = {WEIGHT: np.array([weight], np.float32), BIAS: np.array([bias], np.float32)}
    return LocalStart(tables, index, {}, own)


def one_step(e, p, items, labels, path, **settings):
    m, train = method({**HAND, **settings}, len(e), path=path)
    return train_clients(m, train, 0, start(e, p), samples(items, labels, len(e)))


@PATHS
@pytest.mark.parametrize(("norm", "size", "slope"), [("l1", 0.5, 1.0), ("l2", 0.25, 1.0)])
def test_one_joint_step_by_hand(path, norm, size, slope):
    """e = 0.5, p = 0.25, w = 2, b = 0.1, one positive: x = 1.6, p - e = -0.25. The other row stays."""
    found = one_step([[0.5], [-1]], [[0.25], [2]], [0], [1], path, sparsity_norm=norm)
    error = sigmoid(1.6) - 1
    assert found.rows[TABLE][0, 0] == pytest.approx(0.5 - 0.4 * (2 * error + 2 * 0.3 * -0.25 + 0.2 * slope), abs=1e-6)
    assert found.rows[PERSONAL][0, 0] == pytest.approx(0.25 - 0.4 * (2 * error - 2 * 0.3 * -0.25), abs=1e-6)
    assert found.private[WEIGHT][0, 0] == pytest.approx(2 - 0.1 * error * 0.75, abs=1e-6)
    assert found.private[BIAS][0] == pytest.approx(0.1 - 0.1 * error, abs=1e-6)
    assert [found.rows[TABLE][1, 0], found.rows[PERSONAL][1, 0]] == [-1, 2]
    assert found.loss[0] == pytest.approx(-math.log(sigmoid(1.6)) - 0.3 * 0.0625 + 0.2 * size, abs=1e-6)


@PATHS
def test_the_l2_slope_grows_with_the_row_and_the_l1_slope_does_not(path):
    """e = -2 and no error to speak of (w = 0): -mu for l1, -2 mu 2 for l2; at 0 neither moves."""
    for norm, moved in (("l1", 0.2), ("l2", 0.8)):
        m, train = method({**HAND, "independence": 0, "sparsity_norm": norm}, 2, path=path)
        begin = start([[-2], [0]], [[0], [0]], weight=[0.0], bias=0.0)
        found = train_clients(m, train, 0, begin, samples([0, 1], [1, 0], 2))
        assert found.rows[TABLE][:, 0] == pytest.approx([-2 + 0.4 * moved / 2, 0], abs=1e-6)


@PATHS
def test_the_terms_are_means_over_samples_and_coordinates_with_repetition(path):
    """Item 0 thrice, item 1 once, two coordinates: 3/8 and 1/8 of each coordinate's slope. w = 0: only the terms."""
    m, train = method({**HAND, "dim": 2}, 2, path=path)
    e, p = np.array([[1.0, -1.0], [2.0, 0.5]]), np.array([[0.0, 0.5], [1.0, 1.0]])
    found = train_clients(m, train, 0, start(e, p, [0.0, 0.0], 0.0), samples([0, 0, 1, 0], [1, 0, 0, 0], 2))
    share = np.array([[3 / 8], [1 / 8]])
    np.testing.assert_allclose(found.rows[TABLE], e - 0.4 * share * (2 * 0.3 * (p - e) + 0.2 * np.sign(e)), atol=1e-6)
    np.testing.assert_allclose(found.rows[PERSONAL], p + 0.4 * share * 2 * 0.3 * (p - e), atol=1e-6)
    expected = math.log(2) - 0.3 * (share * (p - e) ** 2).sum() + 0.2 * (share * np.abs(e)).sum()
    assert found.loss[0] == pytest.approx(expected, abs=1e-6)


@PATHS
def test_step_decay_counts_on_through_batches_and_epochs(path):
    """One positive a batch, two batches, two epochs, w alone moving: rates 0.1, 0.05, 0.025, 0.0125."""
    s = samples([0, 0], [1, 1], 1)
    s = s._replace(order=np.repeat(s.order, 2, axis=0))
    m, train = method({**HAND, "item_lr": 0, "step_decay": 0.5}, 1, path=path, batch_size=1)
    found = train_clients(m, train, 0, start([[0.5]], [[0.25]]), s)
    w, b = 2.0, 0.1
    for step in range(4):
        error = sigmoid(0.75 * w + b) - 1
        w, b = w - 0.1 * 0.5**step * error * 0.75, b - 0.1 * 0.5**step * error
    assert [found.private[WEIGHT][0, 0], found.private[BIAS][0]] == pytest.approx([w, b], abs=1e-6)
    np.testing.assert_array_equal(found.rows[TABLE], [[0.5]])
    np.testing.assert_array_equal(found.rows[PERSONAL], [[0.25]])


@PATHS
def test_step_decay_is_in_the_factor_of_untouched_rows(path):
    """Weight decay 0.5, item rate 0.4, then 0.2: 0.8 and 0.9, of both tables alike."""
    m, train = method({**HAND, "step_decay": 0.5}, 2, path=path, batch_size=1, weight_decay=0.5)
    found = train_clients(m, train, 0, start([[0.5], [-1]], [[0.25], [2]]), samples([0, 0], [1, 1], 2))
    assert found.decay[TABLE] == pytest.approx([0.8 * 0.9])
    assert found.decay[PERSONAL] == pytest.approx([0.8 * 0.9])
    assert found.rows[TABLE][1] == pytest.approx([-0.72], rel=1e-6)
    assert found.rows[PERSONAL][1] == pytest.approx([1.44], rel=1e-6)


def test_the_schedules_of_lambda_and_mu():
    ramp, flat = (method({**HAND, "schedule": s})[0].coefficients for s in ("tanh", "constant"))
    assert ramp(0) == {"independence": 0.0, "sparsity": 0.0}
    assert ramp(10) == pytest.approx({"independence": 0.3 * 0.7615942, "sparsity": 0.2 * 0.7615942})
    assert ramp(3)["sparsity"] == pytest.approx(0.2 * 0.2913126)
    assert flat(0) == flat(50) == {"independence": 0.3, "sparsity": 0.2}


@PATHS
def test_a_round_trains_with_its_own_coefficients(path):
    """tanh: round 0 knows no terms."""
    found = one_step([[0.5], [-1]], [[0.25], [2]], [0], [1], path, schedule="tanh")
    error = sigmoid(1.6) - 1
    assert found.rows[TABLE][0, 0] == pytest.approx(0.5 - 0.4 * 2 * error, abs=1e-6)
    assert found.loss[0] == pytest.approx(-math.log(sigmoid(1.6)), abs=1e-6)


def test_learning_rates_fall_by_the_round():
    m, _ = method({"name": "fedrap", "lr": 0.5, "item_lr": 200})
    for round_, factor in ((0, 1.0), (2, 0.97**2)):
        (phase,) = m.phases(round_)
        rates = {WEIGHT: 0.5, BIAS: 0.5, TABLE: 200, PERSONAL: 0.2}
        assert phase == pytest.approx({k: v * factor for k, v in rates.items()})
    assert m.step_decay == 0.95
    (slower,) = method({"name": "fedrap", "item_lr": 200, "personal_lr_scale": 0.25})[0].phases(0)
    assert (slower[TABLE], slower[PERSONAL]) == (200, 50)


@PATHS
def test_an_item_bias_is_left_out_of_both_terms(path):
    """Rows (e, bias): x = w (p + e) + bias + b; the bias moves by its error alone."""
    m, train = method({**HAND, "item_bias": True}, 1, path=path)
    found = train_clients(m, train, 0, start([[0.5, 3.0]], [[0.25]]), samples([0], [0], 1))
    error = sigmoid(4.6)
    expected = [0.5 - 0.4 * (2 * error + 2 * 0.3 * -0.25 + 0.2), 3 - 0.4 * error]
    assert found.rows[TABLE][0].tolist() == pytest.approx(expected, abs=1e-6)
    assert found.rows[PERSONAL][0, 0] == pytest.approx(0.25 - 0.4 * (2 * error - 2 * 0.3 * -0.25), abs=1e-6)
    assert found.loss[0] == pytest.approx(-math.log(1 - error) - 0.3 * 0.0625 + 0.2 * 0.5, abs=1e-5)


def test_the_personal_table_never_leaves_and_only_shared_rows_cost():
    """3 + 1 touched rows, each an id and 4 numbers of E; P is as large and free."""
    data = client_data([[0, 1, 4], [2]], [[], [0]], [[], [1]], 5)
    config = tiny_config({"backbone": {"name": "fedrap", "dim": 4}}, {"negatives": 0})
    host = executor(config, data)._hosts[0]
    params = host.method.init_server(0)
    after, report = clients.train(host, Broadcast(0, params), EVERYONE)
    assert set(report.total.rows) == {TABLE}
    assert not report.total.dense and not report.uploads
    assert not any(PERSONAL in k for k in report.total.scalars)
    assert report.bytes_up == (3 + 1) * (4 + 4 * 4)
    own = after.store.own[PERSONAL]
    assert np.diff(own.ptr).tolist() == [3, 1]
    assert np.all(own.values != own.base[own.rows])


def test_all_personal_tables_start_from_one_draw():
    m, _ = method({"name": "fedrap", "dim": 16, "personal_init_std": 0.1}, 2000)
    table = m.init_private_rows(0)[PERSONAL]
    assert table.std() == pytest.approx(0.1, rel=0.02)
    assert not np.array_equal(table, m.init_private_rows(1)[PERSONAL])
    assert abs(np.corrcoef(table.ravel(), m.init_server(0)[TABLE].ravel())[0, 1]) < 0.03


@PATHS
@pytest.mark.parametrize("train", [{}, {"clients_per_round": 0.5, "weight_decay": 1e-3}, {"loss": "bpr"}])
def test_without_its_terms_and_with_a_still_empty_p_it_is_fcf(path, train):
    data = tiny_data()
    plain = run(tiny_config({"backbone": {"name": "fcf", "dim": 8, "lr": 0.1}}, {"path": path, **train}), data)
    still = {"independence": 0, "sparsity": 0, "step_decay": 1, "lr_decay": 1}
    still |= {"personal_init_std": 0, "personal_lr_scale": 0}
    settings = {"name": "fedrap", "dim": 8, "lr": 0.1, "item_lr": 0.1 * 60, **still}
    other = run(tiny_config({"backbone": settings}, {"path": path, **train}), data)
    np.testing.assert_allclose(other[0].state.params[TABLE], plain[0].state.params[TABLE], atol=1e-6)
    stores = [r[3]._hosts[0].store for r in (plain, other)]
    for k in (WEIGHT, BIAS):
        np.testing.assert_allclose(stores[1].private[k], stores[0].private[k], atol=1e-6)
    assert not stores[1].own[PERSONAL].values.any()
    assert other[2].test == pytest.approx(plain[2].test, abs=1e-6)
