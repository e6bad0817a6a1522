"""FedRAP on rows that a router mixes of views: y = sigmoid(p . (P_i + f_i) + b), f_i = sum_j w_j F_j(i), and the two
terms of `additive` with f in place of E. They reach router and views through f.
"""

import numba
import numpy as np
from jaxtyping import Float32

from fedray.data.blocks import RoundSamples
from fedray.federated.kernels import routed, router
from fedray.federated.kernels.additive import terms_of
from fedray.federated.kernels.linear import longest_batch
from fedray.federated.kernels.losses import FAST, KINDS, dot, errors_toward
from fedray.federated.kernels.routed import Mixed
from fedray.federated.kernels.tower import flat_parameters, one_thread, shaped_parameters
from fedray.federated.local import LocalPlan, LocalResult, LocalStart, Soft
from fedray.federated.method import Kernel, Owned, Routing
from fedray.types import Arrays

_ONE, _TWO, _ZERO = np.float32(1.0), np.float32(2.0), np.float32(0.0)


def routed_additive_kernel(
    routing: Routing, personal: str, weight: str, bias: str, terms: tuple[str, str], squared: bool
) -> Kernel:
    """terms: the names of the coefficients independence and sparsity; squared: see `additive_kernel`."""

    def train(plan: LocalPlan, start: LocalStart, samples: RoundSamples) -> LocalResult:
        table, index, rows = routed.views_of(routing, start)
        own, w, b = start.rows(personal), start.private[weight].copy(), start.private[bias].copy()
        theta, soft = flat_parameters([start.private[k] for k in routing.parameters], len(b)), start.labels(len(b))
        names = (weight, bias, personal, routing.views[0], *routing.parameters[:1])
        with one_thread():
            loss = train_routed_additive(
                table, index, rows, bool(plan.fixed), own, w, b, theta, samples.row_ptr, samples.sample_ptr,
                samples.item, samples.label, samples.order, plan.batch_size, plan.rates(names),
                np.float32(plan.step_decay), np.float32(plan.private_decay), np.float32(plan.decay), KINDS[plan.loss],
                np.array([plan.coefficients[k] for k in terms], np.float32), squared, routing.width, routing.kind,
                soft,
            )  # fmt: skip
        private = {weight: w, bias: b, **shaped_parameters(theta, routing.parameters, start.private)}
        return LocalResult({**dict(zip(routing.views, rows)), personal: own}, {}, private, {}, loss, ratio=soft.ratio)

    def score(shared: Arrays, owned: Owned) -> Float32[np.ndarray, "K M"]:
        views, own = routed.mixed(routing, shared, owned), owned.personal[personal]
        scale = own.scale[owned.position].astype(np.float32)
        with one_thread():
            return score_routed_additive(
                views, own.ptr, own.rows, own.values, own.base, scale, owned.private[weight], owned.private[bias],
                routing.width, routing.kind,
            )  # fmt: skip

    return Kernel(train, score)


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def train_routed_additive(
    table: np.ndarray,
    index: np.ndarray,
    rows: np.ndarray,
    fixed: bool,
    own: np.ndarray,
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
    terms: np.ndarray,
    squared: bool,
    width: int,
    weights: int,
    soft: Soft,
) -> np.ndarray:
    """SGD in place on `own` [R, d] (the P rows), `weight` [C, d], `bias` [C] and `thetas` [C, P]; writes `rows`
    [J, R, d] as `train_routed` does. rates [phases, 4 or 5]: of head weight, bias, P, views and router; negative: not
    in this phase. Returns the mean loss per client [C], terms included."""
    n, d = len(table), table.shape[2]
    loss = np.zeros(len(weight), np.float32)
    longest = longest_batch(sample_ptr, batch_size)
    at, where, y = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.float32)
    e, u, power = np.empty(longest, np.float32), np.empty(longest, np.float32), np.empty(longest, np.int32)
    theta, grad = np.empty(thetas.shape[1], np.float32), np.empty(thetas.shape[1], np.float32)
    push = np.empty(longest, np.float32)
    head, p, apart = np.empty(d, np.float32), np.empty(d, np.float32), np.empty((longest, d), np.float32)
    whole, source = router.buffers(longest, d, n, width, True), table if fixed else rows
    for c in range(len(weight)):
        p[:], theta[:] = weight[c], thetas[c]
        first, end = row_ptr[c], row_ptr[c + 1]
        routed.start_rows(rows, table, index, first, end, fixed)
        lo, size = sample_ptr[c], sample_ptr[c + 1] - sample_ptr[c]
        total, speed = 0.0, _ONE
        for epoch in range(len(order)):
            for begin in range(0, size, batch_size):
                m = min(batch_size, size - begin)
                b, q = router.first(whole, m), apart[:m]
                routed.take_batch(item, label, order[epoch, lo + begin : lo + begin + m], lo, first, at, y)
                routed.places(index, at[:m], fixed, where)
                for phase in range(len(rates)):
                    rate = rates[phase]
                    moving = n > 1 and rate[4] >= 0
                    router.mix(source, where, theta, weights, b)
                    _logits(own, at, b.z, p, bias[c], q, e)
                    extra = 0.0
                    if phase == 0 and soft.ema >= 0 and soft.strength[c] > 0:
                        extra = _terms_of(b.z, q, terms, squared)
                    total += errors_toward(kind, e, y, u, power, m, phase == 0, soft, c, at, 0, push, extra)
                    shift = _head_gradient(b.z, q, e, head)
                    extra = _into_rows(b.z, q, p, e, terms, squared, b.dz)
                    total += extra if phase == 0 else 0.0
                    router.unmix(theta, weights, b, grad, moving, rate[3] >= 0)
                    if rate[3] >= 0:
                        if not fixed and decay > 0:
                            routed.shrink_rows(rows, first, end, _ONE - rate[3] * speed * decay)
                        router.step_views(rows, at, b, rate[3] * speed)
                    if rate[2] >= 0:
                        if decay > 0:
                            routed.shrink_rows(own.reshape(1, len(own), d), first, end, _ONE - rate[2] * speed * decay)
                        routed.step_rows(own, at[:m], q, rate[2] * speed)
                    if rate[0] >= 0:
                        for t in range(d):
                            p[t] -= rate[0] * speed * (head[t] + private_decay * p[t])
                    if rate[1] >= 0:
                        bias[c] -= rate[1] * speed * (shift + private_decay * bias[c])
                    if moving:
                        for t in range(len(theta)):
                            theta[t] -= rate[4] * speed * (grad[t] + private_decay * theta[t])
                speed *= step_decay
        weight[c], thetas[c] = p, theta
        if size > 0:
            loss[c] = total / (size * len(order))
    return loss


@numba.njit(cache=True, fastmath=FAST)
def _terms_of(z: np.ndarray, q: np.ndarray, terms: np.ndarray, squared: bool) -> float:
    """The terms' value times m."""
    total = 0.0
    for i in range(len(z)):
        total += terms_of(z[i], q[i], terms, squared)
    return total / z.shape[1]


@numba.njit(cache=True, fastmath=FAST)
def _logits(
    own: np.ndarray, at: np.ndarray, z: np.ndarray, p: np.ndarray, bias: np.float32, q: np.ndarray, e: np.ndarray
) -> None:
    """q = own[at], and the logits."""
    for i in range(len(z)):
        row, to, y = own[at[i]], q[i], _ZERO
        for t in range(len(p)):
            to[t] = row[t]
            y += (row[t] + z[i, t]) * p[t]
        e[i] = y + bias


@numba.njit(cache=True, fastmath=FAST)
def _head_gradient(z: np.ndarray, q: np.ndarray, e: np.ndarray, head: np.ndarray) -> np.float32:
    """head = sum_i e_i (z_i + q_i); the bias's gradient is returned."""
    total = _ZERO
    head[:] = _ZERO
    for i in range(len(z)):
        total += e[i]
        for t in range(len(head)):
            head[t] += e[i] * (z[i, t] + q[i, t])
    return total


@numba.njit(cache=True, fastmath=FAST)
def _into_rows(
    z: np.ndarray, q: np.ndarray, p: np.ndarray, e: np.ndarray, terms: np.ndarray, squared: bool, dz: np.ndarray
) -> float:
    """dz = the gradient of the mixtures, that of the personal rows in place of q; the terms' value times m."""
    m, d = z.shape
    each = _ONE / np.float32(m * d)
    push, press = _TWO * terms[0] * each, terms[1] * each
    apart, small = np.float64(0.0), np.float64(0.0)
    for i in range(m):
        gap, size, err = _ZERO, _ZERO, e[i]
        for t in range(d):
            f, diff = z[i, t], q[i, t] - z[i, t]
            gap += diff * diff
            size += f * f if squared else abs(f)
            slope = _TWO * f if squared else (_ONE if f > _ZERO else _ZERO) - (_ONE if f < _ZERO else _ZERO)
            dz[i, t] = err * p[t] + push * diff + press * slope
            q[i, t] = err * p[t] - push * diff
        apart += gap
        small += size
    return (terms[1] * small - terms[0] * apart) / d


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def score_routed_additive(
    views: Mixed,
    ptr: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    base: np.ndarray,
    scale: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    width: int,
    kind: int,
) -> np.ndarray:
    """Logits [K, M]. A client's personal rows: those it touched (ptr, rows, values over the store's clients), else
    scale [K] times base [M, d]."""
    n, m, d = views.table.shape
    out, theta = np.empty((len(weight), m), np.float32), np.empty(views.thetas.shape[1], np.float32)
    b, own = router.buffers(m, d, n, width, False), np.empty(m, np.float32)
    for k in range(len(weight)):
        c, p = views.position[k], weight[k]
        routed.mix_all(views, k, theta, kind, b)
        for i in range(m):
            own[i] = scale[k] * dot(base[i], p)
        for r in range(ptr[c], ptr[c + 1]):
            own[rows[r]] = dot(values[r], p)
        for i in range(m):
            out[k, i] = dot(b.z[i], p) + own[i] + bias[k]
    return out
