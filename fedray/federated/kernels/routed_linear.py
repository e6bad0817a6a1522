"""A linear head on rows that a router mixes of views: y = sigmoid(p . (sum_j w_j F_j(i)) + b).

The views of an item lie side by side in one row. They stay as they came down for a round and the steps they would make
are summed, or, where a client tunes its own copies, move.
"""

import numba
import numpy as np
from jaxtyping import Float32

from fedray.data.blocks import RoundSamples
from fedray.federated.kernels import router
from fedray.federated.kernels.linear import copy_rows, longest_batch
from fedray.federated.kernels.losses import FAST, KINDS, dot, errors_of
from fedray.federated.kernels.tower import flat_parameters, one_thread, shaped_parameters
from fedray.federated.local import LocalPlan, LocalResult, LocalStart
from fedray.federated.method import Kernel, Owned
from fedray.types import Arrays

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


def routed_linear_kernel(
    views: tuple[str, ...], weight: str, bias: str, parameters: tuple[str, ...], width: int, kind: int
) -> Kernel:
    """The kernel for a head weight [d] and bias [] on `views`; parameters: the router's (none for a single view), its
    hidden layer `width` wide."""
    n = len(views)

    def train(plan: LocalPlan, start: LocalStart, samples: RoundSamples) -> LocalResult:
        table = np.concatenate([start.tables[v] for v in views], axis=1)
        w, b = start.private[weight].copy(), start.private[bias].copy()
        theta = flat_parameters([start.private[k] for k in parameters], len(b))
        rows = np.empty((len(start.index[views[0]]), table.shape[1]), np.float32)
        names = (weight, bias, views[0], *parameters[:1])
        with one_thread():
            loss = train_routed(
                table, start.index[views[0]], rows, bool(plan.fixed), w, b, theta, samples.row_ptr, samples.sample_ptr,
                samples.item, samples.label, samples.order, plan.batch_size, plan.rates(names),
                np.float32(plan.step_decay), np.float32(plan.private_decay), np.float32(plan.decay), KINDS[plan.loss],
                width, n, kind,
            )  # fmt: skip
        parts = np.split(rows, n, axis=1)
        own = shaped_parameters(theta, parameters, start.private)
        return LocalResult(dict(zip(views, parts)), {}, {weight: w, bias: b, **own}, {}, loss)

    def score(shared: Arrays, owned: Owned) -> Float32[np.ndarray, "K M"]:
        table = np.concatenate([shared[v] for v in views], axis=1)
        theta = flat_parameters([owned.private[k] for k in parameters], len(owned.position))
        factor = owned.scale.get(views[0], np.ones(len(theta))).astype(np.float32)
        ptr, rows, values = np.zeros(0, np.int64), np.zeros(0, np.int32), table[:0]
        if owned.tuned is not None:
            ptr, rows = owned.tuned.ptr, owned.tuned.rows
            values = np.concatenate([owned.tuned.values[v] for v in views], axis=1)
        with one_thread():
            return score_routed(
                table, theta, owned.private[weight], owned.private[bias], factor, owned.position, ptr, rows, values,
                width, n, kind,
            )  # fmt: skip

    return Kernel(train, score)


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def train_routed(
    table: np.ndarray,
    index: np.ndarray,
    rows: np.ndarray,
    fixed: bool,
    weight: np.ndarray,
    bias: np.ndarray,
    thetas: np.ndarray,
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
    width: int,
    n: int,
    weights: int,
) -> np.ndarray:
    """SGD in place on `weight` [C, d], `bias` [C] and `thetas` [C, P]; writes the rows [R, n d]: where the views are
    `fixed` their summed steps, else as they are at the end. rates [phases, 3 or 4]: of head weight, bias, views and
    router; negative: not in this phase. Returns the mean loss per client [C]."""
    loss = np.zeros(len(weight), np.float32)
    longest, k, d = longest_batch(sample_ptr, batch_size), rows.shape[1], weight.shape[1]
    at, y = np.empty(longest, np.int64), np.empty(longest, np.float32)
    e, u, power = np.empty(longest, np.float32), np.empty(longest, np.float32), np.empty(longest, np.int32)
    xs, ds, us = (
        np.empty((longest, k), np.float32),
        np.empty((longest, k), np.float32),
        np.empty((longest, k), np.float32),
    )
    hs, ss = np.empty((longest, width), np.float32), np.empty((longest, n), np.float32)
    ws, qs = np.empty((longest, n), np.float32), np.empty((longest, n), np.float32)
    grad, head = np.zeros(thetas.shape[1], np.float32), np.empty(d, np.float32)
    most = np.diff(row_ptr).max() if len(row_ptr) > 1 else 0
    held = np.empty((most, k), np.float32)
    for c in range(len(weight)):
        out, p, theta = rows[row_ptr[c] : row_ptr[c + 1]], weight[c], thetas[c]
        z = held[: len(out)]
        copy_rows(z, table, index[row_ptr[c] : row_ptr[c + 1]])
        if fixed:
            out[:] = 0
        lo, size = sample_ptr[c], sample_ptr[c + 1] - sample_ptr[c]
        total, speed = 0.0, _ONE
        for epoch in range(len(order)):
            for begin in range(0, size, batch_size):
                m = min(batch_size, size - begin)
                x, dx, under = xs[:m], ds[:m], us[:m]
                hidden, s, w, q = hs[:m], ss[:m], ws[:m], qs[:m]
                for i in range(m):
                    sample = lo + order[epoch, lo + begin + i]
                    at[i], y[i] = item[sample], label[sample]
                for phase in range(len(rates)):
                    rate = rates[phase]
                    routed = n > 1 and rate[3] >= 0
                    _gather(z, at, m, x)
                    router.route(x, theta, width, n, weights, hidden, s, w)
                    _logits(x, w, p, bias[c], q, e)
                    total += errors_of(kind, e, y, u, power, m, phase == 0)
                    shift = _head_gradient(x, w, e, head)
                    for i in range(m):
                        for j in range(n):
                            back = e[i] * w[i, j]
                            for t in range(d):
                                dx[i, j * d + t] = back * p[t]
                    for i in range(m):
                        for j in range(n):
                            q[i, j] *= e[i]
                    router.unroute(x, theta, width, n, weights, hidden, s, w, q, dx, under, grad, routed)
                    if rate[2] >= 0:
                        step = rate[2] * speed
                        if not fixed and decay > 0:
                            z *= _ONE - step * decay
                        _scatter(out if fixed else z, at, dx, step)
                    if rate[0] >= 0:
                        for t in range(d):
                            p[t] -= rate[0] * speed * (head[t] + private_decay * p[t])
                    if rate[1] >= 0:
                        bias[c] -= rate[1] * speed * (shift + private_decay * bias[c])
                    if routed:
                        for t in range(len(theta)):
                            theta[t] -= rate[3] * speed * (grad[t] + private_decay * theta[t])
                speed *= step_decay
        if not fixed:
            out[:] = z
        if size > 0:
            loss[c] = total / (size * len(order))
    return loss


@numba.njit(cache=True, inline="always")
def _gather(z: np.ndarray, at: np.ndarray, m: int, x: np.ndarray) -> None:
    for i in range(m):
        row = z[at[i]]
        for t in range(x.shape[1]):
            x[i, t] = row[t]


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _scatter(z: np.ndarray, at: np.ndarray, dx: np.ndarray, step: np.float32) -> None:
    for i in range(len(dx)):
        row = z[at[i]]
        for t in range(dx.shape[1]):
            row[t] -= step * dx[i, t]


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _logits(x: np.ndarray, w: np.ndarray, p: np.ndarray, bias: np.float32, q: np.ndarray, e: np.ndarray) -> None:
    """q[i, j] = p . F_j(i), and the logits sum_j w_j q_j + b."""
    d = len(p)
    for i in range(len(x)):
        y = bias
        for j in range(w.shape[1]):
            q[i, j] = dot(x[i, j * d : (j + 1) * d], p)
            y += w[i, j] * q[i, j]
        e[i] = y


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _head_gradient(x: np.ndarray, w: np.ndarray, e: np.ndarray, head: np.ndarray) -> np.float32:
    """head = sum_i e_i z_i; the bias's gradient is returned."""
    d, total = len(head), _ZERO
    head[:] = 0
    for i in range(len(x)):
        total += e[i]
        for j in range(w.shape[1]):
            share = e[i] * w[i, j]
            for t in range(d):
                head[t] += share * x[i, j * d + t]
    return total


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def score_routed(
    table: np.ndarray,
    thetas: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    factor: np.ndarray,
    clients: np.ndarray,
    ptr: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    width: int,
    n: int,
    weights: int,
) -> np.ndarray:
    """Logits [K, M] of clients at positions `clients`; their tuned rows (if ptr has any), and factor [K] times the
    table for the others."""
    k = table.shape[1]
    out, x = np.empty((len(weight), len(table)), np.float32), np.empty_like(table)
    hidden = np.empty((len(table), width), np.float32)
    s, w, q = (
        np.empty((len(table), n), np.float32),
        np.empty((len(table), n), np.float32),
        np.empty((len(table), n), np.float32),
    )
    for c in range(len(weight)):
        for i in range(len(table)):
            for t in range(k):
                x[i, t] = table[i, t] * factor[c]
        if len(ptr):
            for r in range(ptr[clients[c]], ptr[clients[c] + 1]):
                x[rows[r]] = values[r]
        router.route(x, thetas[c], width, n, weights, hidden, s, w)
        _logits(x, w, weight[c], bias[c], q, out[c])
    return out
