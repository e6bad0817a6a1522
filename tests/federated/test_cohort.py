"""Who takes part: exactly the asked number, whoever asks, and everybody equally often."""

import numpy as np
import pytest

from fedray.federated.cohort import EVERYONE, cohort_size, members, threshold

CLIENTS = np.arange(50)


def chosen(round_, per_round, clients=CLIENTS, seed=0):
    return clients[members(seed, round_, clients, threshold(seed, round_, clients, per_round))]


@pytest.mark.parametrize(
    ("n", "per_round", "size"),
    [
        (50, 1.0, 50),
        (50, 0.5, 25),
        (50, 0.33, 16),  # int(16.5)
        (50, 0.001, 1),  # at least one
        (50, 7, 7),
        (50, 50, 50),
        (50, 1000, 50),  # at most all
        (1, 0.5, 1),
        (1, 1.0, 1),
    ],
)
def test_the_size_is_the_ratio_or_the_number(n, per_round, size):
    assert cohort_size(n, per_round) == size
    assert len(chosen(0, per_round, np.arange(n))) == size


@pytest.mark.parametrize(
    ("per_round", "over", "size"), [(10, 1.3, 13), (0.5, 1.01, 25), (10, 1.19, 11), (40, 2.0, 50), (1000, 1.5, 50)]
)
def test_over_selection_is_so_many_times_more_and_keeps_those_asked_for(per_round, over, size):
    limit = threshold(0, 3, CLIENTS, per_round, over)
    assert cohort_size(50, per_round, over) == size == members(0, 3, CLIENTS, limit).sum()
    assert np.isin(chosen(3, per_round), CLIENTS[members(0, 3, CLIENTS, limit)]).all()


def test_everyone_needs_no_draw():
    assert threshold(0, 0, CLIENTS, 1.0) == EVERYONE
    np.testing.assert_array_equal(chosen(0, 1.0), CLIENTS)


@pytest.mark.parametrize("per_round", [0.3, 7])
def test_every_packing_finds_the_same_members(per_round):
    rng = np.random.default_rng(0)
    for round_ in range(10):
        limit = threshold(0, round_, rng.permutation(CLIENTS), per_round)
        hosts = np.array_split(rng.permutation(CLIENTS), 6)
        found = np.concatenate([h[members(0, round_, h, limit)] for h in hosts])
        np.testing.assert_array_equal(np.sort(found), chosen(round_, per_round))


def test_rounds_and_seeds_differ():
    found = {tuple(chosen(r, 10, seed=s)) for r in range(20) for s in range(3)}
    assert len(found) == 60


def test_each_client_is_chosen_about_equally_often():
    """400 rounds of 15 in 50: mean 120, deviation 9.2."""
    counts = np.bincount(np.concatenate([chosen(r, 0.3) for r in range(400)]), minlength=50)
    assert counts.sum() == 400 * 15
    assert np.abs(counts - 120).max() < 4.5 * np.sqrt(400 * 0.3 * 0.7)


def test_rounds_are_independent():
    """Of the 15 chosen, 4.5 are expected in the next round too."""
    both = [len(np.intersect1d(chosen(r, 15), chosen(r + 1, 15))) for r in range(300)]
    assert np.mean(both) == pytest.approx(4.5, abs=0.5)
