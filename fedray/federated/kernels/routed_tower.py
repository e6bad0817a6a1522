"""Multilayer scoring of rows that a router mixes of views, beside the backbone's own: as `tower`, with q_i + f_i in
place of z_i, where q_i is the row of the backbone's item table and f_i = sum_j w_j F_j(i).

theta is that of `tower`, then the router's parameters.
"""

import numba
import numpy as np
from jaxtyping import Float32

from fedray.data.blocks import RoundSamples
from fedray.federated.kernels import routed, router
from fedray.federated.kernels.linear import copy_rows, longest_batch
from fedray.federated.kernels.losses import FAST, KINDS, errors_toward
from fedray.federated.kernels.routed import Mixed, factor_of
from fedray.federated.kernels.tower import (
    Tower,
    backward,
    each_rate,
    flat_parameters,
    forward,
    one_thread,
    reach,
    shaped_parameters,
    shrink,
    step,
)
from fedray.federated.kernels.tower_scores import offsets, score_tower
from fedray.federated.local import LocalPlan, LocalResult, LocalStart, Soft
from fedray.federated.method import Kernel, Owned, Routing
from fedray.types import Arrays

_ONE = np.float32(1.0)


def routed_tower_kernel(tower: Tower, routing: Routing) -> Kernel:
    """The kernel; the tower's parameters may be shared or private, in any mix."""
    widths = np.array(tower.widths, np.int64)
    names = (*tower.names(), *routing.parameters)

    def train(plan: LocalPlan, start: LocalStart, samples: RoundSamples) -> LocalResult:
        table, index, rows = routed.views_of(routing, start)
        given = {**start.dense, **start.private}
        theta = flat_parameters([given[k] for k in names])
        rate, decay = each_rate(plan, start, names)
        own = np.empty((len(index), tower.d + tower.g), np.float32)
        target, soft = start.target.get(tower.table, own[:0]), start.labels(len(theta))
        with one_thread():
            loss = train_routed_tower(
                table, index, rows, bool(plan.fixed), start.tables[tower.table], own, theta, samples.row_ptr,
                samples.sample_ptr, samples.item, samples.label, samples.order, plan.batch_size, rate,
                plan.rates((tower.table, routing.views[0])), decay, np.float32(plan.step_decay),
                np.float32(plan.decay), np.float32(plan.pull.get(tower.table, 0.0)), target, KINDS[plan.loss],
                tower.d, widths, routing.width, routing.kind, soft,
            )  # fmt: skip
        after = shaped_parameters(theta, names, given)
        dense, private = ({k: after[k] for k in part if k in after} for part in (start.dense, start.private))
        tables = {tower.table: own, **dict(zip(routing.views, rows))}
        return LocalResult(tables, dense, private, {}, loss, ratio=soft.ratio)

    def score(shared: Arrays, owned: Owned) -> Float32[np.ndarray, "K M"]:
        n, views = len(owned.position), routed.mixed(routing, shared, owned)
        given = {k: np.broadcast_to(shared[k], (n, *shared[k].shape)) for k in tower.layers if k in shared}
        theta = flat_parameters([{**given, **owned.private}[k] for k in tower.names()])
        table = np.ascontiguousarray(owned.whole.get(tower.table, shared[tower.table][None]))
        tuned = table[0, :0] if owned.tuned is None else owned.tuned.values[tower.table]
        factor = factor_of(owned, tower.table)
        with one_thread():
            return score_routed_tower(views, table, factor, tuned, theta, tower.d, widths, routing.width, routing.kind)

    return Kernel(train, score)


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def train_routed_tower(
    table: np.ndarray,
    index: np.ndarray,
    rows: np.ndarray,
    fixed: bool,
    base: np.ndarray,
    own: np.ndarray,
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
    width: int,
    weights: int,
    soft: Soft,
) -> np.ndarray:
    """SGD in place on `thetas` [C, P]; writes `rows` [J, R, d + g] as `train_routed` does, and `own` [R, d + g], which
    start as base[index] and move as in `train_tower`. rates [phases, P]; row_rates [phases, 2]: of `own` and of the
    views, negative: not in this phase. Returns the mean loss per client [C]."""
    n, g = len(table), own.shape[1] - d
    loss = np.zeros(len(thetas), np.float32)
    longest, widest = longest_batch(sample_ptr, batch_size), max(d, widths.max())
    at, where, y = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.float32)
    x, u, power = np.empty(longest, np.float32), np.empty(longest, np.float32), np.empty(longest, np.int32)
    push = np.empty(longest, np.float32)
    zd, zg = np.empty((longest, d), np.float32), np.empty((longest, g), np.float32)
    acts, grads = np.empty((len(widths), longest * widest), np.float32), np.empty((2, longest * widest), np.float32)
    theta, grad = np.empty(thetas.shape[1], np.float32), np.empty(thetas.shape[1], np.float32)
    o = offsets(d, g, widths)
    split = o[-1] + 1
    part, whole = moving(rates, d + g, split), router.buffers(longest, d + g, n, width, True)
    source = table if fixed else rows
    for c in range(len(thetas)):
        theta[:] = thetas[c]
        first, end = row_ptr[c], row_ptr[c + 1]
        routed.start_rows(rows, table, index, first, end, fixed)
        copy_rows(own[first:end], base, index[first:end])
        lo, size = sample_ptr[c], sample_ptr[c + 1] - sample_ptr[c]
        total, speed = 0.0, _ONE
        for e in range(len(order)):
            for begin in range(0, size, batch_size):
                m = min(batch_size, size - begin)
                b = router.first(whole, m)
                routed.take_batch(item, label, order[e, lo + begin : lo + begin + m], lo, first, at, y)
                routed.places(index, at[:m], fixed, where)
                for p in range(len(rates)):
                    router.mix(source, where, theta[split:], weights, b)
                    _together(own, at, b.z, zd[:m], zg[:m])
                    forward(zd[:m], zg[:m], theta, o, d, widths, acts, x)
                    total += errors_toward(kind, x, y, u, power, m, p == 0, soft, c, at, 0, push, 0.0)
                    dz = backward(zd[:m], zg[:m], theta, o, d, widths, acts, grads, x, grad, part[p, 0],
                                  part[p, 1] > 0 or row_rates[p].max() >= 0)  # fmt: skip
                    b.dz[:, :d], b.dz[:, d:] = dz, zg[:m]
                    router.unmix(theta[split:], weights, b, grad[split:], part[p, 1] > 0, row_rates[p, 1] >= 0)
                    if row_rates[p, 0] >= 0:
                        rate = row_rates[p, 0] * speed
                        if row_decay + pull > 0:
                            shrink(own[first:end], target[first:end], rate, row_decay, pull)
                        routed.step_rows(own, at[:m], b.dz, rate)
                    if row_rates[p, 1] >= 0:
                        rate = row_rates[p, 1] * speed
                        if not fixed and row_decay > 0:
                            routed.shrink_rows(rows, first, end, _ONE - rate * row_decay)
                        router.step_views(rows, at, b, rate)
                    step(theta, grad, rates[p], decays, speed, 0, (0, d + g, split)[part[p, 0]])
                    step(theta, grad, rates[p], decays, speed, split, len(theta) if part[p, 1] else split)
                speed *= step_decay
        thetas[c] = theta
        if size > 0:
            loss[c] = total / (size * len(order))
    return loss


@numba.njit(cache=True)
def moving(rates: np.ndarray, user: int, split: int) -> np.ndarray:
    """How far the tower moves (`reach`), and whether the router does, in each phase [phases, 2]."""
    out = np.zeros((len(rates), 2), np.int64)
    for p in range(len(rates)):
        out[p, 0] = reach(rates[p, :split], user)
        for j in range(split, rates.shape[1]):
            if rates[p, j] > 0:
                out[p, 1] = 1
    return out


@numba.njit(cache=True, fastmath=FAST)
def _together(own: np.ndarray, at: np.ndarray, z: np.ndarray, zd: np.ndarray, zg: np.ndarray) -> None:
    """Both parts of the rows own[at] + z."""
    d = zd.shape[1]
    for k in range(len(z)):
        row, mixture, low, high = own[at[k]], z[k], zd[k], zg[k]
        for j in range(d):
            low[j] = row[j] + mixture[j]
        for j in range(len(high)):
            high[j] = row[d + j] + mixture[d + j]


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def score_routed_tower(
    views: Mixed,
    table: np.ndarray,
    factor: np.ndarray,
    tuned: np.ndarray,
    thetas: np.ndarray,
    d: int,
    widths: np.ndarray,
    width: int,
    kind: int,
) -> np.ndarray:
    """Scores [K, M]. table [1 or K, M, d + g]: the backbone's own rows, one table for all, or one each; untouched ones
    count times factor_k, tuned ones [R, d + g] (the rows of `views`) as they are."""
    n, m, wide = views.table.shape
    out, route = np.empty((len(thetas), m), np.float32), np.empty(views.thetas.shape[1], np.float32)
    b, rows = router.buffers(m, wide, n, width, False), np.empty((1, m, wide), np.float32)
    none, here, theta = np.zeros(0, np.int64), np.zeros(1, np.int64), np.empty((1, thetas.shape[1]), np.float32)
    product, one = np.zeros((0, 0), np.float32), np.ones(1, np.float32)
    for k in range(len(thetas)):
        c, own = views.position[k], table[k if len(table) > 1 else 0]
        theta[0] = thetas[k]
        routed.mix_all(views, k, route, kind, b)
        for i in range(m):
            for j in range(wide):
                rows[0, i, j] = factor[k] * own[i, j]
        if len(views.ptr):
            for r in range(views.ptr[c], views.ptr[c + 1]):
                rows[0, views.rows[r]] = tuned[r]
        for i in range(m):
            for j in range(wide):
                rows[0, i, j] += b.z[i, j]
        out[k] = score_tower(rows, product, theta, one, here, none, views.rows[:0], tuned[:0], d, widths)[0]
    return out
