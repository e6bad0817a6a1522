"""Ranks where equal scores have an order of their own; `ranking` has the pessimistic rule, which needs none.

An item comes before a target if it scores more, or the same and has the lower place. A place is the item's id
(`index`), or a random number of the client's own key (`random`), in which no two items agree. As in `ranking`,
NaN is below every number and equal to NaN, and a result depends on that client's own row, lists and key only.
"""

import numba
import numpy as np

from fedray import seeding


@numba.njit(cache=True, nogil=True)
def full_ranks(
    scores: np.ndarray,
    t_ptr: np.ndarray,
    t_items: np.ndarray,
    m_ptr: np.ndarray,
    m_items: np.ndarray,
    keys: np.ndarray,
    random: bool,
) -> np.ndarray:
    """As `ranking.full_ranks`; keys [clients] are not read where the order is not random."""
    out, hidden = np.empty(len(t_items), np.int64), np.zeros(scores.shape[1], np.bool_)
    for c in range(len(scores)):
        masked = m_items[m_ptr[c] : m_ptr[c + 1]]
        hidden[masked] = True
        for t in range(t_ptr[c], t_ptr[c + 1]):
            ahead = 0
            for i in range(scores.shape[1]):
                ahead += not hidden[i] and _before(scores[c], i, t_items[t], keys[c], random)
            out[t] = 1 + ahead
        hidden[masked] = False
    return out


@numba.njit(cache=True, nogil=True)
def candidate_ranks(
    scores: np.ndarray,
    t_ptr: np.ndarray,
    t_items: np.ndarray,
    c_ptr: np.ndarray,
    c_items: np.ndarray,
    keys: np.ndarray,
    random: bool,
) -> np.ndarray:
    """As `ranking.candidate_ranks`."""
    out = np.empty(len(t_items), np.int64)
    for c in range(len(scores)):
        for t in range(t_ptr[c], t_ptr[c + 1]):
            ahead = 0
            for i in c_items[c_ptr[c] : c_ptr[c + 1]]:
                ahead += _before(scores[c], i, t_items[t], keys[c], random)
            out[t] = 1 + ahead
    return out


@numba.njit(cache=True, nogil=True, inline="always")
def _before(row: np.ndarray, i: int, target: int, key: np.uint64, random: bool) -> bool:
    a, s = row[i], row[target]
    if a != s and (a == a or s == s):
        return a > s or s != s
    if random:
        return seeding.draw(key, np.uint64(i)) < seeding.draw(key, np.uint64(target))
    return i < target
