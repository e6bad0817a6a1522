"""F = D + the projected contents."""

from collections.abc import Sequence

import numpy as np
import torch

from fedray.types import Arrays, Params


def init(rng: np.random.Generator, parts: Sequence[str], dim: int) -> Arrays:
    """No parameters."""
    return {}


def fuse(params: Params, x: Params, there: Params) -> torch.Tensor:
    """See the package."""
    return torch.stack(list(x.values())).sum(dim=0)


def across(params: Params, groups: torch.Tensor, x: Params, there: Params) -> torch.Tensor:
    """See the package."""
    return groups[:, None] + torch.stack(list(x.values())).sum(dim=0)
