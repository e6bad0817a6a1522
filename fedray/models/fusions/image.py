"""Half the weight on the image, the rest shared by the other parts."""

from collections.abc import Sequence

import numpy as np
import torch

from fedray.models.fusions._weighted import combined, leaning
from fedray.types import Arrays, Params


def init(rng: np.random.Generator, parts: Sequence[str], dim: int) -> Arrays:
    """No parameters."""
    return {}


def fuse(params: Params, x: Params, there: Params) -> torch.Tensor:
    """See the package."""
    return combined(x, there, leaning(x, "image"))
