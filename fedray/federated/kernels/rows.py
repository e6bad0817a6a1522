"""Compiled loops over item rows: the exact scatter-add of row deltas, tables kept as touched rows, whole tables."""

import numba
import numpy as np

from fedray.federated.kernels.losses import FAST


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def add_row_deltas(
    out: np.ndarray,
    table: np.ndarray,
    rows: np.ndarray,
    trained: np.ndarray,
    row_ptr: np.ndarray,
    decay: np.ndarray,
    weight: np.ndarray,
    scale: float,
    limit: float,
) -> int:
    """out[rows] += round(weight_c (trained - decay_c table[rows]) scale), as int64: exact in any order.

    out [M, d] int64; table [M, d], what all clients started from; trained [R, d]. Returns the sum over
    clients of the largest |grid number|, or -1 where a value is not finite, or it or that sum reaches `limit`: `out` is
    then of no use.
    """
    peak, d = 0, trained.shape[1]
    largest, total = np.empty(d), np.empty(d)  # by column, and checked once a client: the loop then vectorises
    for c in range(len(row_ptr) - 1):
        if weight[c] == 0:
            continue
        factor, keep = weight[c] * scale, decay[c]
        largest[:], total[:] = 0.0, 0.0
        for r in range(row_ptr[c], row_ptr[c + 1]):
            target, base, new = out[rows[r]], table[rows[r]], trained[r]
            for j in range(d):
                x = np.rint((np.float64(new[j]) - keep * np.float64(base[j])) * factor)
                size = abs(x)
                largest[j] = max(largest[j], size)
                total[j] += size  # stays NaN once it is
                target[j] += np.int64(x)
        most = 0.0
        for j in range(d):
            if not (largest[j] < limit and np.isfinite(total[j])):
                return -1
            most = max(most, largest[j])
        peak += int(most)
        if not peak < limit:
            return -1
    return peak


@numba.njit(cache=True, nogil=True)
def ascending(row_ptr: np.ndarray, rows: np.ndarray, n_rows: int) -> np.ndarray:
    """[C] bool: whether a client's rows are ids of a table of n_rows, each above the one before."""
    out = np.empty(len(row_ptr) - 1, np.bool_)
    for c in range(len(out)):
        fine, last = True, np.int64(-1)
        for r in range(row_ptr[c], row_ptr[c + 1]):
            fine &= last < rows[r]
            last = np.int64(rows[r])
        out[c] = fine and last < n_rows
    return out


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def update_sizes(
    table: np.ndarray, rows: np.ndarray, trained: np.ndarray, row_ptr: np.ndarray, decay: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each client's deltas trained - decay_c table[rows]: the largest size (infinite where one is not finite) and
    the squared L2 norm. trained [R, d]."""
    n, d = len(row_ptr) - 1, trained.shape[1]
    most, square = np.zeros(n), np.zeros(n)
    largest, total = np.empty(d), np.empty(d)  # by column, so that the loop vectorises
    for c in range(n):
        keep = decay[c]
        largest[:], total[:] = 0.0, 0.0
        for r in range(row_ptr[c], row_ptr[c + 1]):
            base, new = table[rows[r]], trained[r]
            for j in range(d):
                x = np.float64(new[j]) - keep * np.float64(base[j])
                largest[j] = max(largest[j], abs(x))
                total[j] += x * x  # stays NaN once it is
        square[c] = total.sum()
        most[c] = largest.max() if d and np.isfinite(square[c]) else (np.inf if d else 0.0)
    return most, square


@numba.njit(cache=True, nogil=True)
def gather_own(
    ptr: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    scale: np.ndarray,
    base: np.ndarray,
    who: np.ndarray,
    want_ptr: np.ndarray,
    want: np.ndarray,
) -> np.ndarray:
    """The wanted rows (ascending per client) of the clients at `who`: their own where they keep one, else
    scale_c base."""
    out = np.empty((len(want), values.shape[1]), np.float32)
    for k in range(len(who)):
        c = who[k]
        i, hi = ptr[c], ptr[c + 1]
        factor = np.float32(scale[c])
        for r in range(want_ptr[k], want_ptr[k + 1]):
            while i < hi and rows[i] < want[r]:
                i += 1
            if i < hi and rows[i] == want[r]:
                out[r] = values[i]
            else:
                out[r] = factor * base[want[r]]
    return out


@numba.njit(cache=True, nogil=True)
def count_union(
    ptr: np.ndarray, rows: np.ndarray, place: np.ndarray, new_ptr: np.ndarray, new_rows: np.ndarray
) -> np.ndarray:
    """Row pointers of the union: client c gains the rows of new client place[c] (-1: none)."""
    out = np.zeros(len(ptr), np.int64)
    for c in range(len(ptr) - 1):
        n = ptr[c + 1] - ptr[c]
        k = place[c]
        if k >= 0:
            i = ptr[c]
            for r in range(new_ptr[k], new_ptr[k + 1]):
                while i < ptr[c + 1] and rows[i] < new_rows[r]:
                    i += 1
                n += not (i < ptr[c + 1] and rows[i] == new_rows[r])
        out[c + 1] = out[c] + n
    return out


@numba.njit(cache=True, nogil=True)
def merge_own(
    ptr: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    place: np.ndarray,
    new_ptr: np.ndarray,
    new_rows: np.ndarray,
    new_values: np.ndarray,
    factor: np.ndarray,
    out_ptr: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, values) of the union: new rows win, the kept ones of a client that trained shrink by its factor."""
    out_rows = np.empty(out_ptr[-1], rows.dtype)
    out = np.empty((out_ptr[-1], values.shape[1]), np.float32)
    for c in range(len(ptr) - 1):
        k = place[c]
        i, o = ptr[c], out_ptr[c]
        r, end = (new_ptr[k], new_ptr[k + 1]) if k >= 0 else (0, 0)
        shrink = np.float32(factor[k]) if k >= 0 else np.float32(1.0)
        while i < ptr[c + 1] or r < end:
            if r < end and (i == ptr[c + 1] or new_rows[r] <= rows[i]):
                i += i < ptr[c + 1] and rows[i] == new_rows[r]
                out_rows[o] = new_rows[r]
                out[o] = new_values[r]
                r += 1
            else:
                out_rows[o] = rows[i]
                out[o] = shrink * values[i]
                i += 1
            o += 1
    return out_rows, out


@numba.njit(cache=True, nogil=True)
def whole_tables(
    base: np.ndarray,
    target: np.ndarray,
    decay: np.ndarray,
    toward: np.ndarray,
    row_ptr: np.ndarray,
    rows: np.ndarray,
    trained: np.ndarray,
) -> np.ndarray:
    """Whole tables [C, M, d]: the rows a client touched as trained, the others decay_c base + toward_c target (which
    is not read where toward_c is 0)."""
    n = len(row_ptr) - 1
    out = np.empty((n, base.shape[0], base.shape[1]), np.float32)
    for c in range(n):
        f, g = np.float32(decay[c]), np.float32(toward[c])
        for i in range(base.shape[0]):
            for j in range(base.shape[1]):
                out[c, i, j] = f * base[i, j] + (g * target[c, i, j] if g != 0 else g)
        for r in range(row_ptr[c], row_ptr[c + 1]):
            out[c, rows[r]] = trained[r]
    return out
