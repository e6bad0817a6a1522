"""Laplace draws by their moments and tails; where they go; norms and clipping against numpy."""

import math

import numpy as np
import pytest

from fedray import fixed_point, seeding
from fedray.federated.kernels.noise import add_noise, add_noise_sums, clip_rows, delta_norms
from fedray.federated.uploads import noise_keys

N = 400_000
LIMIT = float(fixed_point.LIMIT)


def draws(scale=1.0, client=5, seed=0, round_=0, first=0, n=N):
    out = np.zeros((1, n), np.float32)
    add_noise(out, noise_keys(seed, round_, np.array([client])), first, scale)
    return out[0].astype(np.float64)


def sums(keys, weight, n=50, scale=1.0, first=0):
    out = np.zeros(n, np.int64)
    peak = add_noise_sums(out, keys, first, np.asarray(weight, np.float64), scale, fixed_point.SCALE, LIMIT)
    return out, peak


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_moments_of_laplace(scale):
    """Mean 0, variance 2 scale^2, E|x| = scale, kurtosis 6; each within five of its standard errors."""
    x = draws(scale) / scale
    assert abs(x.mean()) < 5 * math.sqrt(2 / N)
    assert x.var() == pytest.approx(2, abs=5 * math.sqrt(20 / N))
    assert np.abs(x).mean() == pytest.approx(1, abs=5 / math.sqrt(N))
    assert (x**4).mean() / 4 == pytest.approx(6, rel=0.1)


@pytest.mark.parametrize("t", [0.01, 0.1, math.log(2), 2.0, 5.0, 8.0])
def test_both_tails_fall_as_e_to_the_minus_t(t):
    x, p = draws(), math.exp(-t) / 2
    for tail in (np.mean(x > t), np.mean(x < -t)):
        assert tail == pytest.approx(p, abs=5 * math.sqrt(p / N))


def test_neighbouring_draws_are_not_alike():
    x = draws() / math.sqrt(2)
    for lag in (1, 2, 64):
        assert abs(np.mean(x[lag:] * x[:-lag])) < 5 / math.sqrt(N)
        assert abs(np.mean(np.abs(x[lag:]) * np.abs(x[:-lag])) - 0.5) < 0.02


def test_keys_and_places_decide_and_nothing_else():
    again, later = draws(n=50), draws(n=60, first=10)
    np.testing.assert_array_equal(again, draws(n=50))
    np.testing.assert_array_equal(again[10:], later[:40])
    others = [draws(n=50, client=6), draws(n=50, seed=1), draws(n=50, round_=1)]
    assert all(not np.any(again == other) for other in others)
    both = np.zeros((2, 50), np.float32)
    add_noise(both, noise_keys(0, 0, np.array([6, 5])), 0, 1.0)
    np.testing.assert_array_equal(both[1], again)
    assert noise_keys(0, 0, np.array([5]))[0] == seeding.key(0, "noise", 0, 5)


@pytest.mark.parametrize("first", [1, 7, 1000, 1024, 2047])
def test_where_a_piece_begins_and_ends_changes_no_draw(first):
    """Draws are made in pieces and in vector registers, whose ends fall elsewhere for each beginning."""
    np.testing.assert_array_equal(draws(n=2500)[first:], draws(first=first, n=2500 - first))
    out = sums(noise_keys(0, 0, np.array([5])), [1], n=2500)[0]
    np.testing.assert_array_equal(
        out[first:], sums(noise_keys(0, 0, np.array([5])), [1], n=2500 - first, first=first)[0]
    )


def test_a_sum_is_that_of_its_clients_times_their_weights_on_the_grid():
    keys = noise_keys(0, 3, np.array([4, 1, 9]))
    out, peak = sums(keys, [2, 1, 0])
    one = [sums(keys[i : i + 1], [w]) for i, w in enumerate([2, 1, 0])]
    np.testing.assert_array_equal(out, sum(o for o, _ in one))
    assert peak == sum(p for _, p in one)
    assert peak == sum(int(np.abs(o).max()) for o, _ in one)
    x = np.zeros((3, 50), np.float32)
    add_noise(x, keys, 0, 1.0)
    np.testing.assert_allclose(fixed_point.restore(out), np.array([2, 1, 0]) @ x.astype(np.float64), atol=1e-6)


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 5, 6, 8, 9])
def test_a_sum_that_does_not_fit_is_refused_even_where_int64_would_wrap(clients):
    """Each client's largest number is just below the limit (its noise falls well short of 2^30 otherwise)."""
    keys = noise_keys(0, 0, np.arange(clients))
    one = np.array([sums(keys[i : i + 1], [1], n=1)[1] for i in range(clients)], np.float64)
    weight = 0.999 * LIMIT / one
    assert [sums(keys[i : i + 1], weight[i : i + 1], n=1)[1] > 0 for i in range(clients)] == [True] * clients
    assert (sums(keys, weight, n=1)[1] < 0) == (clients > 1)
    assert sums(keys[:1], 2 * weight[:1], n=1)[1] == -1


def updates(seed=0, clients=5):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(9, 4)).astype(np.float32)
    each = [np.sort(rng.choice(9, n, replace=False)) for n in rng.integers(0, 7, clients)]
    ptr, rows = np.cumsum([0] + [len(r) for r in each]), np.concatenate(each).astype(np.int32)
    trained = rng.normal(size=(len(rows), 4)).astype(np.float32)
    return table, rows, trained, ptr, rng.uniform(0.5, 1.0, clients)


def deltas(table, rows, trained, ptr, decay):
    return trained - np.repeat(decay, np.diff(ptr))[:, None] * table[rows].astype(np.float64)


@pytest.mark.parametrize("seed", range(3))
def test_norms_and_clipping_against_numpy(seed):
    table, rows, trained, ptr, decay = updates(seed)
    delta, shrink = deltas(table, rows, trained, ptr, decay), np.array([1.0, 0.5, 0.0, 1.0, 0.1])
    expected = [(delta[a:b] ** 2).sum() for a, b in zip(ptr, ptr[1:])]
    np.testing.assert_allclose(delta_norms(table, rows, trained, ptr, decay), expected, rtol=1e-12)
    clipped = clip_rows(table, rows, trained, ptr, decay, shrink)
    wide = np.repeat(shrink, np.diff(ptr))[:, None]
    np.testing.assert_allclose(deltas(table, rows, clipped, ptr, decay), wide * delta, atol=1e-6)
    np.testing.assert_array_equal(clipped[wide[:, 0] == 1], trained[wide[:, 0] == 1])
