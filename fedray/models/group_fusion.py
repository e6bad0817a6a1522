"""GFMFR's group fusion (WWW 2026): what a group of clients makes of each item's content, fitted on the server.

A group has an embedding; projected to width d, it takes the place of the ID row in one of `models.fusions`, next to the
items' projected contents. The network is fitted to the mean item table of each group's clients:

    Q_l[i] = S(A e_l + a, P_m c_im + p_m, ...)        min  mean over l, i, d of (Q_l[i] - C_l[i])^2

The paper's code walks over all tuples (l, i) in batches of 256. Here a step takes some items (or all) with all groups
that have members: the contents are projected once for all groups, and there is no copy of a content a tuple. Contents
are brought to one scale first (`models.projection.scaled`), and may be cut to their principal axes. G groups, M items.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int
from torch.nn import functional

from fedray import seeding
from fedray.models.fusions import linear
from fedray.models.projection import axes, scaled
from fedray.types import Arrays, ItemFeatures, Params

PREFIX = "group/"
EMBEDDING = "group/embedding"
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Fitting(NamedTuple):
    """epochs: over the items. batch: items a step, 0 for all. weight_decay: L2, added to the gradient."""

    epochs: int
    batch: int
    lr: float
    optimizer: Literal["sgd", "adam"]
    weight_decay: float


class GroupFusion:
    """The fusion network of a catalogue: its parameters are named `group/...`, their start's projections of content
    times `gain`. content_dim: principal axes of each content that are kept; 0: all columns as they are."""

    def __init__(
        self,
        fusion: str,
        features: ItemFeatures,
        sources: Sequence[str],
        groups: int,
        group_dim: int,
        width: int,
        content_dim: int,
        gain: float,
    ) -> None:
        self.sources = tuple(sources) or tuple(sorted(features.tables))
        self._module, self._shape, self._gain = _fusion(fusion), (groups, group_dim, width), gain
        self._content = {m: _content(features, m, content_dim) for m in self.sources}

    def init(self, seed: int) -> Arrays:
        """Xavier-normal, biases 0."""
        rng, (groups, group_dim, width) = seeding.generator(seeding.key(seed, "fusion")), self._shape
        out = {EMBEDDING: linear(rng, "embedding", group_dim, groups)["embedding_weight"]}
        out |= {PREFIX + k: v for k, v in linear(rng, "projection", group_dim, width).items()}
        for m, (table, _) in self._content.items():
            found = linear(rng, "projection", table.shape[1], width)
            out |= {f"{PREFIX}feature/{m}/{k}": v * np.float32(self._gain) for k, v in found.items()}
        made = self._module.init(rng, ("id", *self.sources), width)
        return out | {f"{PREFIX}fusion/{k}": v for k, v in made.items()}

    def fit(
        self,
        params: Arrays,
        targets: Float32[np.ndarray, "G M d"],
        members: Int[np.ndarray, " G"],
        fitting: Fitting,
        key: np.uint64,
    ) -> tuple[Arrays, Float64[np.ndarray, " epochs"]]:
        """`params` moved on from where they are, with a fresh optimiser; and each epoch's mean loss, before its steps.

        A group without members does not count, and keeps its embedding. key: of the order of the items.
        """
        there = np.flatnonzero(members)
        if not len(there):
            return params, np.zeros(0)
        own = {k: v[there] if k == EMBEDDING else v for k, v in params.items() if k.startswith(PREFIX)}
        wanted = torch.from_numpy(np.ascontiguousarray(targets[there]))

        def loss(leaves: Params, items: Items) -> torch.Tensor:
            return functional.mse_loss(self._fused(leaves, items), wanted[:, items])

        moved, losses = _descended(own, loss, lambda: _batches(wanted.shape[1], fitting, key), fitting)
        embedding = params[EMBEDDING].copy()
        embedding[there] = moved[EMBEDDING]
        return {**params, **moved, EMBEDDING: embedding}, losses

    def fused(self, params: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "G M d"]:
        """Q: each group's item table, those without members included."""
        with torch.no_grad():
            own = {k: torch.from_numpy(v) for k, v in params.items() if k.startswith(PREFIX)}
            return self._fused(own, slice(None)).numpy()

    def _fused(self, params: Params, items: "Items") -> torch.Tensor:
        groups, x, there = _projected(params, PREFIX, params[EMBEDDING]), {}, {}
        for m, (content, mask) in self._content.items():
            there[m] = mask[items]
            x[m] = _projected(params, f"group/feature/{m}/", content[items]) * there[m][:, None]
        own = {k.removeprefix("group/fusion/"): v for k, v in params.items() if k.startswith("group/fusion/")}
        return _across(self._module, own, groups, x, there)


Items = torch.Tensor | slice
Loss = Callable[[Params, Items], torch.Tensor]


def _descended(
    params: Arrays, loss: Loss, batches: Callable[[], Iterator[tuple[int, Items]]], fitting: Fitting
) -> tuple[Arrays, Float64[np.ndarray, " epochs"]]:
    """Gradient descent on all parameters as one vector: a step is a few operations, however many there are."""
    flat = torch.cat([torch.from_numpy(v).flatten() for v in params.values()])
    parts = torch.split(flat, [v.size for v in params.values()])
    leaves = {k: p.view(v.shape).detach().requires_grad_() for (k, v), p in zip(params.items(), parts)}
    step, seen = _stepper(fitting, flat), np.zeros((fitting.epochs, 2))
    for epoch, items in batches():
        value = loss(leaves, items)
        grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        step(torch.cat([g.flatten() for g in grads]))
        seen[epoch] += value.item(), 1
    return {k: v.detach().numpy().copy() for k, v in leaves.items()}, seen[:, 0] / seen[:, 1]


def _stepper(fitting: Fitting, flat: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """Moves `flat` against a gradient, in place."""
    m, v, t = torch.zeros_like(flat), torch.zeros_like(flat), 0

    def step(grad: torch.Tensor) -> None:
        nonlocal t
        t += 1
        grad.add_(flat, alpha=fitting.weight_decay)
        if fitting.optimizer == "sgd":
            flat.sub_(grad, alpha=fitting.lr)
            return
        m.lerp_(grad, 1 - BETA1)
        v.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        down = (v / (1 - BETA2**t)).sqrt_().add_(EPS)
        flat.addcdiv_(m, down, value=-fitting.lr / (1 - BETA1**t))

    return step


def _batches(n: int, fitting: Fitting, key: np.uint64) -> Iterator[tuple[int, Items]]:
    """(epoch, items) of each step; an epoch's batches are as even as they can be."""
    rng = seeding.generator(key)
    for epoch in range(fitting.epochs):
        if not 0 < fitting.batch < n:
            yield epoch, slice(None)
            continue
        for part in np.array_split(rng.permutation(n), -(-n // fitting.batch)):
            yield epoch, torch.from_numpy(part)


def _across(module: Any, params: Params, groups: torch.Tensor, x: Params, there: Params) -> torch.Tensor:
    """The fusion of each group with each item [G, M, d]: by its own short cut, or tuple by tuple."""
    if hasattr(module, "across"):
        return module.across(params, groups, x, there)
    g, (items, d) = len(groups), next(iter(x.values())).shape
    rows = {"id": groups[:, None].expand(g, items, d), **{k: v.expand(g, items, d) for k, v in x.items()}}
    flags = {"id": torch.ones(g * items, dtype=torch.bool), **{k: v.repeat(g) for k, v in there.items()}}
    return module.fuse(params, {k: v.reshape(-1, d) for k, v in rows.items()}, flags).view(g, items, d)


def _projected(params: Params, prefix: str, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, params[prefix + "projection_weight"], params[prefix + "projection_bias"])


def _content(features: ItemFeatures, name: str, content_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A feature at one scale, along its principal axes where there are more columns than asked for."""
    mask = features.present[name]
    table = scaled(features.tables[name], mask)
    if 0 < content_dim < table.shape[1]:
        found = axes(table, mask, content_dim, whiten=False)
        table = scaled(table @ found[found.any(axis=1)].T, mask)
    return torch.from_numpy(table), torch.from_numpy(mask.copy())


def _fusion(name: str) -> Any:
    from fedray.config import part_module

    return part_module("models.fusions", name)
