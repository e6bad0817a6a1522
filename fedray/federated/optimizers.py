"""Local optimisers as pure functions on stacked parameters [C, ...].

A local optimiser lives for one round: made fresh on the client, dropped after it. The weight decay is L2 (added to
the gradient), as in the papers' code. All clients of a block take the same number of steps, so nothing is masked.
"""

from typing import NamedTuple

from fedray.types import Params

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class AdamState(NamedTuple):
    """Moments of Adam (Kingma and Ba, 2015) and each parameter's number of steps so far."""

    m: Params
    v: Params
    t: dict[str, int]


def adam_init() -> AdamState:
    """No step yet."""
    return AdamState({}, {}, {})


def sgd(params: Params, grads: Params, lr: dict[str, float], weight_decay: float) -> Params:
    """p - lr (g + decay p) for the parameters in `grads`; the others keep their values."""
    moved = {k: params[k].sub(g, alpha=lr[k]) for k, g in grads.items()}
    if weight_decay:
        moved = {k: p.sub(params[k], alpha=lr[k] * weight_decay) for k, p in moved.items()}
    return {**params, **moved}


def adam(params: Params, grads: Params, lr: dict[str, float], state: AdamState) -> tuple[Params, AdamState]:
    """One bias-corrected step for the parameters in `grads`."""
    new, m, v, t = dict(params), dict(state.m), dict(state.v), dict(state.t)
    for k, g in grads.items():
        t[k] = t.get(k, 0) + 1
        m[k] = (1 - BETA1) * g + BETA1 * m.get(k, 0.0)
        v[k] = (1 - BETA2) * g * g + BETA2 * v.get(k, 0.0)
        m_hat, v_hat = m[k] / (1 - BETA1 ** t[k]), v[k] / (1 - BETA2 ** t[k])
        new[k] = params[k] - lr[k] * m_hat / (v_hat.sqrt() + EPS)
    return new, AdamState(m, v, t)
