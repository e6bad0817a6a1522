"""Multilayer scoring: y = sigmoid(w . h_L + b) with

    h_1 = ReLU(A p_u + B z_i + b_1),   h_l = ReLU(W_l h_l-1 + b_l)          ([A B] is the first layer on [p_u; z_i])

and, in the NeuMF form, y = sigmoid(w . [h_L ; p'_u * z'_i] + b), where p_u and z_i are the first d numbers of the user
vector and the item row, p'_u and z'_i the others. Matrix products go through BLAS, one client's batch at a time and on
one thread: they are small, and their last bits depend on how many threads share them.

All parameters but the item rows are one flat vector theta per client, user vector first; `layout` says where what is.
"""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float32
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from fedray.data.blocks import RoundSamples
from fedray.federated.kernels.linear import copy_rows, longest_batch
from fedray.federated.kernels.losses import FAST, KINDS, errors_toward
from fedray.federated.kernels.tower_scores import offsets, score_tower
from fedray.federated.local import LocalPlan, LocalResult, LocalStart, Soft
from fedray.federated.method import Kernel, Owned
from fedray.types import Arrays

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
STILL, USER, ALL = 0, 1, 2
"""What of theta moves in a phase: nothing, the user vector alone, or more."""


class Tower(NamedTuple):
    """Names of the parameters in the order of theta, and sizes: d and g split user vector and item row; widths are
    those of h_1 ... h_L."""

    table: str
    user: str
    layers: tuple[str, ...]
    d: int
    g: int
    widths: tuple[int, ...]

    def names(self) -> tuple[str, ...]:
        """Parameters in the order of theta."""
        return (self.user, *self.layers)


def layer_names(widths: Sequence[int]) -> tuple[str, ...]:
    """A, B, b_1; W_l, b_l for the layers after; the output's w and b."""
    later = (f"mlp_{i + 1}_{part}" for i in range(1, len(widths)) for part in ("weight", "bias"))
    return ("mlp_1_user_weight", "mlp_1_item_weight", "mlp_1_bias", *later, "output_weight", "output_bias")


def layer_shapes(d: int, g: int, widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shape of each of `layer_names`."""
    first: list[tuple[int, ...]] = [(widths[0], d), (widths[0], d), (widths[0],)]
    later = [s for i, o in zip(widths, widths[1:]) for s in ((o, i), (o,))]
    return dict(zip(layer_names(widths), [*first, *later, (widths[-1] + g,), (1,)], strict=True))


def tower_kernel(tower: Tower) -> Kernel:
    """The kernel; parameters may be shared or private, in any mix."""
    widths = np.array(tower.widths, np.int64)

    def train(plan: LocalPlan, start: LocalStart, samples: RoundSamples) -> LocalResult:
        given = {**start.dense, **start.private}
        theta = flat_parameters([given[k] for k in tower.names()])
        rate, decay = each_rate(plan, start, tower.names())
        row_rate = plan.rates((tower.table,))[:, 0]
        rows = np.empty((len(start.index[tower.table]), tower.d + tower.g), np.float32)
        pull = plan.pull.get(tower.table, 0.0)
        target, soft = start.target.get(tower.table, rows[:0]), start.labels(len(theta))
        with one_thread():
            loss = train_tower(
                start.tables[tower.table], start.index[tower.table], rows, theta, samples.row_ptr, samples.sample_ptr,
                samples.item, samples.label, samples.order, plan.batch_size, rate, row_rate, decay,
                np.float32(plan.step_decay), np.float32(plan.decay), np.float32(pull), target, KINDS[plan.loss],
                tower.d, widths, soft,
            )  # fmt: skip
        after = shaped_parameters(theta, tower.names(), given)
        dense, private = ({k: after[k] for k in part if k in after} for part in (start.dense, start.private))
        return LocalResult({tower.table: rows}, dense, private, {}, loss, ratio=soft.ratio)

    def score(shared: Arrays, owned: Owned) -> Float32[np.ndarray, "K M"]:
        n = len(owned.position)
        given = {k: np.broadcast_to(shared[k], (n, *shared[k].shape)) for k in tower.layers if k in shared}
        theta = flat_parameters([{**given, **owned.private}[k] for k in tower.names()])
        table = owned.whole.get(tower.table, shared[tower.table][None])
        factor = owned.scale.get(tower.table, np.ones(n)).astype(np.float32)
        t = owned.tuned
        tuned = (np.zeros(0, np.int64), np.zeros(0, np.int32), table[0, :0])
        if t is not None:
            tuned = (t.ptr, t.rows, t.values[tower.table])
        first = np.zeros((0, 0), np.float32)
        table = np.ascontiguousarray(table)
        with one_thread():
            if tower.layers[1] in shared and len(table) == 1:
                first = shared[tower.layers[1]] @ np.ascontiguousarray(table[0, :, : tower.d]).T
            return score_tower(table, first, theta, factor, owned.position, *tuned, tower.d, widths)

    return Kernel(train, score)


def one_thread() -> AbstractContextManager[object]:
    """BLAS on one thread while it lasts."""
    limited: AbstractContextManager[object] = _blas().limit(limits=1, user_api="blas")
    return limited


@cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries of this process; compiled functions call scipy's, which must be loaded to be found."""
    importlib.import_module("scipy.linalg.cython_blas")
    return ThreadpoolController()


def flat_parameters(parts: Sequence[np.ndarray], n: int = 0) -> Float32[np.ndarray, "C P"]:
    """One vector a client; of n clients where there are no parts."""
    empty = np.zeros((len(parts[0]) if parts else n, 0), np.float32)
    return np.concatenate([empty, *(p.reshape(len(p), -1) for p in parts)], axis=1)


def shaped_parameters(
    theta: Float32[np.ndarray, "C P"], names: Sequence[str], like: Mapping[str, np.ndarray]
) -> Arrays:
    """The parameters of `flat_parameters` by name, in the shapes of `like`."""
    if not names:
        return {}
    sizes = [like[k][0].size for k in names]
    parts = np.split(theta, np.cumsum(sizes)[:-1], axis=1)
    return {k: p.reshape(like[k].shape).copy() for k, p in zip(names, parts, strict=True)}


def each_rate(plan: LocalPlan, start: LocalStart, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of the parameters `names`, flat: learning rate per phase and number [phases, P] (0 where the phase leaves it
    alone), and decay [P]."""
    given = {**start.dense, **start.private}
    sizes = [given[k][0].size for k in names]
    rates = np.maximum(plan.rates(names), 0.0)
    decays = [plan.private_decay if k in start.private else plan.decay for k in names]
    return np.repeat(rates, sizes, axis=1), np.repeat(np.array(decays, np.float32), sizes)


@numba.njit(cache=True, fastmath=FAST)
def _relu(x: np.ndarray, bias: np.ndarray) -> None:
    """x = max(x + bias, 0), in place, row by row."""
    for k in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[k, j] = max(x[k, j] + bias[j], _ZERO)


@numba.njit(cache=True, fastmath=FAST)
def _masked(grad: np.ndarray, act: np.ndarray, total: np.ndarray) -> None:
    """grad = 0 where the unit was off, in place; total = its sum over the batch."""
    total[:] = 0
    for k in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            x = grad[k, j] if act[k, j] > 0 else _ZERO
            grad[k, j] = x
            total[j] += x


@numba.njit(cache=True, fastmath=FAST)
def _logits(act: np.ndarray, zg: np.ndarray, pg: np.ndarray, w: np.ndarray, b: np.float32, x: np.ndarray) -> None:
    """x = w . [h ; p' * z'] + b."""
    h = act.shape[1]
    for k in range(act.shape[0]):
        s = b
        for j in range(h):
            s += w[j] * act[k, j]
        for j in range(len(pg)):
            s += w[h + j] * pg[j] * zg[k, j]
        x[k] = s


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def train_tower(
    table: np.ndarray,
    index: np.ndarray,
    rows: np.ndarray,
    thetas: np.ndarray,
    row_ptr: np.ndarray,
    sample_ptr: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    order: np.ndarray,
    batch_size: int,
    rates: np.ndarray,
    row_rates: np.ndarray,
    decays: np.ndarray,
    step_decay: np.float32,
    row_decay: np.float32,
    pull: np.float32,
    target: np.ndarray,
    kind: int,
    d: int,
    widths: np.ndarray,
    soft: Soft,
) -> np.ndarray:
    """SGD in place on `thetas` [C, P]; writes the rows [R, d + g], which start as table[index] and, in each update of
    them, are all pulled to `target` [R, d + g]. rates [phases, P]; row_rates [phases], negative: not in this phase.
    Returns the mean loss per client [C]."""
    loss = np.zeros(len(thetas), np.float32)
    g, n_layers = rows.shape[1] - d, len(widths)
    longest, widest = longest_batch(sample_ptr, batch_size), max(d, widths.max())
    at, y = np.empty(longest, np.int64), np.empty(longest, np.float32)
    x, u, push = np.empty(longest, np.float32), np.empty(longest, np.float32), np.empty(longest, np.float32)
    power = np.empty(longest, np.int32)
    zd, zg = np.empty((longest, d), np.float32), np.empty((longest, g), np.float32)
    acts, grads = np.empty((n_layers, longest * widest), np.float32), np.empty((2, longest * widest), np.float32)
    theta_grad = np.empty(thetas.shape[1], np.float32)
    o = offsets(d, g, widths)
    moving = np.array([reach(rates[p], d + g) for p in range(len(rates))])
    for c in range(len(thetas)):
        z, theta = rows[row_ptr[c] : row_ptr[c + 1]], thetas[c]
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
                    for k in range(m):
                        row = z[at[k]]
                        for j in range(d):
                            zd[k, j] = row[j]
                        for j in range(g):
                            zg[k, j] = row[d + j]
                    forward(zd[:m], zg[:m], theta, o, d, widths, acts, x)
                    total += errors_toward(kind, x, y, u, power, m, p == 0, soft, c, at, row_ptr[c], push, 0.0)
                    dz = backward(zd[:m], zg[:m], theta, o, d, widths, acts, grads, x, theta_grad, moving[p],
                                  row_rates[p] >= 0)  # fmt: skip
                    if row_rates[p] >= 0:
                        rate = row_rates[p] * speed
                        if row_decay + pull > 0:
                            shrink(z, target[row_ptr[c] : row_ptr[c + 1]], rate, row_decay, pull)
                        _step_rows(z, at, dz, zg, rate, m, d)
                    step(theta, theta_grad, rates[p], decays, speed, 0, (0, d + g, len(theta))[moving[p]])
                speed *= step_decay
        if n > 0:
            loss[c] = total / (n * len(order))
    return loss


@numba.njit(cache=True, fastmath=FAST)
def step(
    theta: np.ndarray, grad: np.ndarray, rates: np.ndarray, decays: np.ndarray, speed: np.float32, lo: int, hi: int
) -> None:
    """theta -= rates speed (grad + decays theta), from lo to hi."""
    for j in range(lo, hi):
        theta[j] -= rates[j] * speed * (grad[j] + decays[j] * theta[j])


@numba.njit(cache=True)
def reach(rates: np.ndarray, user: int) -> int:
    """STILL, USER or ALL; user: length of the user vector."""
    if rates[user:].max() > 0:
        return ALL
    return USER if rates[:user].max() > 0 else STILL


@numba.njit(cache=True, fastmath=FAST)
def forward(
    zd: np.ndarray,
    zg: np.ndarray,
    theta: np.ndarray,
    o: np.ndarray,
    d: int,
    widths: np.ndarray,
    acts: np.ndarray,
    x: np.ndarray,
) -> None:
    """Activations of every layer into `acts`, logits into `x`, for the m rows of zd."""
    m = zd.shape[0]
    g, last = zg.shape[1], len(widths) - 1
    h = acts[0, : m * widths[0]].reshape(m, widths[0])
    np.dot(zd, theta[o[1] : o[2]].reshape(widths[0], d).T, h)
    _relu(h, np.dot(theta[o[0] : o[1]].reshape(widths[0], d), theta[:d]) + theta[o[2] : o[2] + widths[0]])
    for i in range(1, len(widths)):
        w = theta[o[2 * i + 1] : o[2 * i + 2]].reshape(widths[i], widths[i - 1])
        new = acts[i, : m * widths[i]].reshape(m, widths[i])
        np.dot(h, w.T, new)
        _relu(new, theta[o[2 * i + 2] : o[2 * i + 2] + widths[i]])
        h = new
    out = o[2 * last + 3]
    _logits(h, zg, theta[d : d + g], theta[out : out + widths[last] + g], theta[o[2 * last + 4]], x)


@numba.njit(cache=True, fastmath=FAST)
def backward(
    zd: np.ndarray,
    zg: np.ndarray,
    theta: np.ndarray,
    o: np.ndarray,
    d: int,
    widths: np.ndarray,
    acts: np.ndarray,
    grads: np.ndarray,
    error: np.ndarray,
    grad: np.ndarray,
    moving: int,
    rows: bool,
) -> np.ndarray:
    """Gradients from the errors of m logits: `grad` of what is `moving` of theta, that of z' in place of zg, and that
    of z, which is returned (if `rows` is; else there is nothing in it)."""
    m, g, last = zd.shape[0], zg.shape[1], len(widths) - 1
    out, top = o[2 * last + 3], widths[last]
    w = theta[out : out + top + g]
    h = acts[last, : m * top].reshape(m, top)
    now = grads[0, : m * top].reshape(m, top)
    grad[out : out + top + g + 1] = 0
    grad[: d + g] = 0
    for k in range(m):
        err = error[k]
        for j in range(top):
            now[k, j] = err * w[j]
            grad[out + j] += err * h[k, j]
        for j in range(g):
            value = zg[k, j]
            zg[k, j] = err * w[top + j] * theta[d + j]
            grad[out + top + j] += err * theta[d + j] * value
            grad[d + j] += err * w[top + j] * value
        grad[out + top + g] += err
    for i in range(last, 0, -1):
        _masked(now, acts[i, : m * widths[i]].reshape(m, widths[i]), grad[o[2 * i + 2] : o[2 * i + 2] + widths[i]])
        below = acts[i - 1, : m * widths[i - 1]].reshape(m, widths[i - 1])
        weight = theta[o[2 * i + 1] : o[2 * i + 2]].reshape(widths[i], widths[i - 1])
        if moving == ALL:
            np.dot(now.T, below, grad[o[2 * i + 1] : o[2 * i + 2]].reshape(widths[i], widths[i - 1]))
        under = grads[(last - i + 1) % 2, : m * widths[i - 1]].reshape(m, widths[i - 1])
        np.dot(now, weight, under)
        now = under
    _masked(now, acts[0, : m * widths[0]].reshape(m, widths[0]), grad[o[2] : o[2] + widths[0]])
    a = theta[o[0] : o[1]].reshape(widths[0], d)
    b = theta[o[1] : o[2]].reshape(widths[0], d)
    total = grad[o[2] : o[2] + widths[0]]
    if moving == ALL:
        np.dot(now.T, zd, grad[o[1] : o[2]].reshape(widths[0], d))
        for i in range(widths[0]):
            for j in range(d):
                grad[o[0] + i * d + j] = total[i] * theta[j]
    if moving != STILL:
        for i in range(widths[0]):
            for j in range(d):
                grad[j] += total[i] * a[i, j]
    dz = grads[(last + 1) % 2, : m * d].reshape(m, d)
    if rows:
        np.dot(now, b, dz)
    return dz


@numba.njit(cache=True, fastmath=FAST)
def shrink(z: np.ndarray, target: np.ndarray, rate: np.float32, decay: np.float32, pull: np.float32) -> None:
    """z = (1 - rate (decay + pull)) z + rate pull target."""
    keep, toward = _ONE - rate * (decay + pull), rate * pull
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] = keep * z[i, j] + (toward * target[i, j] if pull > 0 else _ZERO)


@numba.njit(cache=True, fastmath=FAST)
def _step_rows(
    z: np.ndarray, at: np.ndarray, dz: np.ndarray, dzg: np.ndarray, rate: np.float32, m: int, d: int
) -> None:
    for k in range(m):
        row = z[at[k]]
        for j in range(d):
            row[j] -= rate * dz[k, j]
        for j in range(z.shape[1] - d):
            row[d + j] -= rate * dzg[k, j]
