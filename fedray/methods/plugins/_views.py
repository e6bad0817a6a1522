"""What a server makes of its items' content: projections, fused views, and the way back from the views' gradients to
the ID table and the operators. Clients are sent views and nothing else of it: there, a `Views` made of the features'
names says what goes down, and raises `ContentError` if it is asked for more."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fedray import seeding
from fedray.errors import ContentError, UnknownNameError, UnsupportedError
from fedray.models.fusions import linear
from fedray.models.projection import Start, axes, scaled
from fedray.types import Arrays, FeatureNames, ItemFeatures, Params

PREFIX = "view/"


class Views:
    """The views of a catalogue: names in `views`, made of the ID row and the features in `sources`.

    The parameters of projections and operators are `operator/<part>/<name>` among the server's. residual: views with
    layers of their own are added to the ID row, and their last layer starts at `gain` times its start, too. beside:
    the backbone adds the ID row itself, so residual views leave it out. start: of the projections, see
    `models.projection`.
    """

    def __init__(
        self,
        views: Sequence[str],
        sources: Sequence[str],
        features: ItemFeatures | FeatureNames | None,
        width: int,
        gain: float,
        residual: bool = False,
        start: Start = "random",
        beside: bool = False,
    ) -> None:
        self.names, self.width, self._gain, self._residual = tuple(views), width, gain, residual
        self._start, self._beside = start, beside
        self._features = with_features(features, sources)
        self.sources = tuple(sources) or self._features.names
        self._modules = {v: _fusion(v) for v in views}

    @property
    def tables(self) -> tuple[str, ...]:
        """What the views are called where they go down."""
        return tuple(PREFIX + v for v in self.names)

    def init(self, seed: int) -> Arrays:
        """Projections (their weights times `gain`) and operators at their start."""
        rng = seeding.generator(seeding.key(seed, "method"))
        out: Arrays = {}
        tables = content_of(self._features).tables
        for m in self.sources:
            found = linear(rng, "projection", tables[m].shape[1], self.width)
            if self._start != "random":
                table, mask = (x.numpy() for x in self._content[m])
                found["projection_weight"] = axes(table, mask, self.width, self._start == "whitened")
            out |= {f"operator/{m}/{k}": v * np.float32(self._gain) for k, v in found.items()}
        for v, module in self._modules.items():
            made = module.init(rng, ("id", *self.sources), self.width)
            quiet = np.float32(self._gain if self._residual else 1.0)
            out |= {f"operator/{v}/{k}": a * quiet if k == "output_weight" else a for k, a in made.items()}
        return out

    def make(self, params: Mapping[str, np.ndarray], ids: np.ndarray, without: Sequence[str] = ()) -> Arrays:
        """Table name -> view [M, width], from the server's parameters and the ID table; as if no item had the features
        in `without`."""
        with torch.no_grad():
            found = self._fused(_tensors(params), torch.from_numpy(np.ascontiguousarray(ids)), without)
        return {k: v.numpy() for k, v in found.items()}

    def ablations(self, sent: Callable[[Arrays, Sequence[str]], Arrays]) -> Callable[[Arrays], Mapping[str, Arrays]]:
        """`Method.ablations` of a method that sends `sent(params, parts left out)`: without the ID rows, without each
        feature where there are several, and without any."""
        each = {f"without_{m}": (m,) for m in self.sources} if len(self.sources) > 1 else {}
        parts = {"without_id": ("id",), **each, "without_content": self.sources}
        return lambda params: {name: sent(params, without) for name, without in parts.items()}

    def back(self, params: Mapping[str, np.ndarray], ids: np.ndarray, steps: Arrays) -> tuple[np.ndarray, Arrays]:
        """The steps of the views [M, width], as the chain rule hands them on: of the ID table, and of each operator's
        parameters."""
        leaves = {k: v.requires_grad_() for k, v in _tensors(params).items()}
        table = torch.tensor(ids, requires_grad=True)
        made = self._fused(leaves, table)
        towards = [torch.from_numpy(steps[k].astype(np.float32)) for k in made]
        found = torch.autograd.grad(list(made.values()), [table, *leaves.values()], towards, allow_unused=True)
        whole = [torch.zeros_like(x) if g is None else g for x, g in zip([table, *leaves.values()], found)]
        return whole[0].numpy(), {k: g.numpy() for k, g in zip(leaves, whole[1:])}

    def _fused(self, params: Params, ids: torch.Tensor, without: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        x, there = {"id": ids}, {"id": torch.ones(len(ids), dtype=torch.bool)}
        for m, (content, present) in self._content.items():
            mask = torch.zeros_like(present) if m in without else present
            projected = content @ params[f"operator/{m}/projection_weight"].T + params[f"operator/{m}/projection_bias"]
            x[m], there[m] = projected * mask[:, None], mask
        found, base = {}, torch.zeros_like(ids) if self._beside else ids
        for v, module in self._modules.items():
            own = _under(params, f"operator/{v}/")
            if self._residual and own:
                found[PREFIX + v] = module.fuse(own, x, there) + base
            else:
                found[PREFIX + v] = module.fuse(own, {**x, "id": base} if self._residual else x, there)
        return found

    @cached_property
    def _content(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Each feature at one scale, and which items have it."""
        features = content_of(self._features)
        tables, present = features.tables, features.present
        return {
            m: (torch.from_numpy(scaled(tables[m], present[m])), torch.from_numpy(present[m].copy()))
            for m in self.sources
        }


def with_features(features: ItemFeatures | FeatureNames | None, sources: Sequence[str]) -> ItemFeatures | FeatureNames:
    """What the data have; an error where they lack one of the sources."""
    known = features.names if features else ()
    if features is None or not known:
        raise UnsupportedError(
            "the data have no item features", "at least one", "Give the job `encoders`, or data with features."
        )
    missing = [m for m in sources if m not in known]
    if missing:
        raise UnknownNameError(f"feature {missing[0]!r} is not there", f"one of {', '.join(known)}")
    return features


def content_of(features: ItemFeatures | FeatureNames) -> ItemFeatures:
    """The tables themselves, which a client does not have."""
    if isinstance(features, FeatureNames):
        raise ContentError(
            f"a client was asked for the content of its items ({', '.join(features.names)}), and has the names alone",
            "views, as the server's broadcast brings them",
            "Make starts and views where the features are: in the entrypoint or the driver.",
        )
    return features


def _fusion(name: str) -> Any:
    from fedray.config import part_module

    return part_module("models.fusions", name)


def _tensors(params: Mapping[str, np.ndarray]) -> Params:
    return {k: torch.tensor(v) for k, v in params.items() if k.startswith("operator/")}


def _under(params: Params, prefix: str) -> Params:
    return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
