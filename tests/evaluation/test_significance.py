"""Tests over users: by hand where the numbers are small, by law and by simulation where they are not."""

import numpy as np
import pytest
from scipy import stats

from fedray.errors import NotComparableError
from fedray.evaluation.significance import (
    RESAMPLES,
    bootstrap,
    bootstrap_p,
    compared,
    holm,
    interval,
    user_differences,
    wilcoxon_p,
)


def users(*values, client=None):
    """One seed's users."""
    return {"client": np.arange(len(values)) if client is None else np.array(client), "hr": np.array(values, float)}


def pair(n=300, effect=0.0, seed=0):
    """Two systems of two seeds each, whose users differ in how easy they are."""
    rng = np.random.default_rng(seed)
    easy = rng.random(n)
    a, b = ([{"client": np.arange(n), "hr": easy + e + rng.normal(0, 0.3, n)} for _ in "ab"] for e in (effect, 0.0))
    return a, b


def test_a_user_is_averaged_over_seeds_and_met_by_its_id():
    system = [users(1.0, 0.0, 1.0, client=[7, 2, 5]), users(0.0, 1.0, 0.0, client=[2, 5, 7])]
    baseline = [users(0.25, 1.0, 0.0, client=[5, 7, 2])]
    # client 2: 0 and 0 against 0; 5: 1 and 1 against 0.25; 7: 1 and 0 against 1
    assert user_differences(system, baseline, "hr").tolist() == [0.0, 0.75, -0.5]


def test_other_users_are_refused():
    with pytest.raises(NotComparableError, match="2 and 3 users, 2 in common"):
        compared([users(0.0, 1.0)], [users(0.0, 1.0, 1.0)], ["hr"])
    with pytest.raises(NotComparableError, match="seeds of one row"):
        compared([users(0.0, 1.0), users(0.0, 1.0, client=[0, 2])], [users(0.0, 1.0)], ["hr"])


def test_equal_means_over_seeds_are_equal_to_the_last_bit():
    """(0.1 + 0.2 + 0.3) / 3 is not 0.2 in floating point."""
    a = [users(x) for x in (0.1, 0.2, 0.3)]
    assert user_differences(a, [users(0.2)], "hr").tolist() == [0.0]


def test_the_bootstrap_by_hand():
    """Of the differences 3 and -1 a resample of two has mean 3, 1 (twice as often) or -1: p = 2/4, interval -1 to 3."""
    means = bootstrap(np.array([[3.0], [-1.0]]))[:, 0]
    shares = [np.mean(means == m) for m in (3.0, 1.0, -1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert bootstrap_p(means) == pytest.approx(0.5, abs=0.03)
    assert interval(means) == (-1.0, 3.0)


def test_a_difference_of_one_size_has_no_spread_and_the_least_p():
    means = bootstrap(np.full((50, 1), 0.1))[:, 0]
    assert interval(means) == pytest.approx((0.1, 0.1))
    assert bootstrap_p(means) == 2 / (RESAMPLES + 1)


def test_the_interval_is_the_normal_one_for_many_users():
    rng = np.random.default_rng(3)
    d = rng.exponential(1.0, 2000)[:, None]
    low, high = interval(bootstrap(d)[:, 0])
    half = 1.96 * d.std() / np.sqrt(len(d))
    assert (low, high) == pytest.approx((d.mean() - half, d.mean() + half), abs=0.1 * half)


def test_all_tests_see_the_same_resamples_and_chunks_do_not_overlap(monkeypatch):
    d = np.random.default_rng(0).normal(size=(40, 2))
    both = bootstrap(d)
    np.testing.assert_allclose(both[:, :1], bootstrap(d[:, :1]), atol=1e-12)
    monkeypatch.setattr("fedray.evaluation.significance._DRAWN", 40 * 7)
    np.testing.assert_allclose(bootstrap(d), both, atol=1e-12)
    assert len(np.unique(both[:, 0])) > 0.99 * RESAMPLES
    assert not np.allclose(bootstrap(d, seed=1), both)


def test_wilcoxon_by_hand():
    assert wilcoxon_p(np.array([1.0, 2, 3, 4, 5])) == 2 / 2**5
    assert wilcoxon_p(np.array([0.0, 1, 2, 0, 3, 4, 5])) == 2 / 2**5  # users without a difference are left out
    assert wilcoxon_p(np.array([1.0, -2.0])) == 1.0  # ranks 1 and 2: of the four signs none is more even


def test_no_difference_anywhere_is_p_one():
    same = [users(0.0, 1.0, 1.0)]
    found = compared(same, same, ["hr"])["hr"]
    assert (found.mean, found.low, found.high, found.p_bootstrap, found.p_wilcoxon) == (0, 0, 0, 1, 1)
    assert found.users == 3


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []


def test_swapping_the_systems_flips_the_sign_and_keeps_p():
    for effect in (0.0, 0.03, 0.1):
        a, b = pair(effect=effect)
        here, there = compared(a, b, ["hr"])["hr"], compared(b, a, ["hr"])["hr"]
        assert (here.mean, here.p_bootstrap, here.p_wilcoxon) == (-there.mean, there.p_bootstrap, there.p_wilcoxon)
        assert (here.low, here.high) == pytest.approx((-there.high, -there.low))


def test_a_real_difference_is_found_and_p_agrees_with_the_interval():
    found = compared(*pair(effect=0.1), ["hr"])["hr"]
    assert found.low < 0.1 < found.high and max(found.p_bootstrap, found.p_wilcoxon) < 0.01
    for seed in range(40):
        found = compared(*pair(n=60, effect=0.08, seed=seed), ["hr"])["hr"]
        if abs(found.p_bootstrap - 0.05) > 0.002:
            assert (found.p_bootstrap < 0.05) == (not found.low <= 0 <= found.high)


@pytest.mark.parametrize("kind", ["continuous", "hits"])
def test_p_is_uniform_enough_where_there_is_no_difference(kind):
    """400 pairs of equal systems over 200 users; hits are 0 or 1 and mostly equal."""
    rng = np.random.default_rng(5)
    if kind == "continuous":
        d = rng.normal(size=(200, 400))
    else:
        d = (rng.random((200, 400)) < 0.15).astype(float) - (rng.random((200, 400)) < 0.15)
    means = bootstrap(d, resamples=2000)
    for ps in ([bootstrap_p(m) for m in means.T], [wilcoxon_p(column) for column in d.T]):
        assert 0.45 < np.mean(ps) < 0.6
        assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.09
        assert 0.15 < np.mean(np.array(ps) < 0.25) < 0.33


def test_zsplit_would_be_far_too_careful():
    """Why zeros are left out: no p below 0.05 in 300 pairs of equal systems, where 90 % of the users do not differ."""
    rng = np.random.default_rng(6)
    d = rng.normal(size=(500, 300)) * (rng.random((500, 300)) < 0.1)
    split = [stats.wilcoxon(c, zero_method="zsplit").pvalue for c in d.T]
    ours = [wilcoxon_p(c) for c in d.T]
    assert np.mean(np.array(split) < 0.05) < 0.005
    assert 0.02 < np.mean(np.array(ours) < 0.05) < 0.09
