"""Negatives and sampled candidates, for all clients of an actor at once.

Everything a client draws comes from its own keys (seed, stream, round, client), so it does not matter who
draws it, or beside whom. The j-th item that a client does *not* have is found by bisection in its ascending
list of known items: no rejection against known items, no bitmap.

Cold items (`data.cold_items`) are not there while training goes on, so no client draws one: `draw_samples` draws from
the catalogue without them. Drawn, they would be pushed down by everybody and up by nobody, which tells a method that
they are disliked. Not drawn, they are the only items that nobody pushes down, and beside items that were trained on
this alone can lift them (as in protocols whose negatives spare the held-out items) or, under a loss that pulls what
is known up, bury them. So what a method knows of cold items is read from their ranking among themselves
(`among_cold/...`), where all are alike in that. Items that merely happen to have no training interaction are drawn
like any other. Candidates of a sampled ranking are drawn from the whole catalogue.
"""

import numba
import numpy as np

from fedray import seeding
from fedray.data.protocols import N_CANDIDATES, Protocol
from fedray.types import ClientData, Ragged


@numba.njit(cache=True, inline="always")
def unknown_item(known: np.ndarray, lo: int, hi: int, j: int) -> int:
    """The j-th (from 0) item id that is not in the ascending `known[lo:hi]`."""
    a, b = lo, hi
    while a < b:
        mid = (a + b) // 2
        if known[mid] - (mid - lo) > j:
            b = mid
        else:
            a = mid + 1
    return j + (a - lo)


@numba.njit(cache=True)
def list_unknown(known: np.ndarray, lo: int, hi: int, n_items: int, out: np.ndarray) -> None:
    """All item ids that are not in the ascending `known[lo:hi]`, ascending: out[j] = unknown_item(..., j)."""
    end, item = 0, 0
    for k in range(lo, hi):
        for i in range(item, known[k]):
            out[end] = i
            end += 1
        item = known[k] + 1
    for i in range(item, n_items):
        out[end] = i
        end += 1


@numba.njit(cache=True)
def fill_negatives(
    key: np.uint64,
    known: np.ndarray,
    lo: int,
    hi: int,
    n_items: int,
    group: int,
    out: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """Fill `out` with unknown items, uniform; distinct within each run of `group` where there are enough.

    scratch [n_items]: a client with many draws lists its unknown items once, one with few bisects for each.
    """
    pool = n_items - (hi - lo)
    listed = 8 * len(out) > n_items
    if listed:
        list_unknown(known, lo, hi, n_items, scratch)
    counter = np.uint64(0)
    for i in range(len(out)):
        start = i - i % group
        while True:
            j = seeding.below(key, counter, pool)
            item = scratch[j] if listed else unknown_item(known, lo, hi, j)
            counter += np.uint64(1)
            fresh = True
            for s in range(start, i):
                fresh = fresh and out[s] != item
            if fresh or pool < group:
                break
        out[i] = item


@numba.njit(cache=True)
def fill_lowest(known: np.ndarray, lo: int, hi: int, out: np.ndarray) -> None:
    """Fill `out` with the lowest unknown item ids, ascending; there must be as many."""
    for j in range(len(out)):
        out[j] = unknown_item(known, lo, hi, j)


def spared(data: ClientData, protocol: Protocol) -> Ragged:
    """The items training negatives avoid: the training items, or (paper protocols) those of every split."""
    return data.train if protocol.negatives_spare == "train" else known_items(data)


def known_items(data: ClientData) -> Ragged:
    """All items a client has in any split, ascending."""
    parts = (data.train, data.valid, data.test)
    row = np.concatenate([np.repeat(np.arange(len(data)), p.lengths()) for p in parts])
    return Ragged.of(row, np.concatenate([p.values for p in parts]), len(data))


def shortlists(seed: int, data: ClientData, protocol: Protocol) -> dict[str, Ragged]:
    """What the protocol's sampled rankings rank: by split, or nothing where it has none.

    Candidates that validation and test share are the validation half of what else would be two.
    """
    if "sampled99" not in protocol.rankings:
        return {}
    found = candidates(seed, data)
    return dict.fromkeys(found, found["valid"]) if protocol.share_candidates else found


def candidates(seed: int, data: ClientData) -> dict[str, Ragged]:
    """99 validation and 99 test candidates per client: two halves of one sample without replacement of items
    it has in no split. A client with fewer than 198 such items gets halves of what there is.
    """
    known = known_items(data)
    size = np.minimum(2 * N_CANDIDATES, data.n_items - known.lengths()) // 2
    ptr = np.concatenate([[0], np.cumsum(2 * size)]).astype(np.int64)
    keys = seeding.keys(seed, "candidates", 0, data.client)
    both = _candidates(keys, known.ptr, known.values, data.n_items, ptr)
    half_ptr = ptr // 2
    first = np.arange(len(both)) - np.repeat(ptr[:-1], np.diff(ptr)) < np.repeat(size, np.diff(ptr))
    return {"valid": Ragged(half_ptr, both[first]), "test": Ragged(half_ptr, both[~first])}


@numba.njit(cache=True)
def _candidates(
    keys: np.ndarray, known_ptr: np.ndarray, known: np.ndarray, n_items: int, ptr: np.ndarray
) -> np.ndarray:
    out, scratch = np.empty(ptr[-1], np.int64), np.empty(n_items, np.int32)
    for c in range(len(keys)):
        n = ptr[c + 1] - ptr[c]
        part = out[ptr[c] : ptr[c + 1]]
        fill_negatives(keys[c], known, known_ptr[c], known_ptr[c + 1], n_items, max(n, 1), part, scratch)
    return out
