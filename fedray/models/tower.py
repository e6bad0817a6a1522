"""Hidden layers on [user vector ; item row], with a product branch where the vectors are wider than the first layer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float

Tensor = torch.Tensor


def logits(
    rows: Float[Tensor, "R width"], user: Float[Tensor, " width"], params: dict[str, Tensor], layers: Sequence[str]
) -> Float[Tensor, " R"]:
    """One logit per row. `layers`: names in `params` of A, B, b_1 (the first layer on user and item), then weight and
    bias of each further layer, then the output's w and b."""
    a, b, bias, *later, w, out = (params[k] for k in layers)
    d = b.shape[1]
    h = torch.relu(rows[:, :d] @ b.T + (a @ user[:d] + bias))
    for weight, shift in zip(later[::2], later[1::2]):
        h = torch.relu(h @ weight.T + shift)
    y = h @ w[: h.shape[1]] + out
    return y if rows.shape[1] == d else y + (rows[:, d:] * user[d:]) @ w[h.shape[1] :]
