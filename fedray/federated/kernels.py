"""Compiled inner loops: local training of linear heads, the exact scatter-add of row deltas, scores of tuned rows.

Clients are independent, each is worked through by itself in one fixed order, so results do not depend on
packing. `train_linear` computes what the vmapped loss of `models.linear` with SGD computes (tests hold it to the
naive loop within 1e-5): no padding, a client's rows stay in cache, and each pass over a batch is a loop that the
compiler can put in vector registers.
"""

import math

import numba
import numpy as np

# Reassociation lets the dot product use vector registers; the code, and so the order of its sums, is the same
# for every client. NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract"}
_LOG2_E = np.float32(1.4426950408889634)
_LN2 = np.float32(0.6931471805599453)
_ONE, _HALF = np.float32(1.0), np.float32(0.5)
_C3, _C4, _C5, _C6 = (np.float32(1 / math.factorial(n)) for n in (3, 4, 5, 6))


@numba.njit(cache=True, fastmath=_FAST, inline="always")
def _dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    s = np.float32(0.0)
    for j in range(len(a)):
        s += a[j] * b[j]
    return s


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def train_linear(
    table: np.ndarray,
    index: np.ndarray,
    rows: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    row_ptr: np.ndarray,
    sample_ptr: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    order: np.ndarray,
    batch_size: int,
    rates: np.ndarray,
    decay: np.float32,
) -> np.ndarray:
    """SGD on y = sigmoid(w . z_i + b), in place on `weight` [C, d] and `bias` [C]; writes the rows [R, d].

    A client's rows start as table[index]. rates [phases, 3]: learning rates of weight, bias, rows; negative: not in
    this phase. Returns the mean loss per client [C], each sample's before the step it is in.
    """
    loss = np.zeros(len(weight), np.float32)
    longest = 0
    for c in range(len(weight)):
        longest = max(longest, min(batch_size, sample_ptr[c + 1] - sample_ptr[c]))
    at, y = np.empty(longest, np.int64), np.empty(longest, np.float32)
    x, u = np.empty(longest, np.float32), np.empty(longest, np.float32)
    power, grad = np.empty(longest, np.int32), np.empty(weight.shape[1], np.float32)
    for c in range(len(weight)):
        z, w = rows[row_ptr[c] : row_ptr[c + 1]], weight[c]
        _copy_rows(z, table, index[row_ptr[c] : row_ptr[c + 1]])
        lo, n = sample_ptr[c], sample_ptr[c + 1] - sample_ptr[c]
        total = 0.0
        for e in range(len(order)):
            for first in range(0, n, batch_size):
                m = min(batch_size, n - first)
                for k in range(m):
                    s = lo + order[e, lo + first + k]
                    at[k], y[k] = item[s], label[s]
                for p in range(len(rates)):
                    b = bias[c]
                    for k in range(m):
                        x[k] = _dot(z[at[k]], w) + b
                    _exp_minus_abs(x, u, power, m)
                    if p == 0:
                        total += _loss(x, y, u, m)
                    _errors(x, y, u, m)
                    _step(z, w, bias, c, at, x, m, rates[p], decay, grad)
        if n > 0:
            loss[c] = total / (n * len(order))
    return loss


@numba.njit(cache=True, inline="always")
def _copy_rows(z: np.ndarray, table: np.ndarray, index: np.ndarray) -> None:
    for r in range(len(z)):
        source = table[index[r]]
        for j in range(len(source)):
            z[r, j] = source[j]


@numba.njit(cache=True, fastmath=_FAST, inline="always")
def _exp_minus_abs(x: np.ndarray, u: np.ndarray, power: np.ndarray, m: int) -> None:
    """u = exp(-|x|), to 3e-7 relative: 2^n times a Taylor polynomial on |r| <= ln2 / 2, in vector registers (the
    library's exponential is called one number at a time). Below e^-87 it stays at e^-87; NaN stays NaN."""
    for k in range(m):
        a = max(-abs(x[k]), np.float32(-87.0))
        n = np.rint(a * _LOG2_E)
        r = a - n * _LN2
        u[k] = _ONE + r * (_ONE + r * (_HALF + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))))
        power[k] = (np.int32(n) + np.int32(127)) << np.int32(23)
    two_to_n = power.view(np.float32)
    for k in range(m):
        u[k] = u[k] * two_to_n[k] if x[k] == x[k] else x[k]


@numba.njit(cache=True, fastmath=_FAST, inline="always")
def _loss(x: np.ndarray, y: np.ndarray, u: np.ndarray, m: int) -> float:
    """The batch's summed cross-entropy, max(x, 0) - x y + log(1 + u). Many logarithms are one of a product: each
    factor is at most 2, so hundreds stay finite."""
    total, product = 0.0, 1.0
    for k in range(m):
        total += max(x[k], np.float32(0.0)) - x[k] * y[k]
        product *= 1.0 + u[k]
        if product > 1e100:
            total += math.log(product)
            product = 1.0
    return total + math.log(product)


@numba.njit(cache=True, fastmath=_FAST, inline="always")
def _errors(x: np.ndarray, y: np.ndarray, u: np.ndarray, m: int) -> None:
    """x = (sigmoid(x) - y) / m, the gradient of the mean loss with respect to each logit."""
    scale = _ONE / np.float32(m)
    for k in range(m):
        inverse = _ONE / (_ONE + u[k])
        x[k] = ((inverse if x[k] >= 0 else u[k] * inverse) - y[k]) * scale


@numba.njit(cache=True, fastmath=_FAST, inline="always")
def _step(
    z: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    c: int,
    at: np.ndarray,
    error: np.ndarray,
    m: int,
    rate: np.ndarray,
    decay: np.float32,
    grad: np.ndarray,
) -> None:
    """One phase's update from the errors of m samples; all gradients are at the values before it."""
    total = np.float32(0.0)
    grad[:] = 0
    for k in range(m if rate[0] >= 0 else 0):
        row, e = z[at[k]], error[k]
        for j in range(len(w)):
            grad[j] += e * row[j]
    for k in range(m):
        total += error[k]
    if rate[2] >= 0:
        _step_rows(z, w, at, error, m, rate[2], decay)
    if rate[0] >= 0:
        for j in range(len(w)):
            w[j] -= rate[0] * (grad[j] + decay * w[j])
    if rate[1] >= 0:
        bias[c] -= rate[1] * (total + decay * bias[c])


@numba.njit(cache=True, fastmath=_FAST, inline="always")
def _step_rows(
    z: np.ndarray, w: np.ndarray, at: np.ndarray, error: np.ndarray, m: int, rate: np.float32, decay: np.float32
) -> None:
    """z_i -= rate (sum of its errors w + decay z_i) with the old w; the decay moves all of the client's rows."""
    if decay > 0:
        shrink = _ONE - rate * decay
        for i in range(len(z)):
            for j in range(len(w)):
                z[i, j] *= shrink
    for k in range(m):
        row, step = z[at[k]], rate * error[k]
        for j in range(len(w)):
            row[j] -= step * w[j]


@numba.njit(cache=True, nogil=True)
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
    clients of the largest |grid number|, or -1 where a value is not finite, or it or that sum reaches `limit`.
    """
    peak = 0
    for c in range(len(row_ptr) - 1):
        largest = 0.0
        factor = weight[c] * scale
        for r in range(row_ptr[c], row_ptr[c + 1]):
            target, base = out[rows[r]], table[rows[r]]
            for j in range(trained.shape[1]):
                x = np.rint((np.float64(trained[r, j]) - decay[c] * np.float64(base[j])) * factor)
                size = abs(x)
                if not size < limit:
                    return -1
                largest = max(largest, size)
                target[j] += np.int64(x)
        peak += int(largest)
        if not peak < limit:
            return -1
    return peak


@numba.njit(cache=True, nogil=True, fastmath=_FAST)
def overlay_linear(
    out: np.ndarray,
    clients: np.ndarray,
    ptr: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
) -> None:
    """out[k, rows] = values . w + b for the tuned rows of client `clients[k]`; out [K, M]."""
    for k in range(len(clients)):
        c = clients[k]
        for r in range(ptr[c], ptr[c + 1]):
            out[k, rows[r]] = _dot(values[r], weight[c]) + bias[c]
