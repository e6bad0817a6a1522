"""The router of FedVLR, compiled: forward and backward for one client's batch. `models.router` says what it computes.

theta holds W_1 [h, Jd], b_1 [h], W_2 [J, h], b_2 [J], flat and in this order. X [m, Jd] are the batch's rows, all views
of an item side by side. Matrix products go through BLAS, on one thread.
"""

import math

import numba
import numpy as np

from fedray.federated.kernels.losses import FAST

CLIENT, CLIENT_TWICE, ITEM = 0, 1, 2
KINDS = {
    ("client", "single"): CLIENT,
    ("client", "double"): CLIENT_TWICE,
    ("item", "single"): ITEM,
    ("item", "double"): ITEM,
}
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@numba.njit(cache=True, fastmath=FAST)
def route(
    x: np.ndarray, theta: np.ndarray, h: int, n: int, kind: int, hidden: np.ndarray, s: np.ndarray, w: np.ndarray
) -> None:
    """hidden [m, h], each row's softmax s [m, n], and the weights of the views in w [m, n]."""
    m, k = x.shape
    if n == 1:
        w[:] = _ONE
        return
    first = theta[: h * k].reshape(h, k)
    second = theta[h * k + h : h * k + h + n * h].reshape(n, h)
    np.dot(x, first.T, hidden)
    for i in range(m):
        for j in range(h):
            hidden[i, j] = max(hidden[i, j] + theta[h * k + j], _ZERO)
    np.dot(hidden, second.T, s)
    for i in range(m):
        _softmax(s[i], theta[h * k + h + n * h :])
    _weights(s, kind, w)


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _softmax(a: np.ndarray, shift: np.ndarray) -> None:
    """a = softmax(a + shift), in place."""
    top = a[0] + shift[0]
    for j in range(len(a)):
        a[j] += shift[j]
        top = max(top, a[j])
    total = _ZERO
    for j in range(len(a)):
        a[j] = np.float32(math.exp(a[j] - top))
        total += a[j]
    for j in range(len(a)):
        a[j] /= total


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _weights(s: np.ndarray, kind: int, w: np.ndarray) -> None:
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
        _softmax(w[0], np.zeros(n, np.float32))
    for i in range(1, m):
        for j in range(n):
            w[i, j] = w[0, j]


@numba.njit(cache=True, fastmath=FAST)
def unroute(
    x: np.ndarray,
    theta: np.ndarray,
    h: int,
    n: int,
    kind: int,
    hidden: np.ndarray,
    s: np.ndarray,
    w: np.ndarray,
    dw: np.ndarray,
    dx: np.ndarray,
    under: np.ndarray,
    grad: np.ndarray,
    moving: bool,
) -> None:
    """From dw [m, n], the gradient of each row's weights: `grad` of theta (if it is `moving`), and dx [m, Jd] gains
    what reaches the views through the router. dw and hidden are overwritten; under [m, Jd] is scratch."""
    m, k = x.shape
    if n == 1:
        return
    _into_softmax(s, kind, w, dw)
    for i in range(m):
        inner = _ZERO
        for j in range(n):
            inner += s[i, j] * dw[i, j]
        for j in range(n):
            dw[i, j] = s[i, j] * (dw[i, j] - inner)
    second = theta[h * k + h : h * k + h + n * h].reshape(n, h)
    if moving:
        grad[h * k + h + n * h :] = 0
        np.dot(dw.T, hidden, grad[h * k + h : h * k + h + n * h].reshape(n, h))
        for i in range(m):
            for j in range(n):
                grad[h * k + h + n * h + j] += dw[i, j]
    for i in range(m):
        for j in range(h):
            if hidden[i, j] > 0:
                total = _ZERO
                for v in range(n):
                    total += dw[i, v] * second[v, j]
                hidden[i, j] = total
            else:
                hidden[i, j] = _ZERO
    first = theta[: h * k].reshape(h, k)
    if moving:
        np.dot(hidden.T, x, grad[: h * k].reshape(h, k))
        grad[h * k : h * k + h] = 0
        for i in range(m):
            for j in range(h):
                grad[h * k + j] += hidden[i, j]
    np.dot(hidden, first, under)
    for i in range(m):
        for j in range(k):
            dx[i, j] += under[i, j]


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _into_softmax(s: np.ndarray, kind: int, w: np.ndarray, dw: np.ndarray) -> None:
    """dw becomes the gradient of each row's own softmax: a client's weights are the mean of its rows'."""
    if kind == ITEM:
        return
    m, n = dw.shape
    for j in range(n):
        total = _ZERO
        for i in range(m):
            total += dw[i, j]
        dw[0, j] = total
    if kind == CLIENT_TWICE:
        inner = _ZERO
        for j in range(n):
            inner += w[0, j] * dw[0, j]
        for j in range(n):
            dw[0, j] = w[0, j] * (dw[0, j] - inner)
    for j in range(n):
        dw[0, j] /= np.float32(m)
    for i in range(1, m):
        for j in range(n):
            dw[i, j] = dw[0, j]
