"""F = W2 ReLU(W1 [D ; contents] + b1) + b2, the hidden layer twice as wide as a row (192 -> 128 -> 64 with two contents
and d 64)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from fedray.models.fusions import linear
from fedray.types import Arrays, Params


def init(rng: np.random.Generator, parts: Sequence[str], dim: int) -> Arrays:
    """Two layers."""
    return linear(rng, "hidden", len(parts) * dim, 2 * dim) | linear(rng, "output", 2 * dim, dim)


def fuse(params: Params, x: Params, there: Params) -> torch.Tensor:
    """See the package."""
    both = torch.cat(list(x.values()), dim=1)
    hidden = torch.relu(both @ params["hidden_weight"].T + params["hidden_bias"])
    return hidden @ params["output_weight"].T + params["output_bias"]


def across(params: Params, groups: torch.Tensor, x: Params, there: Params) -> torch.Tensor:
    """[G, M, dim]: `fuse` of each row [G, dim] in the place of the ID row with each item; the contents' share of the
    hidden layer is computed once for all groups."""
    weight, d = params["hidden_weight"], groups.shape[1]
    items = functional.linear(torch.cat(list(x.values()), dim=1), weight[:, d:], params["hidden_bias"])
    hidden = torch.relu(items + (groups @ weight[:, :d].T)[:, None])
    return functional.linear(hidden, params["output_weight"], params["output_bias"])
