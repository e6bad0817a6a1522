"""Local training of many clients at once: the vmapped one-client loss (any method), or a compiled kernel.

Both take the same `LocalStart`, the same ragged samples and return the same `LocalResult`, row for row. A client's
result is a function of its own inputs alone.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch.func import grad_and_value, vmap

from fedray.config import TrainConfig
from fedray.data.blocks import ClientBlock, RoundSamples, stack
from fedray.errors import UnsupportedError
from fedray.federated import optimizers, soft
from fedray.federated.local import LocalPlan, LocalResult, LocalStart, Phase
from fedray.federated.method import Batch, Method
from fedray.federated.soft import Labels
from fedray.types import Arrays, Params


def train_clients(
    method: Method,
    config: TrainConfig,
    round_: int,
    start: LocalStart,
    samples: RoundSamples,
    device: str = "cpu",
) -> LocalResult:
    """One round of local training. Whether what came of it is of any use is not looked at here (see `admission`)."""
    plan = plan_of(method, config, round_)
    if compiled(method, config, device):
        assert method.kernel is not None
        result = method.kernel.train(plan, start, samples)
    else:
        result = _train_vmapped(method, config, plan, start, samples, device)
    moving = tuple(k for k in method.row_tables if k not in method.fixed)
    decay, toward = untouched(moving, plan, samples)
    decay |= {k: np.ones(len(samples.client)) for k in method.fixed}
    return replace(result, decay=decay, toward=toward, private=private_of(method, start, result))


def private_of(method: Method, start: LocalStart, result: LocalResult) -> Arrays:
    """The private parameters now: those that no update knows as they were, and the ratio of the soft labels."""
    private = {**start.private, **result.private}
    if method.guide is not None and method.guide.ratio and start.soft is not None:
        assert result.ratio is not None
        private[method.guide.ratio] = result.ratio
    return private


def plan_of(method: Method, config: TrainConfig, round_: int) -> LocalPlan:
    """The round's local schedule."""
    private = config.weight_decay if config.private_weight_decay is None else config.private_weight_decay
    return LocalPlan(
        method.phases(round_), config.batch_size, config.loss, config.weight_decay, private, method.step_decay,
        method.pull, method.coefficients(round_), method.fixed,
    )  # fmt: skip


def compiled(method: Method, config: TrainConfig, device: str) -> bool:
    """Whether the compiled kernel trains this; `train.path: compiled` insists, and says why where it cannot."""
    able = method.kernel is not None and config.optimizer == "sgd" and device == "cpu"
    if config.path == "compiled" and not able:
        raise UnsupportedError(
            f"train.path: compiled with {method.name}, {config.optimizer}, {device}",
            "a method with a compiled kernel, optimizer sgd, and the CPU",
            "Use train.path: auto.",
        )
    return able and config.path != "vmap"


def check_optimizer(config: TrainConfig, method: Method) -> None:
    """Adam with L2 decay or a pull moves every row of the table: refused rather than approximated."""
    if config.optimizer == "adam" and any(method.pull.values()):
        raise UnsupportedError(
            f"train.optimizer: adam with {method.name}",
            "sgd: its pull to the client's table from the server is a step of SGD",
            "Use train.optimizer: sgd, or set backbone.reg: 0.",
        )
    if config.optimizer == "adam" and method.fixed:
        raise UnsupportedError(
            f"train.optimizer: adam with {method.name}",
            "sgd: its clients upload summed gradients of tables that do not move",
            "Use train.optimizer: sgd.",
        )
    if config.optimizer == "adam" and config.weight_decay:
        raise UnsupportedError(
            "train.optimizer: adam with train.weight_decay > 0",
            "sgd with decay, or adam without",
            "Under Adam the decay moves rows a client never touched, so an upload of touched rows is not exact.",
        )
    if config.optimizer == "adam" and config.private_weight_decay:
        raise UnsupportedError(
            "train.optimizer: adam with train.private_weight_decay > 0",
            "sgd with decay, or adam without",
            "The step of Adam has no decay. Set train.private_weight_decay: 0.",
        )


def _steps(samples: RoundSamples, batch_size: int) -> np.ndarray:
    """Local steps per client in the round."""
    return len(samples.order) * -(-samples.n_samples() // batch_size)


def untouched(tables: tuple[str, ...], plan: LocalPlan, samples: RoundSamples) -> tuple[Arrays, Arrays]:
    """What became of a row z that its client did not touch: decay[table][c] z + toward[table][c] target.

    Every update of its table multiplies z by 1 - lr (decay + pull) and adds lr pull target.
    """
    steps = _steps(samples, plan.batch_size)
    decay, toward = {k: np.ones(len(steps)) for k in tables}, {k: np.zeros(len(steps)) for k in plan.pull}
    if not plan.decay and not plan.pull:
        return decay, toward
    for s in range(int(steps.max(initial=0))):
        going = steps > s
        for phase in plan.phases:
            for k in decay.keys() & phase.keys():
                lr, pull = phase[k] * plan.step_decay**s, plan.pull.get(k, 0.0)
                keep = np.where(going, 1.0 - lr * (plan.decay + pull), 1.0)
                decay[k] = decay[k] * keep
                if pull:
                    toward[k] = toward[k] * keep + np.where(going, lr * pull, 0.0)
    return decay, toward


def _train_vmapped(
    method: Method, config: TrainConfig, plan: LocalPlan, start: LocalStart, samples: RoundSamples, device: str
) -> LocalResult:
    rows = {k: start.rows(k) for k in start.tables}
    private = {k: v.copy() for k, v in start.private.items()}
    dense = {k: v.copy() for k, v in start.dense.items()}
    loss, ratio = np.zeros(len(samples.client), np.float32), start.labels(len(samples.client)).ratio
    for block in stack(samples, config.batch_size, config.block_width):
        params, targets = gather(start, samples, block, device)
        labels = None
        if start.soft is not None:
            labels = soft.stacked(start.soft, _places(samples, block), np.maximum(block.slot, 0), device)
        params, losses, ratios = train_block(method, plan, config, params, block, device, targets, labels)
        _scatter(block, samples, params, losses, rows, dense, private, loss)
        if ratios is not None:
            ratio[block.slot[block.slot >= 0]] = ratios.cpu().numpy()[block.slot >= 0]
    return LocalResult(rows, dense, private, {}, loss, ratio=ratio)


def gather(start: LocalStart, samples: RoundSamples, block: ClientBlock, device: str = "cpu") -> tuple[Params, Params]:
    """Stacked parameters [C, ...] of a block, and the targets of its rows; padding slots repeat client 0, their masks
    are empty."""
    slot, flat = np.maximum(block.slot, 0), _places(samples, block)
    stacked = {k: v[start.index[k][flat]] for k, v in start.tables.items()}
    stacked |= {k: v[slot] for part in (start.private, start.dense) for k, v in part.items()}
    targets = {k: v[flat] for k, v in start.target.items()}
    return _tensors(stacked, device), _tensors(targets, device)


def _places(samples: RoundSamples, block: ClientBlock) -> np.ndarray:
    """Where the rows of a block's clients are among those of all [C, A]; padding is at a client's first."""
    first, along = samples.row_ptr[np.maximum(block.slot, 0)][:, None], np.arange(block.rows.shape[1])
    return first + np.where(along < block.n_rows[:, None], along, 0)


def _tensors(arrays: Arrays, device: str) -> Params:
    return {k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in arrays.items()}


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
    plan: LocalPlan,
    config: TrainConfig,
    params: Params,
    block: ClientBlock,
    device: str = "cpu",
    targets: Params | None = None,
    labels: Labels | None = None,
) -> tuple[Params, Float[torch.Tensor, " C"], Float[torch.Tensor, " C"] | None]:
    """All local steps of a block: each step runs the phases in turn, each with gradients at the newest values.

    Returns the trained parameters, each client's mean loss over its samples (of the first phase), and the ratios of
    its soft labels if there are any.
    """
    item, label, mask = (torch.from_numpy(x).to(device) for x in (block.item, block.label, block.mask))
    check_optimizer(config, method)
    params = {k: v.clone() if k in method.row_tables else v for k, v in params.items()}
    steps = {k: torch.zeros_like(params[k]) for k in plan.fixed}
    adam = optimizers.adam_init() if config.optimizer == "adam" else None
    total, count = torch.zeros(len(item), device=device), mask.sum((1, 2)).clamp_min(1)
    coefficients = {k: torch.tensor(v, dtype=torch.float32, device=device) for k, v in plan.coefficients.items()}
    for s in range(item.shape[1]):
        batch = Batch(item[:, s], label[:, s], mask[:, s])
        size = batch.mask.sum(1)
        for i, phase in enumerate(plan.phases):
            rates = {k: lr * plan.step_decay**s for k, lr in phase.items()}
            if labels is None:
                grads, value = _gradients(method, params, batch, tuple(phase), coefficients)
            else:
                grads, value, ratio = _toward(method, params, batch, tuple(phase), coefficients, labels, i == 0)
                labels = labels._replace(ratio=ratio)
            total = total + value * size if i == 0 else total
            if adam is None:
                _sum_steps(steps, {k: grads.pop(k) for k in plan.fixed if k in grads}, batch, rates)
                params = _sgd(method, params, grads, batch, rates, plan, targets or {})
            else:
                grads = _whole(method, params, grads, batch)
                params, adam = optimizers.adam(params, grads, rates, adam)
    return {**params, **steps}, total / count, None if labels is None else labels.ratio


def _sum_steps(steps: Params, grads: Params, batch: Batch, rates: Phase) -> None:
    """Add the steps that the rows of fixed tables would make, in place."""
    for k, grad in grads.items():
        steps[k].flatten(0, 1).index_add_(0, _flat(steps[k], batch.item), grad.flatten(0, 1), alpha=-rates[k])


def _gradients(
    method: Method, params: Params, batch: Batch, names: tuple[str, ...], coefficients: Params
) -> tuple[Params, torch.Tensor]:
    """Gradients of the one-client loss with respect to `names`, vectorised over clients.

    The loss sees of each row table only the rows of the batch, one per sample, [C, B, ...]: gradients of whole tables
    would be mostly zeros. `local_loss` reads tables through `batch.item` alone, so it cannot tell.
    """

    def one(moving: Params, fixed: Params, batch_: Batch) -> torch.Tensor:
        return method.local_loss({**fixed, **moving, **coefficients}, batch_)

    return vmap(grad_and_value(one))(*_seen(method, params, batch, names))


def _seen(method: Method, params: Params, batch: Batch, names: tuple[str, ...]) -> tuple[Params, Params, Batch]:
    """The parameters `names` and the others as a step sees them, and the batch in places of those rows."""
    seen = {k: _rows_of(v, batch.item) if k in method.row_tables else v for k, v in params.items()}
    moving = {k: seen[k] for k in names}
    fixed = {k: v for k, v in seen.items() if k not in moving}
    own = batch._replace(item=torch.arange(batch.item.shape[1], device=batch.item.device).expand_as(batch.item))
    return moving, fixed, own


def _toward(
    method: Method,
    params: Params,
    batch: Batch,
    names: tuple[str, ...],
    coefficients: Params,
    labels: Labels,
    first: bool,
) -> tuple[Params, torch.Tensor, torch.Tensor]:
    """`_gradients` of the loss with soft labels, and the ratios as they are now."""
    logits = method.logits
    assert logits is not None

    def one(moving: Params, fixed: Params, batch_: Batch, labels_: Labels) -> tuple[torch.Tensor, torch.Tensor]:
        given = {**fixed, **moving, **coefficients}
        return soft.joint(method.local_loss(given, batch_), logits(given, batch_), batch_.mask, labels_, first)

    target, entropy = (_rows_of(x, batch.item) for x in (labels.target, labels.entropy))
    here = labels._replace(target=target, entropy=entropy)
    grads, (value, ratio) = vmap(grad_and_value(one, has_aux=True))(*_seen(method, params, batch, names), here)
    return grads, value, ratio


def _rows_of(table: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """[C, B, ...] from [C, A, ...]."""
    return table.flatten(0, 1)[_flat(table, item)].reshape(*item.shape, *table.shape[2:])


def _flat(table: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """Positions of [C, B] items in the table seen as [C A, ...]."""
    first = torch.arange(len(table), device=item.device) * table.shape[1]
    return (item + first[:, None]).flatten()


def _sgd(
    method: Method, params: Params, grads: Params, batch: Batch, rates: Phase, plan: LocalPlan, targets: Params
) -> Params:
    """One SGD step; row tables, which are this block's own copies, are changed in place."""
    tables = grads.keys() & set(method.row_tables)
    for k in tables:
        if pull := plan.pull.get(k, 0.0):
            keep = 1.0 - rates[k] * (plan.decay + pull)
            params[k].mul_(keep).add_(targets[k], alpha=rates[k] * pull)
        elif plan.decay:
            params[k].mul_(1.0 - rates[k] * plan.decay)
        flat = _flat(params[k], batch.item)
        params[k].flatten(0, 1).index_add_(0, flat, grads[k].flatten(0, 1), alpha=-rates[k])
    for names, decay in ((set(method.private), plan.private_decay), (set(method.shared_dense), plan.decay)):
        params = optimizers.sgd(params, {k: g for k, g in grads.items() if k in names}, dict(rates), decay)
    return params


def _whole(method: Method, params: Params, grads: Params, batch: Batch) -> Params:
    """Gradients of whole row tables, for Adam, whose moments move rows that the batch does not have."""
    out = dict(grads)
    for k in grads.keys() & set(method.row_tables):
        zero = torch.zeros_like(params[k].flatten(0, 1))
        added = zero.index_add(0, _flat(params[k], batch.item), grads[k].flatten(0, 1))
        out[k] = added.reshape(params[k].shape)
    return out
