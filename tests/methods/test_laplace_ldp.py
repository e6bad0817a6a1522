"""Noise on uploads: on every number, the client's own and nobody else's, and never on what the client keeps."""

import numpy as np
import pytest

from fedray import fixed_point
from fedray.errors import UnsupportedError
from fedray.federated import clients, uploads
from fedray.federated.aggregate import mean_deltas
from fedray.federated.cohort import EVERYONE
from fedray.federated.kernels.noise import add_noise
from fedray.federated.local import LocalResult
from fedray.methods import build
from fedray.types import Broadcast
from tests.evaluation.naive import clients as client_data
from tests.helpers import executor, run, tiny_config, tiny_data
from tests.methods.test_fcf import TABLE
from tests.properties.test_packing import assert_same, everything

DATA = tiny_data(clients=9)
SMALL = {
    "fcf": {"name": "fcf", "dim": 3},
    "fedavg": {"name": "fedavg", "dim": 3},
    "fedncf": {"name": "fedncf", "dim": 3, "hidden": [4], "item_lr_scale": 1.0},
    "fedrap": {"name": "fedrap", "dim": 3, "item_lr": 0.5, "personal_lr_scale": 1.0, "personal_init_std": 1.0},
    "gpfedrec": {"name": "gpfedrec", "dim": 3, "hidden": [4], "item_lr_scale": 2.0},
}


def config_of(backbone, noise=None, plugins=None, **train):
    noisy = {} if noise is None else {"laplace_ldp": noise}
    return tiny_config({"backbone": SMALL[backbone], "plugins": {**(plugins or {}), **noisy}}, train)


def a_round(config, data=DATA, round_=0):
    """(host after it, its report, the broadcast)."""
    host = executor(config, data)._hosts[0]
    broadcast = Broadcast(round_, host.method.init_server(0))
    return *clients.train(host, broadcast, EVERYONE), broadcast


def changes(report, broadcast):
    """name -> mean change of each shared tensor."""
    return mean_deltas(report.total)


def draws(client, n, scale=1.0, seed=0, round_=0, first=0):
    out = np.zeros((1, n), np.float32)
    add_noise(out, uploads.noise_keys(seed, round_, np.array([client])), first, scale)
    return out[0].astype(np.float64)


@pytest.mark.parametrize("backbone", SMALL)
def test_without_scale_and_clip_it_is_the_method_without_it_bit_for_bit(backbone):
    train = {"clients_per_round": 0.6, "weight_decay": 1e-3}
    plain = everything(*run(config_of(backbone, **train), DATA))
    assert_same(plain, everything(*run(config_of(backbone, {"scale": 0.0}, **train), DATA)))


@pytest.mark.parametrize("backbone", ["fcf", "fedncf", "fedrap"])
def test_a_clip_no_update_reaches_changes_next_to_nothing(backbone):
    plain, wide = (
        run(config_of(backbone, noise), DATA)[0].state.params for noise in (None, {"scale": 0.0, "clip": 1e6})
    )
    for k, v in plain.items():
        np.testing.assert_allclose(wide[k], v, atol=1e-6)


@pytest.mark.parametrize("backbone", ["fcf", "fedavg", "fedncf"])
def test_the_change_is_that_without_noise_and_the_weighted_mean_of_the_clients_draws(backbone):
    """Shared tensors take their draws one after the other; untouched rows have theirs as the others do."""
    plain, noisy = (a_round(config_of(backbone, noise)) for noise in (None, {"scale": 0.5}))
    weight = plain[0].method.weight(5 * DATA.train.lengths())
    without, with_noise, first = changes(*plain[1:]), changes(*noisy[1:]), 0
    for k in (TABLE, *plain[0].method.shared_dense):
        v = without[k]
        noise = sum(w * draws(c, v.size, 0.5, first=first) for c, w in enumerate(weight)) / weight.sum()
        np.testing.assert_allclose(with_noise[k] - v, noise.reshape(v.shape), atol=1e-6)
        first += v.size


def test_every_row_of_every_upload_has_noise():
    data = client_data([[0], [2]], [[4]] * 2, [[5]] * 2, 9)
    _, report, broadcast = a_round(config_of("fcf", {"scale": 1e-3}, negatives=0), data)
    assert np.all(changes(report, broadcast)[TABLE] != 0)


def test_its_size_is_that_of_laplace_over_the_clients():
    """A mean of 9 draws of scale 2: standard deviation 2 sqrt(2) / 3 over 60 x 3 numbers."""
    plain, noisy = (a_round(config_of("fcf", noise)) for noise in (None, {"scale": 2.0}))
    noise = changes(*noisy[1:])[TABLE] - changes(*plain[1:])[TABLE]
    assert noise.std() == pytest.approx(2 * np.sqrt(2) / 3, rel=0.2)
    assert abs(noise.mean()) < 5 * noise.std() / np.sqrt(noise.size)


def test_collected_tables_are_noisy_at_the_server_and_not_at_home():
    plain, noisy = (a_round(config_of("gpfedrec", noise)) for noise in (None, {"scale": 0.5}))
    (without,), (with_noise,) = plain[1].uploads, noisy[1].uploads
    np.testing.assert_array_equal(noisy[0].store.whole[TABLE], plain[0].store.whole[TABLE])
    np.testing.assert_array_equal(without.tables[TABLE], plain[0].store.whole[TABLE])
    found = with_noise.tables[TABLE].astype(np.float64) - without.tables[TABLE]
    for c in range(len(DATA)):
        np.testing.assert_allclose(found[c].ravel(), draws(c, 60 * 3, 0.5), atol=1e-5)


@pytest.mark.parametrize("backbone", ["fcf", "fedrap", "fedncf"])
def test_what_the_client_keeps_is_as_trained(backbone):
    """Tuned rows, private tables and private parameters after one round; the server's table is noisy."""
    dual = {"dualper": {"item_lr_scale": 1.0}}
    plain, noisy = (a_round(config_of(backbone, noise, dual)) for noise in (None, {"scale": 1.0, "clip": 0.1}))
    for a, b in zip(kept(plain[0].store), kept(noisy[0].store), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.all(changes(*noisy[1:])[TABLE] != changes(*plain[1:])[TABLE])


def kept(store):
    own = [x for table in store.own.values() for x in (table.rows, table.values)]
    return [*store.private.values(), store.tuned.rows, *store.tuned.values.values(), *own]


@pytest.mark.parametrize("backbone", ["fcf", "gpfedrec"])
def test_seed_round_and_client_decide_the_draws(backbone):
    config = config_of(backbone, {"scale": 1.0})
    first, again = (everything(*run(config, DATA)) for _ in range(2))
    assert_same(first, again)
    assert not np.any(draws(3, 40) == draws(4, 40))
    assert not np.any(draws(3, 40) == draws(3, 40, round_=1))
    assert not np.any(draws(3, 40) == draws(3, 40, seed=1))


@pytest.mark.parametrize("backbone", ["fcf", "fedncf", "fedrap"])
def test_clip_bounds_each_clients_norm_over_all_it_sends(backbone):
    """One client a run: the sum is its upload. The direction stays."""
    for c in range(3):
        data = DATA.take(np.array([c]))
        free, bound = (a_round(config_of(backbone, n), data) for n in (None, {"scale": 0, "clip": 0.05}))
        assert norm(free[1]) > 0.1
        assert norm(bound[1]) == pytest.approx(0.05, rel=1e-4)
        for k, v in sent(free[1]).items():
            np.testing.assert_allclose(sent(bound[1])[k], v * 0.05 / norm(free[1]), atol=1e-6)


@pytest.mark.parametrize("backbone", ["fcf", "fedncf", "fedrap"])
def test_clip_under_weight_decay_is_refused_and_each_alone_is_not(backbone):
    """The decay's part of a client's change is over all rows; a clip of the touched ones would not bound it."""
    with pytest.raises(UnsupportedError, match=r"clip and train\.weight_decay > 0.*would not bound that"):
        build(config_of(backbone, {"clip": 1.0}, weight_decay=1e-3), 60)
    assert build(config_of(backbone, {"scale": 0.5}, weight_decay=1e-3), 60).noise == (0.5, 0.0)
    assert build(config_of(backbone, {"clip": 1.0}, private_weight_decay=1e-3), 60).noise == (0.1, 1.0)


def sent(report):
    """name -> the summed deltas."""
    rows = {k: v.dense() for k, v in report.total.rows.items()}
    return {k: fixed_point.restore(v) for k, v in {**rows, **report.total.dense}.items()}


def norm(report):
    return np.sqrt(sum((v**2).sum() for v in sent(report).values()))


def test_a_small_update_is_sent_as_it_is_beside_a_clipped_one():
    """By hand: two clients, deltas of norm 5 and 0.5 in one row each; clip 1."""
    data = client_data([[0], [1]], [[2]] * 2, [[3]] * 2, 4)
    config = config_of("fcf", {"scale": 0.0, "clip": 1.0}, negatives=0)
    host = executor(config, data)._hosts[0]
    base = Broadcast(0, {TABLE: np.zeros((4, 3), np.float32)})
    samples = clients.samples_of(host, np.arange(2), 0)
    result = a_result(samples, [[3, 0, 4], [0.3, 0.4, 0]])
    total = uploads.sum_uploads(host.method, base, samples, result, uploads.noise_keys(0, 0, np.arange(2)))
    assert fixed_point.restore(total.rows[TABLE].dense())[0].tolist() == pytest.approx([0.6, 0, 0.8], abs=1e-6)
    assert fixed_point.restore(total.rows[TABLE].dense())[1].tolist() == pytest.approx([0.3, 0.4, 0], abs=1e-7)


def a_result(samples, rows):
    n = len(samples.client)
    return LocalResult({TABLE: np.float32(rows)}, {}, {}, {TABLE: np.ones(n)}, np.zeros(n, np.float32))


def test_an_update_of_zero_is_no_trouble_to_clip():
    data = client_data([[0], [1]], [[2]] * 2, [[3]] * 2, 4)
    still = tiny_config({"backbone": {**SMALL["fcf"], "lr": 0.0}, "plugins": {"laplace_ldp": {"scale": 0, "clip": 1}}})
    _, report, broadcast = a_round(still, data)
    assert not changes(report, broadcast)[TABLE].any()


def test_all_rows_are_paid_for_under_noise_and_the_touched_ones_under_a_clip():
    """M 5, d 3. Two clients: 2 x 5 x 3 numbers; else 4 touched rows of an id and 3 numbers each."""
    data = client_data([[0, 1, 4], [2]], [[], [0]], [[], [1]], 5)
    for noise, numbers in ((None, 16), ({"scale": 0.0, "clip": 1.0}, 16), ({"scale": 0.1}, 30)):
        assert a_round(config_of("fcf", noise, negatives=0), data)[1].bytes_up == 4 * numbers
    dense = 3 * 4 + 3 * 4 + 4 + 4 + 1  # layers of d 3 and width 4, and the output
    for noise, numbers in ((None, 16), ({"scale": 0.1}, 30)):
        assert a_round(config_of("fedncf", noise, negatives=0), data)[1].bytes_up == 4 * (numbers + 2 * dense)
    assert a_round(config_of("gpfedrec", {"scale": 0.1}, negatives=0), data)[1].bytes_up == 4 * 30


def test_it_keeps_the_rest_of_the_method():
    plain, noisy = (build(config_of("fcf", n), 60) for n in (None, {"scale": 0.3, "clip": 2.0}))
    assert noisy.noise == (0.3, 2.0)
    assert noisy.phases(3) == plain.phases(3)
    assert (noisy.name, noisy.shared_rows, noisy.tuned) == ("laplace_ldp(fcf)", plain.shared_rows, plain.tuned)
