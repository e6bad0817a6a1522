"""The private router of FedVLR: a mixture of experts whose experts are views of the same items.

a_i = W_2 ReLU(W_1 [F_1(i) ; ... ; F_J(i)] + b_1) + b_2,    w = softmax(a_i), or its mean over the items at hand
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float

from fedray.types import Params

Tensor = torch.Tensor
PARAMETERS = ("router_1_weight", "router_1_bias", "router_2_weight", "router_2_bias")
Weights = Literal["client", "item"]


def mixed(
    views: Sequence[Float[Tensor, "B d"]], params: Params, mask: Bool[Tensor, " B"], weights: Weights, twice: bool
) -> Float[Tensor, "B d"]:
    """sum_j w_j F_j, row by row; a single view is itself. Rows outside the mask have no say in a client's weights."""
    if len(views) == 1:
        return views[0]
    w = shares(torch.cat(list(views), dim=1), params, mask, weights, twice)
    return (torch.stack(list(views), dim=1) * w[..., None]).sum(dim=1)


def shares(
    both: Float[Tensor, "B Jd"], params: Params, mask: Bool[Tensor, " B"], weights: Weights, twice: bool
) -> Float[Tensor, "B J"]:
    """The weight of each view, of each item or (all rows equal) of the client; `twice`: softmax over the client's mean
    once more, as the first release has it."""
    first, shift, second, last = (params[name] for name in PARAMETERS)
    each = torch.softmax(torch.relu(both @ first.T + shift) @ second.T + last, dim=1)
    if weights == "item":
        return each
    keep = mask.to(each.dtype)[:, None]
    mean = (each * keep).sum(dim=0) / keep.sum().clamp_min(1.0)
    return (torch.softmax(mean, dim=0) if twice else mean).expand_as(each)
