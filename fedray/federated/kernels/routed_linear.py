"""A linear head on rows that a router mixes of views: y = sigmoid(p . (sum_j w_j F_j(i)) + b)."""

import numba
import numpy as np
from jaxtyping import Float32

from fedray.data.blocks import RoundSamples
from fedray.federated.kernels import routed, router
from fedray.federated.kernels.linear import longest_batch
from fedray.federated.kernels.losses import FAST, KINDS, dot, errors_toward
from fedray.federated.kernels.routed import Mixed
from fedray.federated.kernels.tower import flat_parameters, one_thread, shaped_parameters
from fedray.federated.local import LocalPlan, LocalResult, LocalStart, Soft
from fedray.federated.method import Kernel, Owned, Routing
from fedray.types import Arrays

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


def routed_linear_kernel(routing: Routing, weight: str, bias: str) -> Kernel:
    """The kernel for a head weight [d] and bias [] on the mixtures."""

    def train(plan: LocalPlan, start: LocalStart, samples: RoundSamples) -> LocalResult:
        table, index, rows = routed.views_of(routing, start)
        w, b = start.private[weight].copy(), start.private[bias].copy()
        theta, soft = flat_parameters([start.private[k] for k in routing.parameters], len(b)), start.labels(len(b))
        names = (weight, bias, routing.views[0], *routing.parameters[:1])
        with one_thread():
            loss = train_routed(
                table, index, rows, bool(plan.fixed), w, b, theta, samples.row_ptr, samples.sample_ptr, samples.item,
                samples.label, samples.order, plan.batch_size, plan.rates(names), np.float32(plan.step_decay),
                np.float32(plan.private_decay), np.float32(plan.decay), KINDS[plan.loss], routing.width, routing.kind,
                soft,
            )  # fmt: skip
        own = shaped_parameters(theta, routing.parameters, start.private)
        return LocalResult(dict(zip(routing.views, rows)), {}, {weight: w, bias: b, **own}, {}, loss, ratio=soft.ratio)

    def score(shared: Arrays, owned: Owned) -> Float32[np.ndarray, "K M"]:
        views = routed.mixed(routing, shared, owned)
        with one_thread():
            return score_routed(views, owned.private[weight], owned.private[bias], routing.width, routing.kind)

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
    weights: int,
    soft: Soft,
) -> np.ndarray:
    """SGD in place on `weight` [C, d], `bias` [C] and `thetas` [C, P]; writes the rows [J, R, d]: where the views are
    `fixed` their summed steps, else as they are at the end. rates [phases, 3 or 4]: of head weight, bias, views and
    router; negative: not in this phase. Returns the mean loss per client [C]."""
    n, d = len(table), table.shape[2]
    loss = np.zeros(len(weight), np.float32)
    longest = longest_batch(sample_ptr, batch_size)
    at, where, y = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.float32)
    e, u, power = np.empty(longest, np.float32), np.empty(longest, np.float32), np.empty(longest, np.int32)
    theta, grad = np.empty(thetas.shape[1], np.float32), np.empty(thetas.shape[1], np.float32)
    push = np.empty(longest, np.float32)
    head, p = np.empty(d, np.float32), np.empty(d, np.float32)
    whole, source = router.buffers(longest, d, n, width, True), table if fixed else rows
    for c in range(len(weight)):
        p[:], theta[:] = weight[c], thetas[c]
        routed.start_rows(rows, table, index, row_ptr[c], row_ptr[c + 1], fixed)
        lo, size = sample_ptr[c], sample_ptr[c + 1] - sample_ptr[c]
        total, speed = 0.0, _ONE
        for epoch in range(len(order)):
            for begin in range(0, size, batch_size):
                m = min(batch_size, size - begin)
                b = router.first(whole, m)
                routed.take_batch(item, label, order[epoch, lo + begin : lo + begin + m], lo, row_ptr[c], at, y)
                routed.places(index, at[:m], fixed, where)
                for phase in range(len(rates)):
                    rate = rates[phase]
                    moving = n > 1 and rate[3] >= 0
                    router.mix(source, where, theta, weights, b)
                    for i in range(m):
                        e[i] = dot(b.z[i], p) + bias[c]
                    total += errors_toward(kind, e, y, u, power, m, phase == 0, soft, c, at, 0, push, 0.0)
                    shift = _into_rows(b.z, p, e, b.dz, head)
                    router.unmix(theta, weights, b, grad, moving, rate[2] >= 0)
                    if rate[2] >= 0:
                        step = rate[2] * speed
                        if not fixed and decay > 0:
                            routed.shrink_rows(rows, row_ptr[c], row_ptr[c + 1], _ONE - step * decay)
                        router.step_views(rows, at, b, step)
                    if rate[0] >= 0:
                        for t in range(d):
                            p[t] -= rate[0] * speed * (head[t] + private_decay * p[t])
                    if rate[1] >= 0:
                        bias[c] -= rate[1] * speed * (shift + private_decay * bias[c])
                    if moving:
                        for t in range(len(theta)):
                            theta[t] -= rate[3] * speed * (grad[t] + private_decay * theta[t])
                speed *= step_decay
        weight[c], thetas[c] = p, theta
        if size > 0:
            loss[c] = total / (size * len(order))
    return loss


@numba.njit(cache=True, fastmath=FAST)
def _into_rows(z: np.ndarray, p: np.ndarray, e: np.ndarray, dz: np.ndarray, head: np.ndarray) -> np.float32:
    """From errors e: the gradients of rows, dz = e p, and of the head, sum e z; the bias's is returned."""
    total = _ZERO
    head[:] = _ZERO
    for i in range(len(z)):
        total += e[i]
        for t in range(len(p)):
            head[t] += e[i] * z[i, t]
            dz[i, t] = e[i] * p[t]
    return total


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def score_routed(views: Mixed, weight: np.ndarray, bias: np.ndarray, width: int, kind: int) -> np.ndarray:
    """Logits [K, M]."""
    n, m, d = views.table.shape
    out, theta = np.empty((len(weight), m), np.float32), np.empty(views.thetas.shape[1], np.float32)
    b = router.buffers(m, d, n, width, False)
    for k in range(len(weight)):
        routed.mix_all(views, k, theta, kind, b)
        for i in range(m):
            out[k, i] = dot(b.z[i], weight[k]) + bias[k]
    return out
