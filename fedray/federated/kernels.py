"""Compiled inner loops: local training of linear heads, and the exact scatter-add of row deltas.

Clients are independent, each is worked through by itself in one fixed order, so results do not depend on
packing. `train_linear` computes what the vmapped loss of `models.linear` with SGD computes (tests hold it to the
naive loop within 1e-5), several times faster: no padding, rows stay in cache, one pass per phase.
"""

import math

import numba
import numpy as np

# Reassociation lets the dot product use vector registers; the code, and so the order of its sums, is the same
# for every client. NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract"}


@numba.njit(cache=True, fastmath=_FAST, inline="always")
def _dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    s = np.float32(0.0)
    for j in range(len(a)):
        s += a[j] * b[j]
    return s


@numba.njit(cache=True, nogil=True, fastmath=_FAST)
def train_linear(
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
    """SGD on y = sigmoid(w . z_i + b), in place on `rows` [R, d], `weight` [C, d], `bias` [C].

    rates [phases, 3]: learning rates of weight, bias, rows; negative: not in this phase. Returns the mean loss
    per client [C].
    """
    n_clients, dim = weight.shape
    loss = np.zeros(n_clients, np.float32)
    largest = 0
    for c in range(n_clients):
        largest = max(largest, row_ptr[c + 1] - row_ptr[c])
    pull = np.zeros(largest, np.float32)
    touched = np.empty(largest, np.int32)
    seen = np.zeros(largest, np.bool_)
    grad = np.zeros(dim, np.float32)
    for c in range(n_clients):
        z = rows[row_ptr[c] : row_ptr[c + 1]]
        w = weight[c]
        lo, n = sample_ptr[c], sample_ptr[c + 1] - sample_ptr[c]
        total = 0.0
        for e in range(len(order)):
            for first in range(0, n, batch_size):
                last = min(first + batch_size, n)
                for p in range(len(rates)):
                    total += _phase(
                        z, w, bias, c, lo, item, label, order[e], first, last,
                        rates[p], decay, p == 0, pull, touched, seen, grad,
                    )  # fmt: skip
        if n > 0:
            loss[c] = total / (n * len(order))
    return loss


@numba.njit(cache=True, fastmath=_FAST, inline="always")
def _phase(
    z: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    c: int,
    lo: int,
    item: np.ndarray,
    label: np.ndarray,
    order: np.ndarray,
    first: int,
    last: int,
    rate: np.ndarray,
    decay: np.float32,
    count_loss: bool,
    pull: np.ndarray,
    touched: np.ndarray,
    seen: np.ndarray,
    grad: np.ndarray,
) -> float:
    """One update of one client on one batch; returns the batch's summed loss if asked."""
    dim = len(w)
    total, product = 0.0, 1.0
    n_touched = 0
    grad_bias = np.float32(0.0)
    scale = np.float32(1.0) / np.float32(last - first)
    head = rate[0] >= 0
    grad[:] = 0
    for k in range(first, last):
        s = lo + order[lo + k]
        i = item[s]
        x = _dot(z[i], w) + bias[c]
        small = math.exp(-abs(x))
        prob = np.float32(1.0 / (1.0 + small) if x >= 0 else small / (1.0 + small))
        error = (prob - label[s]) * scale
        if count_loss:
            # log(1+u) of many samples as one logarithm of their product: u <= 1, so 500 factors stay finite
            total += max(x, 0.0) - x * label[s]
            product *= 1.0 + small
            if product > 1e100:
                total += math.log(product)
                product = 1.0
        grad_bias += error
        if head:
            for j in range(dim):
                grad[j] += error * z[i, j]
        if not seen[i]:
            seen[i] = True
            touched[n_touched] = i
            n_touched += 1
        pull[i] += error
    _step_rows(z, w, rate[2], decay, pull, touched, seen, n_touched)
    if head:
        for j in range(dim):
            w[j] -= rate[0] * (grad[j] + decay * w[j])
    if rate[1] >= 0:
        bias[c] -= rate[1] * (grad_bias + decay * bias[c])
    return total + math.log(product)


@numba.njit(cache=True, fastmath=_FAST, inline="always")
def _step_rows(
    z: np.ndarray,
    w: np.ndarray,
    rate: np.float32,
    decay: np.float32,
    pull: np.ndarray,
    touched: np.ndarray,
    seen: np.ndarray,
    n_touched: int,
) -> None:
    """z_i -= rate (pull_i w + decay z_i) with the old w; decay moves all of the client's rows."""
    if rate >= 0 and decay > 0:
        shrink = np.float32(1.0) - rate * decay
        for i in range(len(z)):
            for j in range(len(w)):
                z[i, j] *= shrink
    for t in range(n_touched):
        i = touched[t]
        if rate >= 0:
            step = rate * pull[i]
            for j in range(len(w)):
                z[i, j] -= step * w[j]
        pull[i] = 0
        seen[i] = False


@numba.njit(cache=True, nogil=True)
def add_row_deltas(
    out: np.ndarray,
    base: np.ndarray,
    rows: np.ndarray,
    trained: np.ndarray,
    row_ptr: np.ndarray,
    decay: np.ndarray,
    weight: np.ndarray,
    scale: float,
    limit: float,
) -> int:
    """out[rows] += round(weight_c (trained - decay_c base) scale), as int64: exact in any order.

    out [M, d] int64; base [R, d] (what the client started from), trained [R, d]. Returns the sum over
    clients of the largest |grid number|, or -1 where a value is not finite, or it or that sum reaches `limit`.
    """
    peak = 0
    for c in range(len(row_ptr) - 1):
        largest = 0.0
        factor = weight[c] * scale
        for r in range(row_ptr[c], row_ptr[c + 1]):
            target = out[rows[r]]
            for j in range(trained.shape[1]):
                x = np.rint((np.float64(trained[r, j]) - decay[c] * np.float64(base[r, j])) * factor)
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
