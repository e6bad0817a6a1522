"""F = W2 ReLU(W1 [D ; contents] + b1) + b2, the hidden layer twice as wide as a row (192 -> 128 -> 64 with two contents
and d 64)."""

from collections.abc import Sequence

import numpy as np
import torch

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
