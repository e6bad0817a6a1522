"""The settings that all backbones share: private steps, decays, the item bias, and when a loss on pairs is refused."""

import numpy as np
import pytest

from fedray.config import make_config
from fedray.errors import OutOfRangeError, UnsupportedError
from fedray.federated import clients
from fedray.federated.cohort import EVERYONE
from fedray.federated.local_training import plan_of, train_clients
from fedray.methods import build
from fedray.types import Broadcast
from tests.evaluation.naive import clients as client_data
from tests.helpers import executor, run, tiny_config, tiny_data
from tests.methods.test_fcf import BIAS, PATHS, TABLE, WEIGHT, samples, sigmoid, start
from tests.methods.test_fcf import method as make

DATA = tiny_data(clients=8)
LAYERS = ["mlp_1_user_weight", "mlp_1_item_weight", "mlp_1_bias", "output_weight", "output_bias"]
USER, PERSONAL = "user_embedding", "personal_item_embedding"
NCF = {"name": "fedncf", "dim": 3, "hidden": [4]}


def names(backbone, plugins=None, n=2, round_=0):
    """The parameters that each update moves."""
    config = make_config({"backbone": backbone, "plugins": plugins or {}, "train": {"private_steps": n}})
    return [sorted(p) for p in build(config, 60).phases(round_)]


DUAL = {"dualper": {}}
HEAD = sorted([WEIGHT, BIAS])


@pytest.mark.parametrize(
    ("backbone", "plugins", "expected"),
    [
        ({"name": "fcf"}, {}, [HEAD, HEAD, [TABLE]]),
        ({"name": "fcf"}, DUAL, [HEAD, HEAD, [TABLE]]),
        (NCF, {}, [[USER], [USER], sorted([TABLE, *LAYERS])]),
        (NCF, DUAL, [[USER], [USER], sorted(LAYERS), [TABLE]]),
        ({"name": "fedrap"}, {}, [HEAD, HEAD, sorted([TABLE, PERSONAL])]),
        ({**NCF, "name": "gpfedrec", "dim": 16}, {}, [sorted([USER, *LAYERS])] * 2 + [[TABLE]]),
    ],
    ids=["fcf", "dualper(fcf)", "fedncf", "dualper(fedncf)", "fedrap", "gpfedrec"],
)
def test_private_steps_come_first_and_alone(backbone, plugins, expected):
    assert names(backbone, plugins) == expected


@pytest.mark.parametrize("backbone", [{"name": "fcf"}, NCF])
@pytest.mark.parametrize("plugins", [{}, DUAL])
def test_no_private_steps_leave_the_phases_as_they_are_and_rates_are_kept(backbone, plugins):
    plain, split = (
        build(make_config({"backbone": backbone, "plugins": plugins, "train": {"private_steps": n}}), 60).phases(3)
        for n in (0, 3)
    )
    assert len(plain) == (2 if plugins else 1)
    assert {k: v for p in plain for k, v in p.items()} == {k: v for p in split for k, v in p.items()}


@PATHS
def test_two_private_steps_then_the_table_by_hand(path):
    """z = 0.5, w = 2, b = 0.1, one positive: the head moves twice, and the table at the head after that."""
    m, train = make({"name": "fedavg", "dim": 1, "lr": 0.1}, path=path, private_steps=2)
    found = train_clients(m, train, 0, start([[0.5], [-1]], [2], 0.1), samples([0], [1], 2))
    w, b = 2.0, 0.1
    for _ in range(2):
        error = sigmoid(0.5 * w + b) - 1
        w, b = w - 0.1 * error * 0.5, b - 0.1 * error
    assert [found.private[WEIGHT][0, 0], found.private[BIAS][0]] == pytest.approx([w, b], abs=1e-6)
    assert found.rows[TABLE][0, 0] == pytest.approx(0.5 - 0.1 * (sigmoid(0.5 * w + b) - 1) * w, abs=1e-6)
    assert found.loss[0] == pytest.approx(-np.log(sigmoid(1.1)), abs=1e-6)  # before any of it


@PATHS
def test_private_weight_decay_moves_the_head_and_no_row(path):
    """By hand, decay 0.5 of the head alone; and 0.5 of the rows alone where the head's is 0."""
    error = sigmoid(1.1) - 1
    for private, shared in ((0.5, 0.0), (0.0, 0.5)):
        m, train = make(
            {"name": "fedavg", "dim": 1, "lr": 0.1}, path=path, private_weight_decay=private, weight_decay=shared
        )
        found = train_clients(m, train, 0, start([[0.5], [-1]], [2], 0.1), samples([0], [1], 2))
        assert found.private[WEIGHT][0, 0] == pytest.approx(2 - 0.1 * (error * 0.5 + private * 2), abs=1e-6)
        assert found.private[BIAS][0] == pytest.approx(0.1 - 0.1 * (error + private * 0.1), abs=1e-6)
        keep = 1 - 0.1 * shared
        assert found.rows[TABLE][:, 0] == pytest.approx([0.5 * keep - 0.1 * error * 2, -keep], abs=1e-6)
        assert found.decay[TABLE] == pytest.approx([keep])


@PATHS
@pytest.mark.parametrize("backbone", [NCF, {"name": "fedrap", "dim": 3, "item_lr": 0.5}], ids=lambda b: b["name"])
def test_private_weight_decay_leaves_layers_and_personal_tables(backbone, path):
    """One step: what is private differs by the decay; the shared tensors and P are the same bits."""
    found = []
    for decay in (0.0, 0.25):
        config = tiny_config({"backbone": backbone}, {"path": path, "private_weight_decay": decay, "batch_size": 500})
        host = executor(config, DATA)._hosts[0]
        after, report = clients.train(host, Broadcast(0, host.method.init_server(0)), EVERYONE)
        found.append((after.store, report))
    (a, one), (b, two) = found
    assert all(np.all(v != b.private[k]) for k, v in a.private.items())
    np.testing.assert_array_equal(one.total.rows[TABLE].dense(), two.total.rows[TABLE].dense())
    for k, v in one.total.dense.items():
        np.testing.assert_array_equal(v, two.total.dense[k])
    for k, v in a.own.items():
        np.testing.assert_array_equal(v.values, b.own[k].values)


def test_null_private_weight_decay_is_the_common_one():
    for own, expected in ((None, 0.3), (0.0, 0.0), (0.1, 0.1)):
        m, train = make({"name": "fcf"}, weight_decay=0.3, private_weight_decay=own)
        plan = plan_of(m, train, 0)
        assert (plan.decay, plan.private_decay) == (0.3, expected)


@pytest.mark.parametrize(
    ("decay", "named"),
    [
        ({"weight_decay": 0.1}, "train.weight_decay"),
        ({"weight_decay": 0.1, "private_weight_decay": 0.0}, "train.weight_decay"),
        ({"private_weight_decay": 0.1}, "train.private_weight_decay"),
    ],
)
def test_adam_refuses_decay_by_the_name_of_its_setting(decay, named):
    with pytest.raises(UnsupportedError, match=f"adam with {named} > 0"):
        make({"name": "fcf"}, optimizer="adam", **decay)
    make({"name": "fcf"}, optimizer="adam", private_weight_decay=0.0)


@pytest.mark.parametrize("name", ["fcf", "fedavg", "fedncf", "fedrap", "gpfedrec"])
def test_lr_decay_multiplies_every_rate_by_the_round(name):
    m, _ = make({"name": name, "dim": 16, "lr_decay": 0.5}, 60)
    (first,), (third,) = m.phases(0), m.phases(2)
    assert third == pytest.approx({k: v / 4 for k, v in first.items()})


BIASED = [{"name": n, "dim": 3, "item_bias": True} for n in ("fcf", "fedavg", "fedrap")]


@pytest.mark.parametrize("backbone", BIASED, ids=lambda b: b["name"])
def test_an_item_bias_starts_at_zero_beside_the_same_table(backbone):
    with_bias, without = (make({**backbone, "item_bias": b}, 60)[0].init_server(4)[TABLE] for b in (True, False))
    assert with_bias.shape == (60, 4)
    assert not with_bias[:, 3].any()
    np.testing.assert_array_equal(with_bias[:, :3], without)


@pytest.mark.parametrize("backbone", BIASED, ids=lambda b: b["name"])
def test_an_item_bias_is_trained_uploaded_and_paid_for(backbone):
    """Positives only: the biases of the touched items rise; 4 rows of an id and 4 numbers."""
    data = client_data([[0, 1, 4], [2]], [[], [0]], [[], [1]], 6)
    config = tiny_config({"backbone": backbone}, {"negatives": 0, "rounds": 1})
    final, reports, _, _ = run(config, data)
    assert np.flatnonzero(final.state.params[TABLE][:, 3]).tolist() == [0, 1, 2, 4]
    assert final.state.params[TABLE][:, 3].min() == 0
    assert reports[0].bytes_up == 4 * (4 + 4 * 4)


@PATHS
def test_one_step_with_an_item_bias_by_hand(path):
    """Row (0.5, 3): x = 2 x 0.5 + 3 + 0.1; the bias moves by rate times error."""
    m, train = make({"name": "fedavg", "dim": 1, "lr": 0.1, "item_bias": True}, path=path)
    found = train_clients(m, train, 0, start([[0.5, 3.0]], [2], 0.1), samples([0], [0], 1))
    error = sigmoid(4.1)
    assert found.rows[TABLE][0].tolist() == pytest.approx([0.5 - 0.1 * error * 2, 3 - 0.1 * error], abs=1e-6)
    assert found.private[WEIGHT][0].tolist() == pytest.approx([2 - 0.1 * error * 0.5], abs=1e-6)
    assert found.private[BIAS][0] == pytest.approx(0.1 - 0.1 * error, abs=1e-6)


@PATHS
def test_one_step_on_a_pair_by_hand(path):
    """z = 0.5 and -1 under w = 2: a gap of 3. The bias cancels; each row moves by its half of the pair."""
    m, train = make({"name": "fedavg", "dim": 1, "lr": 0.1}, path=path, loss="bpr")
    found = train_clients(m, train, 0, start([[0.5], [-1]], [2], 0.1), samples([0, 1], [1, 0], 2))
    error = sigmoid(3.0) - 1
    assert found.rows[TABLE][:, 0] == pytest.approx([0.5 - 0.1 * error * 2, -1 + 0.1 * error * 2], abs=1e-6)
    assert found.private[WEIGHT][0, 0] == pytest.approx(2 - 0.1 * error * (0.5 + 1), abs=1e-6)
    assert found.private[BIAS][0] == pytest.approx(0.1, abs=1e-7)
    assert found.loss[0] == pytest.approx(-np.log(sigmoid(3.0)), abs=1e-6)


@pytest.mark.parametrize(
    "train", [{"batch_size": 255}, {"batch_size": 1}, {"negatives": 0}, {"negatives": 0, "batch_size": 7}]
)
def test_pairs_want_an_even_batch_and_a_negative(train):
    with pytest.raises(OutOfRangeError, match="train.loss: bpr"):
        make_config({"train": {"loss": "bpr", **train}})
    assert make_config({"train": {"loss": "bce", **train}}).train.loss == "bce"
    assert make_config({"train": {"loss": "bpr", "batch_size": 2, "negatives": 1}}).train.loss == "bpr"
