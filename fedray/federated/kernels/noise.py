"""Laplace noise for uploads, drawn per client and number from counters: the same wherever it is made."""

import math

import numba
import numpy as np

from fedray import seeding
from fedray.federated.kernels.losses import FAST

CHUNK = 1024
_LN2, _SQRT2 = math.log(2.0), math.sqrt(2.0)
_MANTISSA, _ONE_BITS = (1 << 52) - 1, 1023 << 52


@numba.njit(cache=True, fastmath=FAST)
def laplace(key: np.uint64, first: int, scale: float, out: np.ndarray, bits: np.ndarray) -> None:
    """out [n] = draws first, first + 1, ... of Laplace(0, scale): a sign from the lowest bit of the key's number, an
    exponential from the upper 53. bits [n] int64: scratch."""
    for i in range(len(out)):
        out[i] = (np.float64(seeding.draw(key, np.uint64(first + i)) >> np.uint64(11)) + 0.5) * 1.1102230246251565e-16
    _minus_log(out, bits)
    for i in range(len(out)):
        positive = seeding.draw(key, np.uint64(first + i)) & np.uint64(1)
        out[i] *= scale if positive else -scale


@numba.njit(cache=True, fastmath=FAST)
def _minus_log(x: np.ndarray, bits: np.ndarray) -> None:
    """x = -log(x) for x in (0, 1), to 1e-12 relative, in vector registers (the library's logarithm is called one
    number at a time): x = 2^e m with m near 1, log m = 2 atanh((m - 1) / (m + 1))."""
    whole, part = x.view(np.int64), bits.view(np.float64)
    for i in range(len(x)):
        bits[i] = (whole[i] & _MANTISSA) | _ONE_BITS
        whole[i] = (whole[i] >> 52) - 1023
    for i in range(len(x)):
        m, e = part[i], np.float64(whole[i])
        high = m > _SQRT2
        m, e = (m * 0.5 if high else m), (e + 1.0 if high else e)
        s = (m - 1.0) / (m + 1.0)
        t = s * s
        series = 1 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11 + t * (1 / 13 + t / 15))))))
        x[i] = -(e * _LN2 + 2.0 * s * series)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def add_noise_sums(
    out: np.ndarray, keys: np.ndarray, first: int, weight: np.ndarray, scale: float, grid: float, limit: float
) -> int:
    """out [N] int64 += sum over clients of round(weight_c noise grid), client c's numbers being draws first, first + 1,
    ... of its key. Returns the sum over clients of the largest |grid number|, or -1 where one of them or that sum
    reaches `limit`."""
    peak = 0
    noise, bits = np.empty(CHUNK), np.empty(CHUNK, np.int64)
    for c in range(len(keys)):
        largest, factor = 0.0, weight[c] * grid
        for start in range(0, len(out), CHUNK):
            n = min(CHUNK, len(out) - start)
            laplace(keys[c], first + start, scale, noise[:n], bits[:n])
            for i in range(n):
                x = np.rint(noise[i] * factor)
                largest = max(largest, abs(x))
                out[start + i] += np.int64(x)
        if not largest < limit:
            return -1
        peak += int(largest)
        if not peak < limit:
            return -1
    return peak


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def add_noise(values: np.ndarray, keys: np.ndarray, first: int, scale: float) -> None:
    """values [C, N] float32 += each client's noise, in place."""
    noise, bits = np.empty(CHUNK), np.empty(CHUNK, np.int64)
    for c in range(len(keys)):
        for start in range(0, values.shape[1], CHUNK):
            n = min(CHUNK, values.shape[1] - start)
            laplace(keys[c], first + start, scale, noise[:n], bits[:n])
            for i in range(n):
                values[c, start + i] += np.float32(noise[i])


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
