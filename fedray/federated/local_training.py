"""Local training of many clients at once: the vmapped one-client loss (any method), or a compiled kernel.

Both take the same `LocalStart`, the same ragged samples and return the same `LocalResult`, row for row. A client's
result is a function of its own inputs alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch.func import grad_and_value, vmap

from fedray.config import TrainConfig
from fedray.data.blocks import ClientBlock, RoundSamples, stack
from fedray.errors import NonFiniteLossError, UnsupportedError
from fedray.federated import optimizers
from fedray.federated.kernels import train_linear
from fedray.federated.method import Batch, Method, Phase
from fedray.types import Arrays, Params


@dataclass(frozen=True)
class LocalStart:
    """Where C clients start. Their touched rows, flat over clients, are `tables[name][index]` [R, ...]; `dense[name]`
    and `private[name]` are [C, ...] (dense ones are usually one array seen C times)."""

    tables: Arrays
    index: Int[np.ndarray, " R"]
    dense: Arrays
    private: Arrays


@dataclass(frozen=True)
class LocalResult:
    """What C clients have after local training.

    rows[name] [R, ...]; private and dense as in `LocalStart`; decay[name] [C]: the factor by
    which rows the client did not touch shrank. loss [C]: mean over the client's samples, before each step.
    """

    rows: Arrays
    dense: Arrays
    private: Arrays
    decay: Arrays
    loss: Float32[np.ndarray, " C"]


def train_clients(
    method: Method,
    config: TrainConfig,
    round_: int,
    start: LocalStart,
    samples: RoundSamples,
    device: str = "cpu",
) -> LocalResult:
    """One round of local training. Raises `NonFiniteLossError` naming the clients."""
    phases = method.phases(round_)
    if compiled(method, config, device):
        result = _train_compiled(method, config, phases, start, samples)
    else:
        result = _train_vmapped(method, config, phases, start, samples, device)
    bad = ~np.isfinite(result.loss)
    if bad.any():
        who = samples.client[bad]
        raise NonFiniteLossError(
            f"round {round_}: the loss of {len(who)} clients is not finite (clients {who[:5].tolist()} ...)",
            "finite losses",
            "Lower backbone.lr or the learning-rate scales.",
        )
    return result


def compiled(method: Method, config: TrainConfig, device: str) -> bool:
    """Whether the compiled kernel trains this; `train.path: compiled` insists, and says why where it cannot."""
    able = method.linear_head is not None and config.optimizer == "sgd" and device == "cpu"
    if config.path == "compiled" and not able:
        raise UnsupportedError(
            f"train.path: compiled with {method.name}, {config.optimizer}, {device}",
            "a method with a linear head, optimizer sgd, and the CPU",
            "Use train.path: auto.",
        )
    return able and config.path != "vmap"


def check_optimizer(config: TrainConfig) -> None:
    """Adam with L2 decay moves every row of the table: refused rather than approximated."""
    if config.optimizer == "adam" and config.weight_decay > 0:
        raise UnsupportedError(
            "train.optimizer: adam with train.weight_decay > 0",
            "sgd with decay, or adam without",
            "Under Adam the decay moves rows a client never touched, so an upload of touched rows is not exact.",
        )


def _steps(samples: RoundSamples, batch_size: int) -> np.ndarray:
    """Local steps per client in the round."""
    return len(samples.order) * -(-samples.n_samples() // batch_size)


def _decay(method: Method, config: TrainConfig, phases: tuple[Phase, ...], samples: RoundSamples) -> Arrays:
    """The factor of untouched rows: (1 - lr decay) per step in which their table is updated."""
    steps = _steps(samples, config.batch_size)
    factor = {name: np.ones(len(steps)) for name in method.shared_rows}
    for phase in phases if config.weight_decay else ():
        for name in factor.keys() & phase.keys():
            factor[name] = factor[name] * (1.0 - phase[name] * config.weight_decay) ** steps
    return factor


def _train_compiled(
    method: Method, config: TrainConfig, phases: tuple[Phase, ...], start: LocalStart, samples: RoundSamples
) -> LocalResult:
    assert method.linear_head is not None
    table, weight, bias = method.linear_head
    base, w, b = start.tables[table], start.private[weight].copy(), start.private[bias].copy()
    rows = np.empty((len(start.index), base.shape[1]), np.float32)
    rates = np.array([[p.get(weight, -1.0), p.get(bias, -1.0), p.get(table, -1.0)] for p in phases])
    loss = train_linear(
        base, start.index, rows, w, b, samples.row_ptr, samples.sample_ptr, samples.item, samples.label, samples.order,
        config.batch_size, rates.astype(np.float32), np.float32(config.weight_decay),
    )  # fmt: skip
    decay = _decay(method, config, phases, samples)
    return LocalResult({table: rows}, {}, {weight: w, bias: b}, decay, loss)


def _train_vmapped(
    method: Method,
    config: TrainConfig,
    phases: tuple[Phase, ...],
    start: LocalStart,
    samples: RoundSamples,
    device: str,
) -> LocalResult:
    rows = {k: v[start.index] for k, v in start.tables.items()}
    private = {k: v.copy() for k, v in start.private.items()}
    dense = {k: v.copy() for k, v in start.dense.items()}
    loss = np.zeros(len(samples.client), np.float32)
    for block in stack(samples, config.batch_size, config.block_width):
        params = gather(start, samples, block, device)
        params, losses = train_block(method, phases, config, params, block, device)
        _scatter(block, samples, params, losses, rows, dense, private, loss)
    return LocalResult(rows, dense, private, _decay(method, config, phases, samples), loss)


def gather(start: LocalStart, samples: RoundSamples, block: ClientBlock, device: str) -> Params:
    """Stacked parameters [C, ...] of a block; padding slots repeat client 0, their masks are empty."""
    slot = np.maximum(block.slot, 0)
    flat = samples.row_ptr[slot][:, None] + np.arange(block.rows.shape[1])
    flat = np.where(np.arange(block.rows.shape[1]) < block.n_rows[:, None], flat, samples.row_ptr[slot][:, None])
    stacked = {k: v[start.index[flat]] for k, v in start.tables.items()}
    stacked |= {k: v[slot] for part in (start.private, start.dense) for k, v in part.items()}
    return {k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in stacked.items()}


def _scatter(
    block: ClientBlock,
    samples: RoundSamples,
    params: Params,
    losses: torch.Tensor,
    rows: Arrays,
    dense: Arrays,
    private: Arrays,
    loss: np.ndarray,
) -> None:
    host = {k: v.cpu().numpy() for k, v in params.items()}
    real = np.flatnonzero(block.slot >= 0)
    slots = block.slot[real]
    for target in (dense, private):
        for k in target:
            target[k][slots] = host[k][real]
    for k in rows:
        for i, c in zip(real, slots):
            rows[k][samples.row_ptr[c] : samples.row_ptr[c + 1]] = host[k][i, : block.n_rows[i]]
    loss[slots] = losses.cpu().numpy()[real]


def train_block(
    method: Method,
    phases: tuple[Phase, ...],
    config: TrainConfig,
    params: Params,
    block: ClientBlock,
    device: str = "cpu",
) -> tuple[Params, Float[torch.Tensor, " C"]]:
    """All local steps of a block: each step runs the phases in turn, each with gradients at the newest values.

    Returns the trained parameters and each client's mean loss over its samples (of the first phase).
    """
    item, label, mask = (torch.from_numpy(x).to(device) for x in (block.item, block.label, block.mask))
    check_optimizer(config)
    params = {k: v.clone() if k in method.shared_rows else v for k, v in params.items()}
    adam = optimizers.adam_init() if config.optimizer == "adam" else None
    total, count = torch.zeros(len(item), device=device), mask.sum((1, 2)).clamp_min(1)
    for s in range(item.shape[1]):
        batch = Batch(item[:, s], label[:, s], mask[:, s])
        size = batch.mask.sum(1)
        for i, phase in enumerate(phases):
            grads, value = _gradients(method, params, batch, tuple(phase))
            total = total + value * size if i == 0 else total
            if adam is None:
                params = _sgd(method, params, grads, batch, phase, config.weight_decay)
            else:
                grads = _whole(method, params, grads, batch)
                params, adam = optimizers.adam(params, grads, dict(phase), adam)
    return params, total / count


def _gradients(method: Method, params: Params, batch: Batch, names: tuple[str, ...]) -> tuple[Params, torch.Tensor]:
    """Gradients of the one-client loss with respect to `names`, vectorised over clients.

    The loss sees of each row table only the rows of the batch, one per sample, [C, B, ...]: gradients of whole tables
    would be mostly zeros. `local_loss` reads tables through `batch.item` alone, so it cannot tell.
    """
    seen = {k: _rows_of(v, batch.item) if k in method.shared_rows else v for k, v in params.items()}
    moving = {k: seen[k] for k in names}
    fixed = {k: v for k, v in seen.items() if k not in moving}
    own = batch._replace(item=torch.arange(batch.item.shape[1], device=batch.item.device).expand_as(batch.item))

    def one(moving_: Params, fixed_: Params, batch_: Batch) -> torch.Tensor:
        return method.local_loss({**fixed_, **moving_}, batch_)

    return vmap(grad_and_value(one))(moving, fixed, own)


def _rows_of(table: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """[C, B, ...] from [C, A, ...]."""
    return table.flatten(0, 1)[_flat(table, item)].reshape(*item.shape, *table.shape[2:])


def _flat(table: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """Positions of [C, B] items in the table seen as [C A, ...]."""
    first = torch.arange(len(table), device=item.device) * table.shape[1]
    return (item + first[:, None]).flatten()


def _sgd(method: Method, params: Params, grads: Params, batch: Batch, phase: Phase, weight_decay: float) -> Params:
    """One SGD step; row tables, which are this block's own copies, are changed in place."""
    dense = {k: g for k, g in grads.items() if k not in method.shared_rows}
    for k in grads.keys() - dense.keys():
        if weight_decay:
            params[k].mul_(1.0 - phase[k] * weight_decay)
        flat = _flat(params[k], batch.item)
        params[k].flatten(0, 1).index_add_(0, flat, grads[k].flatten(0, 1), alpha=-phase[k])
    return optimizers.sgd(params, dense, dict(phase), weight_decay)


def _whole(method: Method, params: Params, grads: Params, batch: Batch) -> Params:
    """Gradients of whole row tables, for Adam, whose moments move rows that the batch does not have."""
    out = dict(grads)
    for k in grads.keys() & set(method.shared_rows):
        zero = torch.zeros_like(params[k].flatten(0, 1))
        added = zero.index_add(0, _flat(params[k], batch.item), grads[k].flatten(0, 1))
        out[k] = added.reshape(params[k].shape)
    return out
