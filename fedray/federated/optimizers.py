"""Local optimisers as pure functions on stacked parameters.

A local optimiser lives for one round: made fresh on the client, dropped after it. The weight decay is L2 (added to
the gradient), as in the papers' code.
"""

from typing import NamedTuple

import torch

from fedray.types import Params

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class AdamState(NamedTuple):
    """Moments of Adam (Kingma and Ba, 2015) and each client's number of steps so far, [C]."""

    m: Params
    v: Params
    t: dict[str, torch.Tensor]


def adam_init(params: Params) -> AdamState:
    """Zero moments for stacked parameters [C, ...]."""
    zero = {k: torch.zeros_like(p) for k, p in params.items()}
    return AdamState(zero, dict(zero), {k: p.new_zeros(p.shape[0]) for k, p in params.items()})


def sgd(params: Params, grads: Params, lr: dict[str, float], active: torch.Tensor, weight_decay: float) -> Params:
    """p - lr (g + decay p), where `active` [C]; other clients and parameters keep theirs."""
    return {
        **params,
        **{k: _where(active, _sgd(params[k], g, lr[k], weight_decay), params[k]) for k, g in grads.items()},
    }


def _sgd(p: torch.Tensor, g: torch.Tensor, lr: float, weight_decay: float) -> torch.Tensor:
    return p - lr * (g + weight_decay * p) if weight_decay else p - lr * g


def adam(
    params: Params, grads: Params, lr: dict[str, float], active: torch.Tensor, state: AdamState
) -> tuple[Params, AdamState]:
    """One bias-corrected step, where `active` [C]."""
    new, m, v, t = dict(params), dict(state.m), dict(state.v), dict(state.t)
    for k, g in grads.items():
        t[k] = t[k] + active.to(t[k].dtype)
        m[k] = _where(active, BETA1 * m[k] + (1 - BETA1) * g, m[k])
        v[k] = _where(active, BETA2 * v[k] + (1 - BETA2) * g * g, v[k])
        steps = t[k].clamp_min(1.0).reshape(-1, *[1] * (g.ndim - 1))
        m_hat, v_hat = m[k] / (1 - BETA1**steps), v[k] / (1 - BETA2**steps)
        new[k] = _where(active, params[k] - lr[k] * m_hat / (v_hat.sqrt() + EPS), params[k])
    return new, AdamState(m, v, t)


def _where(active: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return torch.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)
