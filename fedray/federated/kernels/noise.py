"""Laplace noise for uploads, drawn per client and number from counters: the same wherever it is made."""

import math

import numba
import numpy as np

from fedray import seeding


@numba.njit(cache=True, inline="always")
def laplace(key: np.uint64, i: np.uint64, scale: float) -> float:
    """The i-th draw of Laplace(0, scale): a sign from the lowest bit, an exponential from the upper 53."""
    bits = seeding.draw(key, i)
    size = -math.log((np.float64(bits >> np.uint64(11)) + 0.5) * (1.0 / 9007199254740992.0)) * scale
    return size if bits & np.uint64(1) else -size


@numba.njit(cache=True, nogil=True)
def add_noise_sums(
    out: np.ndarray, keys: np.ndarray, first: int, weight: np.ndarray, scale: float, grid: float, limit: float
) -> int:
    """out [N] int64 += sum over clients of round(weight_c noise grid), client c's numbers being draws first, first + 1,
    ... of its key. Returns the sum over clients of the largest |grid number|, or -1 where one of them or that sum
    reaches `limit`."""
    peak = 0
    for c in range(len(keys)):
        largest, factor = 0.0, weight[c] * grid
        for i in range(len(out)):
            x = np.rint(laplace(keys[c], np.uint64(first + i), scale) * factor)
            largest = max(largest, abs(x))
            if not largest < limit:
                return -1
            out[i] += np.int64(x)
        peak += int(largest)
        if not peak < limit:
            return -1
    return peak


@numba.njit(cache=True, nogil=True)
def add_noise(values: np.ndarray, keys: np.ndarray, first: int, scale: float) -> None:
    """values [C, N] float32 += each client's noise, in place."""
    for c in range(len(keys)):
        for i in range(values.shape[1]):
            values[c, i] += np.float32(laplace(keys[c], np.uint64(first + i), scale))


@numba.njit(cache=True, nogil=True)
def delta_norms(
    table: np.ndarray, rows: np.ndarray, trained: np.ndarray, row_ptr: np.ndarray, decay: np.ndarray
) -> np.ndarray:
    """Squared L2 norm of each client's row deltas, trained - decay_c table[rows]."""
    out = np.zeros(len(row_ptr) - 1)
    for c in range(len(out)):
        total = 0.0
        for r in range(row_ptr[c], row_ptr[c + 1]):
            for j in range(trained.shape[1]):
                x = np.float64(trained[r, j]) - decay[c] * np.float64(table[rows[r], j])
                total += x * x
        out[c] = total
    return out


@numba.njit(cache=True, nogil=True)
def clip_rows(
    table: np.ndarray, rows: np.ndarray, trained: np.ndarray, row_ptr: np.ndarray, decay: np.ndarray, shrink: np.ndarray
) -> np.ndarray:
    """The rows with each client's delta multiplied by shrink[c]."""
    out = trained.copy()
    for c in range(len(row_ptr) - 1):
        if shrink[c] < 1.0:
            for r in range(row_ptr[c], row_ptr[c + 1]):
                for j in range(trained.shape[1]):
                    base = decay[c] * np.float64(table[rows[r], j])
                    out[r, j] = np.float32(base + shrink[c] * (np.float64(trained[r, j]) - base))
    return out
