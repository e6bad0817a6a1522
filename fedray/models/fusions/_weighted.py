"""F = a convex combination of the parts an item has, with fixed weights."""

import torch

from fedray.types import Params


def combined(x: Params, there: Params, weights: dict[str, float]) -> torch.Tensor:
    """sum_k w_k x_k / sum of the w_k of the parts that are there; D alone where none of them is."""
    total = torch.stack([weights[k] * there[k].to(x["id"].dtype) for k in x]).sum(dim=0)[:, None]
    mixed = torch.stack([weights[k] * v for k, v in x.items()]).sum(dim=0)
    return torch.where(total > 0, mixed / total.clamp_min(1e-12), x["id"])


def leaning(x: Params, part: str) -> dict[str, float]:
    """Half the weight on one part, the rest shared equally."""
    others = max(len(x) - 1, 1)
    return {k: 0.5 if k == part else 0.5 / others for k in x}
