"""The losses inside the kernels: from a batch's logits to its summed loss and the error of each logit.

BCE: x_k against its label. BPR (Rendle et al., 2009): samples come as pairs (positive, negative), so places 2k and
2k + 1 of a batch belong together, and the pair's loss is that of the logit x_2k - x_2k+1 with label 1.

Soft labels (`local.Soft`) add, under either, strength * KL(q || sigmoid(x)), a mean over all the batch's samples.
"""

import math

import numba
import numpy as np

from fedray.federated.local import Soft

# Reassociation lets sums use vector registers; the code, and so the order of its sums, is the same for every
# client. NaN and infinity keep their meaning.
FAST = {"reassoc", "contract"}
BCE, BPR = 0, 1
KINDS = {"bce": BCE, "bpr": BPR}
_LOG2_E = np.float32(1.4426950408889634)
_LN2 = np.float32(0.6931471805599453)
_ONE, _HALF = np.float32(1.0), np.float32(0.5)
_C3, _C4, _C5, _C6 = (np.float32(1 / math.factorial(n)) for n in (3, 4, 5, 6))


@numba.njit(cache=True, fastmath=FAST, inline="always")
def dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    """a . b for short vectors."""
    s = np.float32(0.0)
    for j in range(len(b)):
        s += a[j] * b[j]
    return s


@numba.njit(cache=True, fastmath=FAST)
def errors_of(kind: int, x: np.ndarray, y: np.ndarray, u: np.ndarray, power: np.ndarray, m: int, want: bool) -> float:
    """x = the gradient of the batch's mean loss with respect to each of its m logits, in place; the loss times m if
    `want`ed, else 0. u, power: scratch. y is overwritten under BPR."""
    n = m
    if kind == BPR:
        n = m // 2
        for k in range(n):
            x[k] = x[2 * k] - x[2 * k + 1]
            y[k] = _ONE
    exp_minus_abs(x, u, power, n)
    total = _loss(x, y, u, n) if want else 0.0
    _errors(x, y, u, x, n)
    if kind == BPR:
        total *= 2
        for k in range(n - 1, -1, -1):
            x[2 * k + 1] = -x[k]
            x[2 * k] = -x[2 * k + 1]
    return total


@numba.njit(cache=True, fastmath=FAST)
def errors_toward(
    kind: int,
    x: np.ndarray,
    y: np.ndarray,
    u: np.ndarray,
    power: np.ndarray,
    m: int,
    want: bool,
    soft: Soft,
    c: int,
    at: np.ndarray,
    first: int,
    push: np.ndarray,
    extra: float,
) -> float:
    """`errors_of`, and for a client c with soft labels also their term's share of errors and loss; bit by bit the same
    for one without.

    Sample k's row is number first + at[k]. push: scratch. extra: what the backbone's loss has beside the fit (which
    joins the ratio, and nothing else), times m. A loss is wanted in the first phase of a step: there the ratio moves.
    """
    if not soft.strength[c] > 0:
        return errors_of(kind, x, y, u, power, m, want)
    term = _divergence(x, u, power, m, want, soft, at, first, push)
    total = errors_of(kind, x, y, u, power, m, want)
    if want:
        move_ratio(soft, c, (total + extra) / m, term / m)
    strength = weight_of(soft, c)
    for k in range(m):
        x[k] += strength * push[k]
    return total + strength * term


@numba.njit(cache=True, fastmath=FAST)
def _divergence(
    x: np.ndarray,
    u: np.ndarray,
    power: np.ndarray,
    m: int,
    want: bool,
    soft: Soft,
    at: np.ndarray,
    first: int,
    push: np.ndarray,
) -> float:
    """The sum of KL(q || sigmoid(x)) if wanted; push = (sigmoid(x) - q) / m."""
    entropy = 0.0
    for k in range(m):
        push[k] = soft.target[first + at[k]]
        entropy += soft.entropy[first + at[k]]
    exp_minus_abs(x, u, power, m)
    total = _loss(x, push, u, m) + entropy if want else 0.0
    _errors(x, push, u, push, m)
    return total


@numba.njit(cache=True)
def move_ratio(soft: Soft, c: int, base: float, term: float) -> None:
    """The running mean of base / term over client c's batches. A term within rounding of 0 is none less than 0."""
    if soft.ema < 0:
        return
    now = np.float32(base / (max(term, 0.0) + 1e-8))
    before = soft.ratio[c]
    soft.ratio[c] = now if np.isnan(before) else soft.ema * before + (_ONE - soft.ema) * now


@numba.njit(cache=True)
def weight_of(soft: Soft, c: int) -> np.float32:
    """What the term of client c counts now."""
    return soft.strength[c] * (soft.ratio[c] if soft.ema >= 0 else _ONE)


@numba.njit(cache=True, fastmath=FAST, inline="always")
def exp_minus_abs(x: np.ndarray, u: np.ndarray, power: np.ndarray, m: int) -> None:
    """u = exp(-|x|), to 3e-7 relative: 2^n times a Taylor polynomial on |r| <= ln2 / 2, in vector registers (the
    library's exponential is called one number at a time). Below e^-87 it stays at e^-87; NaN stays NaN."""
    for k in range(m):
        a = max(-abs(x[k]), np.float32(-87.0))
        n = np.rint(a * _LOG2_E)
        r = a - n * _LN2
        u[k] = _ONE + r * (_ONE + r * (_HALF + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))))
        power[k] = (np.int32(n) + np.int32(127)) << np.int32(23)
    two_to_n = power.view(np.float32)
    for k in range(m):
        u[k] = u[k] * two_to_n[k] if x[k] == x[k] else x[k]


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _loss(x: np.ndarray, y: np.ndarray, u: np.ndarray, m: int) -> float:
    """The batch's summed cross-entropy, max(x, 0) - x y + log(1 + u). Many logarithms are one of a product: each
    factor is at most 2, so hundreds stay finite."""
    total, product = 0.0, 1.0
    for k in range(m):
        total += max(x[k], np.float32(0.0)) - x[k] * y[k]
        product *= 1.0 + u[k]
        if product > 1e100:
            total += math.log(product)
            product = 1.0
    return total + math.log(product)


@numba.njit(cache=True, fastmath=FAST, inline="always")
def _errors(x: np.ndarray, y: np.ndarray, u: np.ndarray, out: np.ndarray, m: int) -> None:
    """out (x or y, or room) = (sigmoid(x) - y) / m, the gradient of the mean loss with respect to each logit."""
    scale = _ONE / np.float32(m)
    for k in range(m):
        inverse = _ONE / (_ONE + u[k])
        out[k] = ((inverse if x[k] >= 0 else u[k] * inverse) - y[k]) * scale
