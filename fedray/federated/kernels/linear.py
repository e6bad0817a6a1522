"""Linear heads: y = sigmoid(w . z_i + b), or with an item bias, y = sigmoid(w . z_i[:d] + z_i[d] + b).

It computes what the vmapped loss with SGD computes: no padding, a client's rows stay in cache, and each pass over a
batch is a loop that the compiler can put in vector registers.
"""

import numba
import numpy as np
import torch
from jaxtyping import Float32

from fedray.data.blocks import RoundSamples
from fedray.federated.kernels.losses import FAST, KINDS, dot, errors_toward
from fedray.federated.local import LocalPlan, LocalResult, LocalStart, Soft
from fedray.federated.method import Kernel, Owned
from fedray.types import Arrays

WIDTH = 64
"""At most so many clients are scored at once."""
_ONE = np.float32(1.0)


def linear_kernel(table: str, weight: str, bias: str) -> Kernel:
    """The kernel for a head weight [d] and bias [] on the rows [d] or [d + 1] of `table`."""

    def train(plan: LocalPlan, start: LocalStart, samples: RoundSamples) -> LocalResult:
        base, w, b = start.tables[table], start.private[weight].copy(), start.private[bias].copy()
        rows, soft = np.empty((len(start.index[table]), base.shape[1]), np.float32), start.labels(len(b))
        loss = train_linear(
            base, start.index[table], rows, w, b, samples.row_ptr, samples.sample_ptr, samples.item, samples.label,
            samples.order, plan.batch_size, plan.rates((weight, bias, table)), np.float32(plan.step_decay),
            np.float32(plan.private_decay), np.float32(plan.decay), KINDS[plan.loss], soft,
        )  # fmt: skip
        return LocalResult({table: rows}, {}, {weight: w, bias: b}, {}, loss, ratio=soft.ratio)

    def score(shared: Arrays, owned: Owned) -> Float32[np.ndarray, "C M"]:
        """One product for the common table, then the rows of the clients' own."""
        e, w = shared[table], with_one(owned.private[weight], shared[table].shape[1])
        out = product(w, e)
        if owned.scale.get(table) is not None:
            out *= owned.scale[table][:, None].astype(np.float32)
        out += owned.private[bias][:, None]
        if owned.tuned is not None:
            t = owned.tuned
            overlay_linear(out, owned.position, t.ptr, t.rows, t.values[table], w, owned.private[bias])
        return out

    return Kernel(train, score)


def product(weight: Float32[np.ndarray, "K d"], table: Float32[np.ndarray, "M d"]) -> Float32[np.ndarray, "K M"]:
    """w E^T, padded to one fixed shape: how many clients are scored together then cannot matter."""
    padded = np.zeros((WIDTH, weight.shape[1]), np.float32)
    padded[: len(weight)] = weight
    return (torch.from_numpy(padded) @ torch.from_numpy(table).T).numpy()[: len(weight)]


def with_one(weight: Float32[np.ndarray, "C d"], width: int) -> Float32[np.ndarray, "C width"]:
    """[w, 1] where the rows carry an item bias as their last column."""
    extra = width - weight.shape[1]
    return weight if extra == 0 else np.concatenate([weight, np.ones((len(weight), extra), np.float32)], axis=1)


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
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
    step_decay: np.float32,
    private_decay: np.float32,
    decay: np.float32,
    kind: int,
    soft: Soft,
) -> np.ndarray:
    """SGD in place on `weight` [C, d] and `bias` [C]; writes the rows [R, d or d + 1].

    A client's rows start as table[index]. rates [phases, 3]: learning rates of weight, bias, rows; negative: not in
    this phase. Returns the mean loss per client [C], each sample's before the step it is in.
    """
    loss = np.zeros(len(weight), np.float32)
    longest = longest_batch(sample_ptr, batch_size)
    at, y = np.empty(longest, np.int64), np.empty(longest, np.float32)
    x, u, push = np.empty(longest, np.float32), np.empty(longest, np.float32), np.empty(longest, np.float32)
    power, grad = np.empty(longest, np.int32), np.empty(weight.shape[1], np.float32)
    w = np.ones(rows.shape[1], np.float32)
    for c in range(len(weight)):
        z = rows[row_ptr[c] : row_ptr[c + 1]]
        w[: len(grad)] = weight[c]
        copy_rows(z, table, index[row_ptr[c] : row_ptr[c + 1]])
        lo, n = sample_ptr[c], sample_ptr[c + 1] - sample_ptr[c]
        total, speed = 0.0, _ONE
        for e in range(len(order)):
            for first in range(0, n, batch_size):
                m = min(batch_size, n - first)
                for k in range(m):
                    s = lo + order[e, lo + first + k]
                    at[k], y[k] = item[s], label[s]
                for p in range(len(rates)):
                    b = bias[c]
                    for k in range(m):
                        x[k] = dot(z[at[k]], w) + b
                    total += errors_toward(kind, x, y, u, power, m, p == 0, soft, c, at, row_ptr[c], push, 0.0)
                    _step(z, w, bias, c, at, x, m, rates[p], speed, private_decay, decay, grad)
                speed *= step_decay
        weight[c] = w[: len(grad)]
        if n > 0:
            loss[c] = total / (n * len(order))
    return loss


@numba.njit(cache=True)
def longest_batch(sample_ptr: np.ndarray, batch_size: int) -> int:
    """Samples in the longest batch of any client."""
    longest = 0
    for c in range(len(sample_ptr) - 1):
        longest = max(longest, min(batch_size, sample_ptr[c + 1] - sample_ptr[c]))
    return longest


@numba.njit(cache=True, inline="always")
def copy_rows(z: np.ndarray, table: np.ndarray, index: np.ndarray) -> None:
    """z = table[index]."""
    for r in range(len(z)):
        source = table[index[r]]
        for j in range(len(source)):
            z[r, j] = source[j]


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _step(
    z: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    c: int,
    at: np.ndarray,
    error: np.ndarray,
    m: int,
    rate: np.ndarray,
    speed: np.float32,
    private_decay: np.float32,
    decay: np.float32,
    grad: np.ndarray,
) -> None:
    """One phase's update from the errors of m samples; all gradients are at the values before it."""
    total = np.float32(0.0)
    grad[:] = 0
    for k in range(m if rate[0] >= 0 else 0):
        row, e = z[at[k]], error[k]
        for j in range(len(grad)):
            grad[j] += e * row[j]
    for k in range(m):
        total += error[k]
    if rate[2] >= 0:
        _step_rows(z, w, at, error, m, rate[2] * speed, decay)
    if rate[0] >= 0:
        for j in range(len(grad)):
            w[j] -= rate[0] * speed * (grad[j] + private_decay * w[j])
    if rate[1] >= 0:
        bias[c] -= rate[1] * speed * (total + private_decay * bias[c])


@numba.njit(cache=True, fastmath=FAST, inline="always")
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


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def overlay_linear(
    out: np.ndarray,
    clients: np.ndarray,
    ptr: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
) -> None:
    """out[k, rows] = values . w + b for the tuned rows of client `clients[k]`; out [K, M], weight and bias [K, ...]."""
    for k in range(len(clients)):
        c = clients[k]
        for r in range(ptr[c], ptr[c + 1]):
            out[k, rows[r]] = dot(values[r], weight[k]) + bias[k]
