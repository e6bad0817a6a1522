"""From ranks to metrics: per client first, then sums over clients that merge exactly.

For a client with n targets at ranks r_1 < r_2 < ... (1-based), and a cut-off K:

    hr_at_K      1 if any r_i <= K, else 0
    recall_at_K  #{r_i <= K} / n
    ndcg_at_K    sum over r_i <= K of 1 / log2(1 + r_i), divided by the same sum for the ranks 1..min(K, n)
    mrr_at_K     1 / r_1 if r_1 <= K, else 0

With one target recall equals hr and ndcg is 1 / log2(1 + r). The mean is over clients, each counting
once whatever its n; a client without targets does not count. `score_std` is the mean over clients of the
spread of their scores: near 0 means that the ranking is decided by ties.

Where items are held out of training (`data.cold_items`) the test metrics come a second time as `among_cold/...`: the
ranks of cold test items among the cold items alone, over the clients that have one.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, UInt64

from fedray import seeding
from fedray.data.protocols import Protocol
from fedray.evaluation.ranking import Scores, candidate_ranks, full_ranks, joined, score_spread
from fedray.fixed_point import BITS, quantise
from fedray.sections import Ranking
from fedray.types import ClientData, Ragged

N_BINS = 1001
AMONG_COLD = "among_cold/"
SLICED = ("hr_at_", "ndcg_at_")
MAX_SPREAD = 16384.0  # its square still fits the grid; more than this is a diverged model anyway

ByName = dict[str, Float64[np.ndarray, " clients"]]
Masks = Mapping[str, Bool[np.ndarray, " clients"]]
ByClient = dict[str, tuple[Float64[np.ndarray, " clients"], Int64[np.ndarray, " clients"]]]


def client_metrics(
    ranks: Int64[np.ndarray, " targets"], ptr: Int64[np.ndarray, " clients_plus_1"], ks: Sequence[int]
) -> tuple[ByName, Int64[np.ndarray, " clients"]]:
    """Each client's metrics, and its weight: 1, or 0 if it has no targets (then its values are 0).

    Client c's targets have the ranks `ranks[ptr[c]:ptr[c + 1]]`, distinct or not (under sampled
    candidates two targets may share a rank). Every value is in [0, 1].
    """
    n = np.diff(ptr)
    row = np.repeat(np.arange(len(n)), n)
    # Summed best rank first, a client's gains add up in one order and a perfect ranking gives exactly 1.
    ranks = ranks[np.lexsort((ranks, row))]
    first = np.full(len(n), np.iinfo(np.int64).max)
    first[n > 0] = ranks[ptr[:-1][n > 0]]
    values: ByName = {}
    for k in ks:
        hit = ranks <= k
        gain = 1.0 / np.log2(1.0 + np.arange(1, k + 1))
        ideal = np.concatenate([[1.0], np.cumsum(gain)])[np.minimum(n, k)]
        dcg = np.bincount(row[hit], gain[ranks[hit] - 1], minlength=len(n))
        values[f"hr_at_{k}"] = (first <= k).astype(np.float64)
        values[f"recall_at_{k}"] = np.bincount(row[hit], minlength=len(n)) / np.maximum(n, 1)
        values[f"ndcg_at_{k}"] = np.minimum(dcg / ideal, 1.0)
        values[f"mrr_at_{k}"] = np.where(first <= k, 1.0 / first, 0.0)
    return values, (n > 0).astype(np.int64)


@dataclass(frozen=True)
class MetricSums:
    """Sums of metrics over clients: a commutative monoid, exactly.

    Law: `merge` is associative and commutative to the bit, with `zero()` as its neutral element, so the
    result does not depend on how clients are packed. It holds because a client's value and its square
    are rounded to the grid of `fedray.fixed_point` first and everything after is integer addition (Python
    integers, which cannot overflow).

    sums: metric -> (sum of values, sum of squares, number of clients), the first two in grid steps.
    histograms: metric -> {bin: clients}, bin = round(1000 value), empty bins left out; only for metrics
      asked for, whose values must be in [0, 1].
    """

    sums: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    @classmethod
    def zero(cls) -> "MetricSums":
        """No clients."""
        return cls()

    @classmethod
    def of(
        cls,
        values: Mapping[str, Float[np.ndarray, " clients"]],
        weight: Int[np.ndarray, " clients"],
        quantiles_of: Collection[str] = (),
    ) -> "MetricSums":
        """The clients whose `weight` is 1; those of weight 0 are left out, whatever their values.

        Raises `AggregateOverflowError` where a counted value is not finite or its square is 2^30 or more.
        """
        counted = np.asarray(weight) > 0
        kept = {name: np.asarray(x, dtype=np.float64)[counted] for name, x in values.items()}
        return cls(
            {name: (_total(x), _total(x * x), len(x)) for name, x in kept.items()},
            {name: _histogram(kept[name]) for name in values if name in quantiles_of},
        )

    def merge(self, other: "MetricSums") -> "MetricSums":
        """The clients of both. Also `MetricSums.merge(a, b)`, for `functools.reduce`."""
        sums, histograms = dict(self.sums), dict(self.histograms)
        for name, (x, xx, n) in other.sums.items():
            mine = sums.get(name, (0, 0, 0))
            sums[name] = (mine[0] + x, mine[1] + xx, mine[2] + n)
        for name, theirs in other.histograms.items():
            bins = dict(histograms.get(name, {}))
            for b, n in theirs.items():
                bins[b] = bins.get(b, 0) + n
            histograms[name] = bins
        return MetricSums(sums, histograms)

    def means(self) -> dict[str, float]:
        """Metric -> mean over the counted clients; NaN where there are none."""
        return {name: x / (n << BITS) if n else math.nan for name, (x, _, n) in self.sums.items()}

    def standard_errors(self) -> dict[str, float]:
        """Metric -> standard error of that mean (sample deviation / sqrt n); NaN below two clients."""
        return {name: _standard_error(*parts) for name, parts in self.sums.items()}

    def weights(self) -> dict[str, int]:
        """Metric -> number of clients counted."""
        return {name: n for name, (_, _, n) in self.sums.items()}

    def quantiles(self, name: str, qs: Sequence[float]) -> dict[float, float]:
        """q -> the least value that at least the fraction q of the clients do not exceed, to 0.001.

        NaN without clients; `KeyError` for a metric without a histogram.
        """
        bins = sorted(self.histograms[name].items())
        at_most = np.cumsum([n for _, n in bins])
        if not bins:
            return dict.fromkeys(qs, math.nan)
        # The small slack keeps 0.1 * 10 clients at 1, not at the next one up.
        found = np.searchsorted(at_most, np.asarray(qs) * at_most[-1] * (1 - 1e-12))
        return {q: bins[i][0] / (N_BINS - 1) for q, i in zip(qs, found, strict=True)}


def _total(x: Float64[np.ndarray, " n"]) -> int:
    """The exact sum in grid steps: high and low halves apart, so that int64 suffices for 2^31 clients."""
    q = quantise(x)
    return (int(np.sum(q >> BITS)) << BITS) + int(np.sum(q & ((1 << BITS) - 1)))


def _histogram(x: Float64[np.ndarray, " n"]) -> dict[int, int]:
    bins, counts = np.unique(np.rint(x * (N_BINS - 1)).astype(np.int64), return_counts=True)
    return dict(zip(bins.tolist(), counts.tolist(), strict=True))


def _standard_error(x: int, xx: int, n: int) -> float:
    if n < 2:
        return math.nan
    # n^2 times the population variance, in squared grid steps: exact, so equal values give 0.
    scatter = max(n * (xx << BITS) - x * x, 0)
    return math.sqrt(scatter / (n * n * (n - 1))) / (1 << BITS)


def evaluate_scores(
    scores: Scores,
    data: ClientData,
    split: Literal["valid", "test"],
    protocol: Protocol,
    candidates: Ragged | None,
    ks: Sequence[int],
    slices: Masks = MappingProxyType({}),
) -> MetricSums:
    """`score_metrics`, summed over the clients and over those in each slice (masks row for row)."""
    found = score_metrics(scores, data, split, protocol, candidates, ks)
    return summed(found).merge(sliced(found, slices))


def sliced(found: ByClient, slices: Masks) -> MetricSums:
    """Sums over the clients of each slice, under its name: hr and ndcg in the protocol's own ranking."""
    total = MetricSums.zero()
    for part, mask in slices.items():
        for name, (values, weight) in found.items():
            if name.startswith(SLICED):
                total = total.merge(MetricSums.of({f"{part}/{name}": values}, weight * mask))
    return total


def score_metrics(
    scores: Scores,
    data: ClientData,
    split: Literal["valid", "test"],
    protocol: Protocol,
    candidates: Ragged | None,
    ks: Sequence[int],
) -> ByClient:
    """Each client's value of every ranking's metrics on one split and of `score_std`, and its weight (1 or 0).

    Rows of `scores` are as in `data`. candidates: the split's sampled items, one row per client; may be None
    if no ranking samples. Names carry `protocol.prefix(ranking)`; `Protocol` says what each ranking leaves
    out. Among 99 candidates a K above 99 would say nothing and is left out. A client without a finite score is
    left out of `score_std` (its targets still count, as last); a spread above 16384 counts as 16384.
    Where there are cold items, `among_cold/...` is their own ranking, over the clients with a cold target.
    """
    targets = data.valid if split == "valid" else data.test
    spread = score_spread(scores)
    found: ByClient = {"score_std": (np.minimum(spread, MAX_SPREAD), np.isfinite(spread).astype(np.int64))}
    seen = _without_item0(scores) if protocol.mask_item0 else scores
    if split == "test" and len(data.cold):
        found |= _among_cold(seen, data, protocol, ks)
    for ranking in protocol.rankings:
        ranks = _ranks(ranking, seen, data, split, protocol, candidates)
        values, weight = client_metrics(ranks, targets.ptr, protocol.cutoffs(ranking, ks))
        found |= {protocol.prefix(ranking) + name: (x, weight) for name, x in values.items()}
    return found


def _among_cold(scores: Scores, data: ClientData, protocol: Protocol, ks: Sequence[int]) -> ByClient:
    """Cold targets ranked among the cold items; a K that holds them all would say nothing."""
    place = np.full(data.n_items, -1, np.int64)
    place[data.cold] = np.arange(len(data.cold))
    found = place[data.test.values]
    targets = Ragged(np.append(0, np.cumsum(found >= 0))[data.test.ptr], found[found >= 0])
    nothing = Ragged(np.zeros(len(data) + 1, np.int64), np.zeros(0, np.int64))
    ranks = full_ranks(scores[:, data.cold], targets, nothing, protocol.ties, _tie_keys(data, protocol))
    values, weight = client_metrics(ranks, targets.ptr, [k for k in ks if k < len(data.cold)])
    return {AMONG_COLD + name: (x, weight) for name, x in values.items()}


def summed(found: ByClient) -> MetricSums:
    """The sums over these clients, with histograms of ndcg in the protocol's own ranking."""
    own = {name for name in found if name.startswith("ndcg_at_")}
    return reduce(MetricSums.merge, (MetricSums.of({n: x}, w, own) for n, (x, w) in found.items()), MetricSums.zero())


def _ranks(
    ranking: Ranking,
    scores: Scores,
    data: ClientData,
    split: Literal["valid", "test"],
    protocol: Protocol,
    candidates: Ragged | None,
) -> Int64[np.ndarray, " targets"]:
    targets, other = (data.valid, data.test) if split == "valid" else (data.test, data.valid)
    keys = _tie_keys(data, protocol)
    if ranking == "sampled99":
        if candidates is None:
            raise ValueError(f"ranking {ranking!r} needs the sampled candidates of split {split!r}")
        return candidate_ranks(scores, targets, candidates, protocol.ties, keys)
    knows_other = ranking == "full_minus_all" or (ranking == "full" and split == "test")
    masked = joined(data.train, other) if knows_other else data.train
    return full_ranks(scores, targets, masked, protocol.ties, keys)


def _tie_keys(data: ClientData, protocol: Protocol) -> UInt64[np.ndarray, " clients"] | None:
    # Seed 0 whatever the run's: runs and their controls, which are cached with the data, meet the same order.
    return seeding.keys(0, "ties", 0, data.client) if protocol.ties == "random" else None


def _without_item0(scores: Scores) -> Scores:
    """A copy in which item 0 is behind every number."""
    out = scores.copy()
    out[:, 0] = -np.inf
    return out
