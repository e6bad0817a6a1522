"""Whether a difference between two systems could be chance. The unit is the user.

A user's metric is first averaged over a system's seeds; two systems are then paired user by user, and what is tested
are the users' differences. The seeds themselves are not resampled: the answer is about more users like these, not
about another training run.

    bootstrap   10,000 resamples over users (Efron and Tibshirani 1993, ch. 13): the 95 % percentile interval of the
                mean difference, and the two-sided p-value that belongs to it, twice the smaller share of resampled
                means on either side of 0: p < 0.05 where the interval leaves out 0.
    Wilcoxon    signed-rank, users without a difference left out (`zero_method="wilcox"`): in ranking metrics most
                users have none (both systems miss), and say nothing about which is better. For hr what is left is
                close to a sign test. "zsplit" gives the zeros random signs in its variance, and is far too careful
                where they are many (tests/evaluation/test_significance.py shows it).
    Holm        step-down correction over the rows of a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import stats

from fedray import seeding
from fedray.errors import NotComparableError
from fedray.evaluation.users import Users

RESAMPLES = 10_000
LEVEL = 0.95
_DRAWN = 1 << 22  # resampled users held at once
_DIGITS = 12  # averages over seeds differ in their last bits where they are equal


@dataclass(frozen=True)
class Difference:
    """A system less its baseline: mean over users, bootstrap interval and p-values before any correction."""

    mean: float
    low: float
    high: float
    p_bootstrap: float
    p_wilcoxon: float
    users: int


def compared(system: Sequence[Users], baseline: Sequence[Users], names: Sequence[str]) -> dict[str, Difference]:
    """Metric -> the two systems' difference; each system is the users of its seeds' runs.

    Raises `NotComparableError` where these are not the same users. All metrics see the same resamples.
    """
    differences = np.stack([user_differences(system, baseline, name) for name in names], axis=1)
    means = bootstrap(differences)
    return {name: _difference(differences[:, i], means[:, i]) for i, name in enumerate(names)}


def user_differences(system: Sequence[Users], baseline: Sequence[Users], name: str) -> Float64[np.ndarray, " users"]:
    """Per user, by client id: the mean over the system's seeds less that over the baseline's."""
    (ids, mine), (other_ids, others) = over_seeds(system, name), over_seeds(baseline, name)
    if not np.array_equal(ids, other_ids):
        common = len(np.intersect1d(ids, other_ids))
        raise NotComparableError(f"{len(ids)} and {len(other_ids)} users, {common} in common", "the same users")
    return np.round(mine - others, _DIGITS)


def over_seeds(runs: Sequence[Users], name: str) -> tuple[np.ndarray, Float64[np.ndarray, " users"]]:
    """Client ids, ascending, and each one's mean over the runs."""
    ids = np.sort(runs[0]["client"])
    orders = [np.argsort(run["client"]) for run in runs]
    if not all(np.array_equal(run["client"][order], ids) for run, order in zip(runs, orders, strict=True)):
        raise NotComparableError("seeds of one row that have different users", "the same users")
    return ids, np.mean([run[name][order] for run, order in zip(runs, orders, strict=True)], axis=0)


def bootstrap(
    differences: Float64[np.ndarray, "users tests"], seed: int = 0, resamples: int = RESAMPLES
) -> Float64[np.ndarray, "resamples tests"]:
    """The mean of every column in each resample of the rows; depends on the seed and the number of users."""
    n = len(differences)
    rng, step = seeding.generator(seeding.key(seed, "bootstrap")), max(1, _DRAWN // max(n, 1))
    out = np.empty((resamples, differences.shape[1]))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        # How often each user was drawn, so that one matrix product serves all tests.
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        out[start : start + rows] = counts.astype(np.float64) @ differences / n
    return out


def interval(means: Float64[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The percentile interval."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_p(means: Float64[np.ndarray, " resamples"]) -> float:
    """Two-sided; the sample itself counts as one resample, so it is never 0."""
    means = np.round(means, _DIGITS)
    rarer = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return min(1.0, 2 * (rarer + 1) / (len(means) + 1))


def wilcoxon_p(differences: Float64[np.ndarray, " users"]) -> float:
    """Two-sided; 1 where no user differs."""
    differing = differences[differences != 0]
    return float(stats.wilcoxon(differing, zero_method="wilcox").pvalue) if len(differing) else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order: the k-th smallest of m times m - k + 1, never below a smaller one's."""
    order = np.argsort(ps, kind="stable")
    scaled = np.asarray(ps, np.float64)[order] * np.arange(len(ps), 0, -1)
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted.tolist()


def _difference(differences: Float64[np.ndarray, " users"], means: Float64[np.ndarray, " resamples"]) -> Difference:
    ps = bootstrap_p(means), wilcoxon_p(differences)
    return Difference(float(differences.mean()), *interval(means), *ps, len(differences))
