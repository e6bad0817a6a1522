"""Server optimisers against torch over several rounds, where the definitions coincide (every row touched), and by hand
Yogi, which torch has not. Their other laws are in `test_fedopt.py`."""

import math

import numpy as np
import pytest
import torch

from fedray.config import make_config
from fedray.federated.aggregate import merge, sum_dense, sum_rows
from fedray.methods import build
from fedray.types import ServerState

M, ROUNDS = 5, 6
BACKBONE = {"name": "fedncf", "dim": 3, "hidden": [4, 2]}
TABLE, LAYER = "item_embedding", "mlp_2_weight"


def method(**settings):
    return build(make_config({"backbone": BACKBONE, "plugins": {"fedopt": settings}, "train": {"rounds": ROUNDS}}), M)


def change(state, deltas):
    """The aggregate of one client that moved the named parameters by `deltas`; of a table, the rows that moved."""
    parts, one = [], np.ones(1)
    for name, delta in deltas.items():
        new = (state.params[name] + delta).astype(np.float32)
        if name == TABLE:
            rows = np.flatnonzero(delta.any(axis=1))
            ptr = np.array([0, len(rows)])
            parts.append(sum_rows(name, state.params[name], new[rows], rows, ptr, one, one))
        else:
            parts.append(sum_dense(name, state.params[name], new[None], one))
    return merge(*parts) if len(parts) > 1 else parts[0]


def rounds(m, deltas):
    """The states after each round's mean change."""
    states = [ServerState(0, m.init_server(0))]
    for delta in deltas:
        states.append(m.server_step(states[-1], change(states[-1], delta)))
    return states


def draws(n=ROUNDS):
    rng = np.random.default_rng(0)
    shapes = {TABLE: (M, 3), LAYER: (2, 4)}
    return [{k: rng.normal(0, 0.3, s).astype(np.float32) for k, s in shapes.items()} for _ in range(n)]


TORCH = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.8),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.2, eps=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.2, betas=(0.8, 0.95), eps=1e-3),
}


@pytest.mark.parametrize("name", TORCH)
def test_mean_changes_are_minus_the_gradients_of_torchs_optimisers(name):
    m = method(optimizer=name, lr=0.2, momentum=0.0 if name == "adagrad" else 0.8, beta2=0.95, eps=1e-3)
    states = rounds(m, draws())
    params = {k: torch.nn.Parameter(torch.tensor(states[0].params[k])) for k in (TABLE, LAYER)}
    optimizer = TORCH[name](params.values())
    for state, delta in zip(states[1:], draws()):
        for k, p in params.items():
            p.grad = -torch.tensor(delta[k])
        optimizer.step()
        for k, p in params.items():
            np.testing.assert_allclose(state.params[k], p.detach().numpy(), atol=1e-6)
    assert np.abs(states[-1].params[TABLE] - states[0].params[TABLE]).min() > 1e-3


def test_yogi_by_hand():
    """One number of a layer, changes 0.5 then -1 (g -0.5, 1): momentum 0.5, beta2 0.75, lr 0.1, eps 0.01.

    v1 = 0 - 0.25 sign(0 - 0.25) 0.25 = 0.0625, corrected 0.0625 / 0.25 = 0.25; m1 = -0.25, corrected -0.5
    x1 = x0 + 0.1 * 0.5 / (0.5 + 0.01)
    v2 = 0.0625 - 0.25 sign(0.0625 - 1) 1 = 0.3125, corrected by 1 - 0.75^2 = 0.4375; m2 = 0.375, by 0.75: 0.5
    x2 = x1 - 0.1 * 0.5 / (sqrt(0.3125 / 0.4375) + 0.01)
    Then g = 0.1: v3 = 0.3125 - 0.25 * 0.01 = 0.31, as v2 > g^2; by 1 - 0.75^3 = 0.578125; m3 = 0.2375, by 0.875.
    """
    m = method(optimizer="yogi", lr=0.1, momentum=0.5, beta2=0.75, eps=0.01)
    moves = [{LAYER: np.full((2, 4), d, np.float32)} for d in (0.5, -1.0, -0.1)]
    x0, x1, x2, x3 = (float(s.params[LAYER][0, 0]) for s in rounds(m, moves))
    assert x1 - x0 == pytest.approx(0.1 * 0.5 / 0.51, abs=1e-6)
    assert x2 - x1 == pytest.approx(-0.1 * 0.5 / (math.sqrt(0.3125 / 0.4375) + 0.01), abs=1e-6)
    assert x3 - x2 == pytest.approx(-0.1 * (0.2375 / 0.875) / (math.sqrt(0.31 / 0.578125) + 0.01), abs=1e-6)
