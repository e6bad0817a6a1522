"""F = a linear map of the contents side by side, without the ID row: what an item is known by before anybody had it."""

from collections.abc import Sequence

import numpy as np
import torch

from fedray.models.fusions import content, linear
from fedray.types import Arrays, Params


def init(rng: np.random.Generator, parts: Sequence[str], dim: int) -> Arrays:
    """One layer."""
    return linear(rng, "output", len(content(parts)) * dim, dim)


def fuse(params: Params, x: Params, there: Params) -> torch.Tensor:
    """See the package."""
    return torch.cat([x[k] for k in content(list(x))], dim=1) @ params["output_weight"].T + params["output_bias"]
