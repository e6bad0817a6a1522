"""Server optimisers: Reddi et al., ICLR 2021 (arXiv 2003.00295), "Adaptive federated optimization".

The mean of the clients' changes is taken as a gradient step's direction: with g = -(mean change) of a shared tensor,

    sgd      m = momentum m + g                                    x = x - lr m
    adagrad  v = v + g^2                                           x = x - lr m / (sqrt(v) + eps)
    adam     v = beta2 v + (1 - beta2) g^2                         the same
    yogi     v = v - (1 - beta2) sign(v - g^2) g^2                 the same

with m = momentum m + (1 - momentum) g for the last three. It needs the sum over clients only, so it goes with
whatever the clients and the aggregation do.

Departures. Item tables are treated row by row: a row that nobody touched this round keeps its moments, and its value
but for the clients' weight decay, which is applied as the mean does and is no part of g (tables that are collected
whole, as GPFedRec's, have it in g). m (but sgd's) and v of adam and yogi are corrected for their start at 0 (Kingma and
Ba, 2015) by the row's own number of steps; the paper corrects nothing. With `second_moment: row`, v is one number a
row, the mean of g^2 over it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from fedray.config import Closed
from fedray.errors import UnsupportedError
from fedray.federated.aggregate import Aggregate, mean_decay, mean_deltas
from fedray.federated.method import Method, Uploads
from fedray.methods.context import Context
from fedray.types import Arrays, ServerState


class Config(Closed):
    """Settings of the plug-in."""

    optimizer: Literal["sgd", "adagrad", "adam", "yogi"] = "adam"
    lr: float = Field(0.01, gt=0, description="of the server; sgd with 1 and no momentum is the plain mean")
    dense_lr_scale: float = Field(1.0, ge=0, description="times lr, for shared tensors that are no item tables")
    momentum: float = Field(0.9, ge=0, lt=1, description="beta1 of the adaptive ones")
    beta2: float = Field(0.99, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0, description="the paper's tau; it has the size of a mean change")
    weight_decay: float = Field(0.0, ge=0, description="decoupled: touched rows shrink by lr times this")
    second_moment: Literal["element", "row"] = "element"
    schedule: Literal["constant", "cosine", "exponential"] = "constant"
    decay: float = Field(0.98, gt=0, le=1, description="of the exponential schedule, a round")


def wrap(inner: Method, config: Config, context: Context) -> Method:
    """`inner` with a server optimiser on all its shared tensors."""
    if inner.broadcast is not None:
        raise UnsupportedError(
            f"fedopt on {inner.name}",
            "a method whose server keeps what its clients send back",
            "Name fedopt before the plug-in that makes item rows: it then moves the ID table.",
        )

    def server_step(state: ServerState, total: Aggregate) -> ServerState:
        new = inner.server_step(state, total)
        deltas = mean_deltas(total)
        shrunk = {k: state.params[k] * mean_decay(total, k) for k in deltas}
        return optimised(config, context, inner, replace(state, params={**state.params, **shrunk}), new, deltas)

    def personalise(state: ServerState, uploads: Uploads) -> tuple[ServerState, Arrays]:
        assert inner.personalise is not None
        new, targets = inner.personalise(state, uploads)
        changes = {k: v.astype(np.float64) - state.params[k] for k, v in new.params.items() if k in inner.collects}
        return optimised(config, context, inner, state, new, changes), targets

    step: Callable[[ServerState, Uploads], tuple[ServerState, Arrays]] | None = personalise
    return inner._replace(
        name=f"fedopt({inner.name})", server_step=server_step, personalise=step if inner.personalise else None
    )


def optimised(
    config: Config, context: Context, inner: Method, old: ServerState, new: ServerState, changes: Arrays
) -> ServerState:
    """`new`, but with the optimiser's step for the tensors in `changes` instead of the mean's. `new` is the state after
    the round, and so may `old` be, where a method personalises: the round itself is one less."""
    params, extra = dict(new.params), dict(new.extra)
    for k, change in changes.items():
        rows = k in inner.shared_rows
        lr = rate(config, context, new.round - 1) * (1.0 if rows else config.dense_lr_scale)
        moments = {p: extra.get(f"fedopt/{p}/{k}") for p in ("m", "v", "t")}
        params[k], found = update(config, lr, old.params[k], change, moments, rows)
        extra |= {f"fedopt/{p}/{k}": v for p, v in found.items()}
    return ServerState(new.round, params, extra)


def rate(config: Config, context: Context, round_: int) -> float:
    """The server's learning rate of a round; cosine falls to 0 over the run."""
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * round_ / context.train.rounds))
    return config.lr * (config.decay**round_ if config.schedule == "exponential" else 1.0)


def update(
    config: Config, lr: float, x: np.ndarray, change: np.ndarray, moments: dict[str, np.ndarray | None], rows: bool
) -> tuple[np.ndarray, Arrays]:
    """(new x, new moments). A table's rows without any change keep theirs."""
    shape = (len(x), -1) if rows else (1, -1)
    flat, g = x.reshape(shape).astype(np.float64), -change.reshape(shape)
    hit = np.flatnonzero(g.any(axis=1)) if rows else np.arange(1)
    row_v = config.second_moment == "row" and rows
    start = {"m": g.shape, "v": (len(g), 1) if row_v else g.shape, "t": (len(g), 1)}
    now = {k: np.zeros(s, np.float32) if (v := moments[k]) is None else v.copy() for k, s in start.items()}
    m, v, t = (now[k][hit].astype(np.float64) for k in ("m", "v", "t"))
    step, m, v, t = _step(config, g[hit], m, v, t, row_v)
    flat[hit] -= lr * (step + config.weight_decay * flat[hit])
    for k, value in (("m", m), ("v", v), ("t", t)):
        now[k][hit] = value
    return flat.reshape(x.shape).astype(np.float32), now


def _step(
    config: Config, g: np.ndarray, m: np.ndarray, v: np.ndarray, t: np.ndarray, row_v: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(direction, m, v, t) for the rows g."""
    beta, t = config.momentum, t + 1
    if config.optimizer == "sgd":
        m = beta * m + g
        return m, m, v, t
    square = (g * g).mean(axis=1, keepdims=True) if row_v else g * g
    m = beta * m + (1 - beta) * g
    m_hat = m / (1 - beta**t)
    if config.optimizer == "adagrad":
        v = v + square
        return m_hat / (np.sqrt(v) + config.eps), m, v, t
    if config.optimizer == "adam":
        v = config.beta2 * v + (1 - config.beta2) * square
    else:
        v = v - (1 - config.beta2) * np.sign(v - square) * square
    return m_hat / (np.sqrt(v / (1 - config.beta2**t)) + config.eps), m, v, t
