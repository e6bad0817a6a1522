"""F = D: what the backbone has without any content, for a router to fall back on."""

from collections.abc import Sequence

import numpy as np
import torch

from fedray.types import Arrays, Params


def init(rng: np.random.Generator, parts: Sequence[str], dim: int) -> Arrays:
    """No parameters."""
    return {}


def fuse(params: Params, x: Params, there: Params) -> torch.Tensor:
    """See the package."""
    return x["id"]
