"""The router of FedVLR, compiled: a batch's item rows as mixtures of their views, and the way back. `models.router`
says what it computes; the kernels on top differ in what they do with the mixtures.

theta holds W_1 [h, Jd], b_1 [h], W_2 [J, h], b_2 [J], flat and in this order. Views are [J, *, d], one table each; in
the batch those of an item lie side by side. Large matrix products go through BLAS, on one thread; the rest are loops
over one row at a time that the compiler can put in vector registers.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from fedray.federated.kernels.losses import FAST, dot

CLIENT, CLIENT_TWICE, ITEM = 0, 1, 2
KINDS = {
    ("client", "single"): CLIENT,
    ("client", "double"): CLIENT_TWICE,
    ("item", "single"): ITEM,
    ("item", "double"): ITEM,
}
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


class Buffers(NamedTuple):
    """Of m rows: their views x [m, J, d], hidden layer [m, h], each row's softmax s [m, J], weights of the views w
    [m, J] and the mixtures z [m, d]; on the way back the gradients of z, of w, and what reaches x through the router
    (under [m, J d])."""

    x: np.ndarray
    hidden: np.ndarray
    s: np.ndarray
    w: np.ndarray
    z: np.ndarray
    dz: np.ndarray
    dw: np.ndarray
    under: np.ndarray


@numba.njit(cache=True)
def buffers(m: int, d: int, n: int, h: int, back: bool) -> Buffers:
    """For up to m rows of n views; what is for the way back is empty without it."""
    t, r = np.float32, m if back else 0
    x, hidden, under = np.empty((m, n, d), t), np.empty((m if n > 1 else 0, h), t), np.empty((r, n * d), t)
    s, w, z = np.empty((m, n), t), np.empty((m, n), t), np.empty((m, d), t)
    return Buffers(x, hidden, s, w, z, np.empty((r, d), t), np.empty((r, n), t), under)


@numba.njit(cache=True)
def first(b: Buffers, m: int) -> Buffers:
    """The first m rows."""
    return Buffers(b.x[:m], b.hidden[:m], b.s[:m], b.w[:m], b.z[:m], b.dz[:m], b.dw[:m], b.under[:m])


@numba.njit(cache=True, fastmath=FAST)
def mix(source: np.ndarray, at: np.ndarray, theta: np.ndarray, kind: int, b: Buffers) -> None:
    """The mixtures z of the items at places `at` of source [J, *, d], and all that is before them."""
    m, n, d = b.x.shape
    for i in range(m):
        for j in range(n):
            view, to = source[j, at[i]], b.x[i, j]
            for t in range(d):
                to[t] = view[t]
    fuse(theta, kind, b)


@numba.njit(cache=True, fastmath=FAST)
def fuse(theta: np.ndarray, kind: int, b: Buffers) -> None:
    """The mixtures z of the rows x."""
    m, n, d = b.x.shape
    if n == 1:
        b.w[:] = _ONE
        b.z[:] = b.x[:, 0]
        return
    _softmaxes(theta, b)
    _weights(b.s, kind, b.w)
    for i in range(m):
        z = b.z[i]
        z[:] = _ZERO
        for j in range(n):
            share, view = b.w[i, j], b.x[i, j]
            for t in range(d):
                z[t] += share * view[t]


@numba.njit(cache=True, fastmath=FAST)
def _softmaxes(theta: np.ndarray, b: Buffers) -> None:
    """Hidden layer, and each row's softmax."""
    m, n, d = b.x.shape
    h, k = b.hidden.shape[1], n * d
    w_1, b_1 = theta[: h * k].reshape(h, k), theta[h * k : h * k + h]
    w_2, b_2 = theta[h * k + h : h * k + h + n * h].reshape(n, h), theta[h * k + h + n * h :]
    np.dot(b.x.reshape(m, k), w_1.T, b.hidden)
    for i in range(m):
        row = b.hidden[i]
        for j in range(h):
            row[j] = max(row[j] + b_1[j], _ZERO)
        for j in range(n):
            b.s[i, j] = dot(w_2[j], row) + b_2[j]
        _softmax(b.s[i])


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _softmax(a: np.ndarray) -> None:
    """In place."""
    top = a[0]
    for j in range(len(a)):
        top = max(top, a[j])
    total = _ZERO
    for j in range(len(a)):
        a[j] = np.float32(math.exp(a[j] - top))
        total += a[j]
    for j in range(len(a)):
        a[j] /= total


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _weights(s: np.ndarray, kind: int, w: np.ndarray) -> None:
    """Each row's softmax, or the mean of all."""
    if kind == ITEM:
        w[:] = s
        return
    m, n = s.shape
    for j in range(n):
        total = 0.0
        for i in range(m):
            total += s[i, j]
        w[0, j] = np.float32(total / m)
    if kind == CLIENT_TWICE:
        _softmax(w[0])
    for i in range(1, m):
        for j in range(n):
            w[i, j] = w[0, j]


@numba.njit(cache=True, fastmath=FAST)
def unmix(theta: np.ndarray, kind: int, b: Buffers, grad: np.ndarray, moving: bool, wanted: bool) -> None:
    """From dz: `grad` of theta if the router is `moving`, and `under` if the steps of the views are `wanted`. What lies
    in `hidden` is overwritten."""
    m, n, d = b.x.shape
    if n == 1 or not (moving or wanted):
        return
    for i in range(m):
        for j in range(n):
            b.dw[i, j] = dot(b.x[i, j], b.dz[i])
    _into_softmaxes(kind, b)
    h, k = b.hidden.shape[1], n * d
    _into_hidden(theta, b, grad)
    if moving:
        np.dot(b.hidden.T, b.x.reshape(m, k), grad[: h * k].reshape(h, k))
    if wanted:
        np.dot(b.hidden, theta[: h * k].reshape(h, k), b.under)


@numba.njit(cache=True, fastmath=FAST)
def _into_hidden(theta: np.ndarray, b: Buffers, grad: np.ndarray) -> None:
    """The gradient of the hidden layer before its ReLU in place of it; those of b_1, W_2 and b_2 into `grad`."""
    n, h = b.w.shape[1], b.hidden.shape[1]
    after = len(theta) - n - n * h
    w_2, to_w = theta[after : after + n * h].reshape(n, h), grad[after : after + n * h].reshape(n, h)
    to_1, to_2, line = grad[after - h : after], grad[after + n * h :], np.empty(h, np.float32)
    grad[after - h :] = _ZERO
    for i in range(len(b.hidden)):
        row = b.hidden[i]
        line[:] = _ZERO
        for v in range(n):
            a, weight, to = b.dw[i, v], w_2[v], to_w[v]
            to_2[v] += a
            for j in range(h):
                to[j] += a * row[j]
                line[j] += a * weight[j]
        for j in range(h):
            row[j] = line[j] if row[j] > _ZERO else _ZERO
            to_1[j] += row[j]


@numba.njit(cache=True, fastmath=FAST)
def _into_softmaxes(kind: int, b: Buffers) -> None:
    """dw becomes the gradient of what goes into each row's softmax: a client's weights are the mean of its rows'."""
    m, n = b.dw.shape
    if kind != ITEM:
        mean = np.zeros(n, np.float32)
        for i in range(m):
            for j in range(n):
                mean[j] += b.dw[i, j]
        if kind == CLIENT_TWICE:
            inner = dot(b.w[0], mean)
            for j in range(n):
                mean[j] = b.w[0, j] * (mean[j] - inner)
        for j in range(n):
            mean[j] /= np.float32(m)
        for i in range(m):
            for j in range(n):
                b.dw[i, j] = mean[j]
    for i in range(m):
        inner = dot(b.s[i], b.dw[i])
        for j in range(n):
            b.dw[i, j] = b.s[i, j] * (b.dw[i, j] - inner)


@numba.njit(cache=True, fastmath=FAST)
def step_views(to: np.ndarray, at: np.ndarray, b: Buffers, rate: np.float32) -> None:
    """Places `at` of `to` [J, *, d] -= rate times the gradients of the views, in the order of the samples."""
    m, n, d = b.x.shape
    for i in range(m):
        dz = b.dz[i]
        for j in range(n):
            share, target = b.w[i, j] * rate, to[j, at[i]]
            if n == 1:
                for t in range(d):
                    target[t] -= share * dz[t]
            else:
                under = b.under[i, j * d : (j + 1) * d]
                for t in range(d):
                    target[t] -= share * dz[t] + rate * under[t]
