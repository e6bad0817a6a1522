"""Scores of all items by multilayer heads (see `tower`). Items are the inner axis, so loops over them vectorise."""

import numba
import numpy as np

from fedray.federated.kernels.losses import FAST

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
_CHUNK = 1024
"""Rows scored at once: what the activations of one chunk need stays in cache."""


@numba.njit(cache=True)
def offsets(d: int, g: int, widths: np.ndarray) -> np.ndarray:
    """Where A, B, b_1, then W_l and b_l for each later layer, then w, b start in theta."""
    out = np.empty(2 * len(widths) + 3, np.int64)
    out[0], out[1], out[2] = d + g, d + g + widths[0] * d, d + g + 2 * widths[0] * d
    end = out[2] + widths[0]
    for i in range(1, len(widths)):
        out[2 * i + 1], out[2 * i + 2] = end, end + widths[i] * widths[i - 1]
        end = out[2 * i + 2] + widths[i]
    out[2 * len(widths) + 1], out[2 * len(widths) + 2] = end, end + widths[-1] + g
    return out


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def score_tower(
    tables: np.ndarray,
    first_layer: np.ndarray,
    thetas: np.ndarray,
    factor: np.ndarray,
    position: np.ndarray,
    t_ptr: np.ndarray,
    t_rows: np.ndarray,
    t_values: np.ndarray,
    d: int,
    widths: np.ndarray,
) -> np.ndarray:
    """Scores [K, M]. tables [1 or K, M, d + g]: one for all, or one each; untouched rows count times factor_k, tuned
    rows (t_ptr empty: none) as they are. first_layer [h_1, M]: B z of all rows where all clients share both, else
    empty."""
    n, n_items, g = len(thetas), tables.shape[1], tables.shape[2] - d
    out = np.empty((n, n_items), np.float32)
    o = offsets(d, g, widths)
    bufs, x = np.empty((2, _CHUNK * widths.max()), np.float32), np.empty(_CHUNK, np.float32)
    for k in range(n):
        table, theta = tables[k if len(tables) > 1 else 0], thetas[k]
        b = theta[o[1] : o[2]].reshape(widths[0], d)
        bias = np.dot(theta[o[0] : o[1]].reshape(widths[0], d), theta[:d]) + theta[o[2] : o[2] + widths[0]]
        for first in range(0, n_items, _CHUNK):
            m = min(_CHUNK, n_items - first)
            rows = table[first : first + m]
            if len(first_layer):
                _first(first_layer[:, first : first + m], factor[k], bias, bufs[0])
            else:
                _first(np.dot(b, np.ascontiguousarray(rows[:, :d]).T), factor[k], bias, bufs[0])
            _score_rows(rows, theta, factor[k], o, d, widths, bufs, x)
            out[k, first : first + m] = x[:m]
        c = position[k]
        start, end = (t_ptr[c], t_ptr[c + 1]) if len(t_ptr) else (0, 0)
        for first in range(start, end, _CHUNK):
            m = min(_CHUNK, end - first)
            rows = t_values[first : first + m]
            _first(np.dot(b, np.ascontiguousarray(rows[:, :d]).T), _ONE, bias, bufs[0])
            _score_rows(rows, theta, _ONE, o, d, widths, bufs, x)
            for i in range(m):
                out[k, t_rows[first + i]] = x[i]
    return out


@numba.njit(cache=True, fastmath=FAST)
def _first(product: np.ndarray, factor: np.float32, bias: np.ndarray, out: np.ndarray) -> None:
    """out = ReLU(factor product + bias), [h_1, m] laid flat: items are the inner axis, so loops over them vectorise."""
    m = product.shape[1]
    for j in range(product.shape[0]):
        row, shift, to = product[j], bias[j], out[j * m : (j + 1) * m]
        for k in range(m):
            to[k] = max(factor * row[k] + shift, _ZERO)


@numba.njit(cache=True, fastmath=FAST)
def _score_rows(
    rows: np.ndarray,
    theta: np.ndarray,
    factor: np.float32,
    o: np.ndarray,
    d: int,
    widths: np.ndarray,
    bufs: np.ndarray,
    x: np.ndarray,
) -> None:
    """x = the logits of m item rows whose first layer lies in bufs[0]."""
    m, g, last = rows.shape[0], rows.shape[1] - d, len(widths) - 1
    h = bufs[0, : widths[0] * m].reshape(widths[0], m)
    for i in range(1, len(widths)):
        new = bufs[i % 2, : widths[i] * m].reshape(widths[i], m)
        np.dot(theta[o[2 * i + 1] : o[2 * i + 2]].reshape(widths[i], widths[i - 1]), h, new)
        for j in range(widths[i]):
            row, shift = new[j], theta[o[2 * i + 2] + j]
            for k in range(m):
                row[k] = max(row[k] + shift, _ZERO)
        h = new
    out = o[2 * last + 3]
    for k in range(m):
        x[k] = theta[o[2 * last + 4]]
    for j in range(widths[last]):
        row, w = h[j], theta[out + j]
        for k in range(m):
            x[k] += w * row[k]
    for j in range(g):
        w = theta[out + widths[last] + j] * theta[d + j] * factor
        for k in range(m):
            x[k] += w * rows[k, d + j]
