"""F = W [g_1 * x_1 ; g_2 * x_2 ; ...] + b with a gate g_k = sigmoid(W_k x_k + b_k) a part."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from fedray.models.fusions import linear
from fedray.types import Arrays, Params


def init(rng: np.random.Generator, parts: Sequence[str], dim: int) -> Arrays:
    """A gate a part, and the layer that joins them."""
    gates = {k: v for part in parts for k, v in linear(rng, f"gate_{part}", dim, dim).items()}
    return gates | linear(rng, "output", len(parts) * dim, dim)


def fuse(params: Params, x: Params, there: Params) -> torch.Tensor:
    """See the package."""
    return torch.cat(_gated(params, x), dim=1) @ params["output_weight"].T + params["output_bias"]


def across(params: Params, groups: torch.Tensor, x: Params, there: Params) -> torch.Tensor:
    """See the package: no gate reads another part, so a tuple is the sum of its group's share and its item's."""
    weight, d = params["output_weight"], groups.shape[1]
    items = functional.linear(torch.cat(_gated(params, x), dim=1), weight[:, d:], params["output_bias"])
    return items + (_gated(params, {"id": groups})[0] @ weight[:, :d].T)[:, None]


def _gated(params: Params, x: Params) -> list[torch.Tensor]:
    return [v * torch.sigmoid(v @ params[f"gate_{k}_weight"].T + params[f"gate_{k}_bias"]) for k, v in x.items()]
