"""Ranks of held-out items and the spread of scores, compiled, one client after another.

A rank is 1-based: 1 + the number of other candidates that come before the target. Ties are pessimistic
(other rules are in `ties`): a candidate with the target's own score comes before it, so constant scores
earn nothing, however items are numbered. A NaN score ranks below every number, and two NaN count as equal.
Each result depends on that client's own row and lists only, and the kernels use neither threads nor
reordered sums.

Axes: clients C, items M. Every `Ragged` has one row per client, in the order of the rows of `scores`.
"""

import numba
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt64

from fedray.evaluation import ties as ordered
from fedray.sections import Ties
from fedray.types import Ragged

Scores = Float32[np.ndarray, "clients items"]
Keys = UInt64[np.ndarray, " clients"]


def full_ranks(
    scores: Scores, targets: Ragged, masked: Ragged, ties: Ties = "pessimistic", keys: Keys | None = None
) -> Int64[np.ndarray, " targets"]:
    """The rank of each target among all M items but the client's `masked` ones, flat as `targets.values`.

    Several targets of one client rank against each other as well: another target comes before this one
    if it scores more, or the same and stands earlier in the list. So n targets above all other items get
    the ranks 1..n. A target must not be masked; masked items are distinct within a row. keys: the clients'
    own, for random ties.
    """
    lists = targets.ptr, targets.values, masked.ptr, masked.values
    if ties == "pessimistic":
        return _full_ranks(_contiguous(scores), *lists)
    return ordered.full_ranks(_contiguous(scores), *lists, _keys(keys, scores, ties), ties == "random")


def candidate_ranks(
    scores: Scores, targets: Ragged, candidates: Ragged, ties: Ties = "pessimistic", keys: Keys | None = None
) -> Int64[np.ndarray, " targets"]:
    """The rank of each target among the client's `candidates` and itself, flat as `targets.values`.

    A client's other targets play no part. Candidates must not hold the target. No candidates: rank 1.
    """
    lists = targets.ptr, targets.values, candidates.ptr, candidates.values
    if ties == "pessimistic":
        return _candidate_ranks(_contiguous(scores), *lists)
    return ordered.candidate_ranks(_contiguous(scores), *lists, _keys(keys, scores, ties), ties == "random")


def _keys(keys: Keys | None, scores: Scores, ties: Ties) -> Keys:
    if keys is None and ties == "random":
        raise ValueError("random ties need a key of each client")
    return np.zeros(len(scores), np.uint64) if keys is None else keys


def score_spread(scores: Scores) -> Float64[np.ndarray, " clients"]:
    """The standard deviation (divisor n) of each client's finite scores; exactly 0 if they are equal.

    NaN for a client without a finite score.
    """
    return _spreads(_contiguous(scores))


def joined(a: Ragged, b: Ragged) -> Ragged:
    """Row by row, the values of both, ascending where both are (linear time)."""
    return Ragged(a.ptr + b.ptr, _merged(a.ptr, a.values, b.ptr, b.values))


def _contiguous(scores: Scores) -> Scores:
    return np.ascontiguousarray(scores, dtype=np.float32)


@numba.njit(cache=True, nogil=True)
def _full_ranks(
    scores: np.ndarray, t_ptr: np.ndarray, t_items: np.ndarray, m_ptr: np.ndarray, m_items: np.ndarray
) -> np.ndarray:
    out = np.empty(len(t_items), np.int64)
    for c in range(len(scores)):
        row, masked = scores[c], m_items[m_ptr[c] : m_ptr[c + 1]]
        for t in range(t_ptr[c], t_ptr[c + 1]):
            s = row[t_items[t]]
            # Count over the whole row, which vectorises, then take back what must not count: cheaper
            # than asking of every item whether it is masked. One of those counted is the target itself.
            ahead = _count_row(row, s) - _count_items(row, masked, s)
            out[t] = ahead - _count_equal(row, t_items[t + 1 : t_ptr[c + 1]], s)
    return out


@numba.njit(cache=True, nogil=True)
def _candidate_ranks(
    scores: np.ndarray, t_ptr: np.ndarray, t_items: np.ndarray, c_ptr: np.ndarray, c_items: np.ndarray
) -> np.ndarray:
    out = np.empty(len(t_items), np.int64)
    for c in range(len(scores)):
        for t in range(t_ptr[c], t_ptr[c + 1]):
            s = scores[c, t_items[t]]
            out[t] = 1 + _count_items(scores[c], c_items[c_ptr[c] : c_ptr[c + 1]], s)
    return out


@numba.njit(cache=True, nogil=True)
def _count_row(row: np.ndarray, s: float) -> int:
    """Items that do not come after a target of score s, that target included."""
    if s != s:
        return len(row)
    n = np.int32(0)
    for j in range(len(row)):
        n = np.int32(n + (row[j] >= s))
    return int(n)


@numba.njit(cache=True, nogil=True)
def _count_items(row: np.ndarray, items: np.ndarray, s: float) -> int:
    """The same among `items` only."""
    n = 0
    for i in items:
        n += (row[i] >= s) | (s != s)
    return n


@numba.njit(cache=True, nogil=True)
def _count_equal(row: np.ndarray, items: np.ndarray, s: float) -> int:
    n = 0
    for i in items:
        n += (row[i] == s) | ((row[i] != row[i]) & (s != s))
    return n


@numba.njit(cache=True, nogil=True)
def _spreads(scores: np.ndarray) -> np.ndarray:
    out = np.empty(len(scores), np.float64)
    for c in range(len(scores)):
        row = scores[c]
        mean = _sum(row) / max(len(row), 1)
        if not np.isfinite(mean):
            row = row[np.isfinite(row)]
            mean = _sum(row) / max(len(row), 1)
        out[c] = np.sqrt(_sum_squares(row, mean) / len(row)) if len(row) else np.nan
    return out


# Four running sums instead of one: additions that do not wait for each other, in a fixed order.
@numba.njit(cache=True, nogil=True)
def _sum(x: np.ndarray) -> float:
    a, b, c, d, n = 0.0, 0.0, 0.0, 0.0, len(x) // 4 * 4
    for j in range(0, n, 4):
        a += np.float64(x[j])
        b += np.float64(x[j + 1])
        c += np.float64(x[j + 2])
        d += np.float64(x[j + 3])
    for j in range(n, len(x)):
        a += np.float64(x[j])
    return (a + b) + (c + d)


@numba.njit(cache=True, nogil=True)
def _sum_squares(x: np.ndarray, mean: float) -> float:
    a, b, c, d, n = 0.0, 0.0, 0.0, 0.0, len(x) // 4 * 4
    for j in range(0, n, 4):
        a += (np.float64(x[j]) - mean) ** 2
        b += (np.float64(x[j + 1]) - mean) ** 2
        c += (np.float64(x[j + 2]) - mean) ** 2
        d += (np.float64(x[j + 3]) - mean) ** 2
    for j in range(n, len(x)):
        a += (np.float64(x[j]) - mean) ** 2
    return (a + b) + (c + d)


@numba.njit(cache=True, nogil=True)
def _merged(a_ptr: np.ndarray, a: np.ndarray, b_ptr: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.empty(len(a) + len(b), np.int64)
    for r in range(len(a_ptr) - 1):
        i, j = a_ptr[r], b_ptr[r]
        for n in range(i + j, a_ptr[r + 1] + b_ptr[r + 1]):
            if j == b_ptr[r + 1] or (i < a_ptr[r + 1] and a[i] <= b[j]):
                out[n] = a[i]
                i += 1
            else:
                out[n] = b[j]
                j += 1
    return out
