"""Additive personal tables: y = sigmoid(w . (P_i + E_i) + b), P private, E shared, with two terms on a batch's rows:

    loss - independence * mean (P_i - E_i)^2 + sparsity * mean |E_i|        (means over the batch's samples and d)

With an item bias E has one more column, b_i, added to the logit and left out of both terms.
"""

import numba
import numpy as np
from jaxtyping import Float32

from fedray.data.blocks import RoundSamples
from fedray.federated.kernels.linear import copy_rows, longest_batch, product, with_one
from fedray.federated.kernels.losses import FAST, KINDS, dot, errors_toward
from fedray.federated.local import LocalPlan, LocalResult, LocalStart, Soft
from fedray.federated.method import Kernel, Owned
from fedray.types import Arrays

_ONE, _TWO, _ZERO = np.float32(1.0), np.float32(2.0), np.float32(0.0)


def additive_kernel(
    shared: str, personal: str, weight: str, bias: str, terms: tuple[str, str], squared: bool
) -> Kernel:
    """terms: the names of the coefficients independence and sparsity; squared: the sparsity term is mean E_i^2
    instead of mean |E_i|."""

    def train(plan: LocalPlan, start: LocalStart, samples: RoundSamples) -> LocalResult:
        e, p = np.empty((len(start.index[shared]), start.tables[shared].shape[1]), np.float32), start.rows(personal)
        w, b = start.private[weight].copy(), start.private[bias].copy()
        soft = start.labels(len(b))
        loss = train_additive(
            start.tables[shared], start.index[shared], e, p, w, b, samples.row_ptr, samples.sample_ptr, samples.item,
            samples.label, samples.order, plan.batch_size, plan.rates((weight, bias, shared, personal)),
            np.float32(plan.step_decay), np.float32(plan.private_decay), np.float32(plan.decay), KINDS[plan.loss],
            np.array([plan.coefficients[k] for k in terms], np.float32), squared, soft,
        )  # fmt: skip
        return LocalResult({shared: e, personal: p}, {}, {weight: w, bias: b}, {}, loss, ratio=soft.ratio)

    def score(tables: Arrays, owned: Owned) -> Float32[np.ndarray, "K M"]:
        own, w, b = owned.personal[personal], owned.private[weight], owned.private[bias]
        v = with_one(w, tables[shared].shape[1])
        out = product(v, tables[shared])
        factor = owned.scale.get(shared)
        if factor is not None:
            out *= factor[:, None].astype(np.float32)
        common = product(w, own.base)
        out += common * own.scale[owned.position][:, None].astype(np.float32) + b[:, None]
        f = np.ones(len(w), np.float32) if factor is None else factor.astype(np.float32)
        t = owned.tuned
        none = (own.ptr[:0], own.rows[:0], tables[shared][:0])
        tuned = none if t is None else (t.ptr, t.rows, t.values[shared])
        overlay_additive(
            out, owned.position, own.ptr, own.rows, own.values, own.base, own.scale, tables[shared], f, *tuned, v, b
        )
        return out

    return Kernel(train, score)


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def train_additive(
    table: np.ndarray,
    index: np.ndarray,
    rows: np.ndarray,
    own: np.ndarray,
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
    terms: np.ndarray,
    squared: bool,
    soft: Soft,
) -> np.ndarray:
    """SGD in place on `own` [R, d] (the P rows), `weight` [C, d], `bias` [C]; writes the E rows [R, d or d + 1], which
    start as table[index]. rates [phases, 4]: of weight, bias, E, P; negative: not in this phase. Returns the mean
    loss per client [C], terms included."""
    d = weight.shape[1]
    loss = np.zeros(len(weight), np.float32)
    longest = longest_batch(sample_ptr, batch_size)
    at, y = np.empty(longest, np.int64), np.empty(longest, np.float32)
    x, u, push = np.empty(longest, np.float32), np.empty(longest, np.float32), np.empty(longest, np.float32)
    power, grad = np.empty(longest, np.int32), np.empty(d, np.float32)
    w, most = np.ones(rows.shape[1], np.float32), longest_batch(row_ptr, len(rows))
    count, force = np.zeros(most, np.int32), np.zeros(most, np.float32)
    for c in range(len(weight)):
        z, q = rows[row_ptr[c] : row_ptr[c + 1]], own[row_ptr[c] : row_ptr[c + 1]]
        w[:d] = weight[c]
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
                        x[k] = dot(z[at[k]], w) + dot(q[at[k]], w[:d]) + bias[c]
                    extra = 0.0
                    if p == 0 and soft.ema >= 0 and soft.strength[c] > 0:
                        extra = _terms_of(z, q, at, m, terms, squared)
                    total += errors_toward(kind, x, y, u, power, m, p == 0, soft, c, at, row_ptr[c], push, extra)
                    error = _ZERO
                    for k in range(m):
                        error += x[k]
                        count[at[k]] += 1
                        force[at[k]] += x[k]
                    if rates[p, 0] >= 0:
                        _weight_gradient(z, q, at, x, m, grad)
                    total += _step_rows(z, q, w, d, at, m, count, force, rates[p], speed, decay, terms, squared, p == 0)
                    if rates[p, 0] >= 0:
                        for j in range(d):
                            w[j] -= rates[p, 0] * speed * (grad[j] + private_decay * w[j])
                    if rates[p, 1] >= 0:
                        bias[c] -= rates[p, 1] * speed * (error + private_decay * bias[c])
                speed *= step_decay
        weight[c] = w[:d]
        if n > 0:
            loss[c] = total / (n * len(order))
    return loss


@numba.njit(cache=True, fastmath=FAST)
def _terms_of(z: np.ndarray, q: np.ndarray, at: np.ndarray, m: int, terms: np.ndarray, squared: bool) -> float:
    """The terms' value times m, before a step; the step itself makes it anew on its way."""
    total = 0.0
    for k in range(m):
        total += terms_of(z[at[k]], q[at[k]], terms, squared)
    return total / q.shape[1]


@numba.njit(cache=True, fastmath=FAST)
def terms_of(shared: np.ndarray, own: np.ndarray, terms: np.ndarray, squared: bool) -> np.float32:
    """What one sample puts into the terms' value, times d."""
    gap, size = _ZERO, _ZERO
    for j in range(len(own)):
        e, diff = shared[j], own[j] - shared[j]
        gap += diff * diff
        size += e * e if squared else abs(e)
    return terms[1] * size - terms[0] * gap


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _weight_gradient(z: np.ndarray, q: np.ndarray, at: np.ndarray, error: np.ndarray, m: int, grad: np.ndarray) -> None:
    """grad = sum of error_k (E + P) over the batch."""
    grad[:] = 0
    for k in range(m):
        e, p, err = z[at[k]], q[at[k]], error[k]
        for j in range(len(grad)):
            grad[j] += err * (e[j] + p[j])


@numba.njit(cache=True, fastmath=FAST)
def _step_rows(
    z: np.ndarray,
    q: np.ndarray,
    w: np.ndarray,
    d: int,
    at: np.ndarray,
    m: int,
    count: np.ndarray,
    force: np.ndarray,
    rate: np.ndarray,
    speed: np.float32,
    decay: np.float32,
    terms: np.ndarray,
    squared: bool,
    want: bool,
) -> float:
    """The step of both tables, each row once: the fit (force: a row's summed errors), the two terms, the decay. Gives
    the terms' value times m if wanted; clears `count` and `force`."""
    each = _ONE / np.float32(m * d)
    to_e, to_q = max(rate[2], _ZERO) * speed, max(rate[3], _ZERO) * speed
    apart, small = np.float64(0.0), np.float64(0.0)
    for k in range(m):
        i = at[k]
        if count[i] < 0:
            continue
        e_row, p_row, err, times = z[i], q[i], force[i], np.float32(count[i]) * each
        push, press = _TWO * terms[0] * times, terms[1] * times
        gap, size = _ZERO, _ZERO
        for j in range(d):
            e, p = e_row[j], p_row[j]
            diff = p - e
            gap += diff * diff
            size += e * e if squared else abs(e)
            slope = _TWO * e if squared else (_ONE if e > _ZERO else _ZERO) - (_ONE if e < _ZERO else _ZERO)
            e_row[j] = e - to_e * (err * w[j] + push * diff + press * slope + decay * e)
            p_row[j] = p - to_q * (err * w[j] - push * diff + decay * p)
        for j in range(d, len(e_row)):
            e_row[j] -= to_e * (err + decay * e_row[j])
        count[i], force[i] = -1, _ZERO
        apart += times * gap
        small += times * size
    _decay_others(z, q, count, to_e * decay, to_q * decay)
    return (terms[1] * small - terms[0] * apart) * m if want else 0.0


@numba.njit(cache=True, fastmath=FAST)
def _decay_others(z: np.ndarray, q: np.ndarray, count: np.ndarray, shrink_e: np.float32, shrink_q: np.float32) -> None:
    """The weight decay of rows that are not in the batch; clears the marks of those that are."""
    for i in range(len(z)):
        if count[i] == 0 and (shrink_e > 0 or shrink_q > 0):
            for j in range(z.shape[1]):
                z[i, j] *= _ONE - shrink_e
            for j in range(q.shape[1]):
                q[i, j] *= _ONE - shrink_q
        count[i] = 0


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def overlay_additive(
    out: np.ndarray,
    position: np.ndarray,
    ptr: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    base: np.ndarray,
    scale: np.ndarray,
    table: np.ndarray,
    factor: np.ndarray,
    t_ptr: np.ndarray,
    t_rows: np.ndarray,
    t_values: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
) -> None:
    """Put the scores of rows that a client has of its own over those of the common tables: P rows it ever touched, and
    E rows it tuned (t_ptr empty: none). Tuned rows are always among the touched ones."""
    d = values.shape[1]
    for k in range(len(position)):
        c = position[k]
        t, end = (t_ptr[c], t_ptr[c + 1]) if len(t_ptr) else (0, 0)
        for r in range(ptr[c], ptr[c + 1]):
            while t < end and t_rows[t] < rows[r]:
                t += 1
            if t < end and t_rows[t] == rows[r]:
                shared = dot(t_values[t], w[k])
            else:
                shared = factor[k] * dot(table[rows[r]], w[k])
            out[k, rows[r]] = shared + dot(values[r], w[k][:d]) + bias[k]
