"""Each item's parts attend to each other (one head); F is a linear map of the mean of the answers, over the parts that
the item has."""

from collections.abc import Sequence

import numpy as np
import torch

from fedray.models.fusions import linear
from fedray.types import Arrays, Params


def init(rng: np.random.Generator, parts: Sequence[str], dim: int) -> Arrays:
    """Query, key, value and output."""
    names = ("query", "key", "value", "output")
    return {k: v for name in names for k, v in linear(rng, name, dim, dim).items()}


def fuse(params: Params, x: Params, there: Params) -> torch.Tensor:
    """See the package."""
    tokens = torch.stack(list(x.values()), dim=1)
    mask = torch.stack([there[k] for k in x], dim=1)
    query, key, value = (
        tokens @ params[f"{name}_weight"].T + params[f"{name}_bias"] for name in ("query", "key", "value")
    )
    likeness = query @ key.transpose(1, 2) / tokens.shape[2] ** 0.5
    weights = torch.softmax(likeness.masked_fill(~mask[:, None, :], -torch.inf), dim=2)
    keep = mask.to(tokens.dtype)[:, :, None]
    mean = (weights @ value * keep).sum(dim=1) / keep.sum(dim=1)
    return mean @ params["output_weight"].T + params["output_bias"]
