"""The linear head on an item row, a biased matrix factorisation: y = sigmoid(w . z_i + b), and with an item bias
as the row's last number, y = sigmoid(w . z_i[:d] + z_i[d] + b)."""

import torch
from jaxtyping import Float

Tensor = torch.Tensor


def logits(
    table: Float[Tensor, "R width"], weight: Float[Tensor, " d"], bias: Float[Tensor, ""]
) -> Float[Tensor, " R"]:
    """One logit per row."""
    d = weight.shape[0]
    plain = table[:, :d] @ weight + bias
    return plain if table.shape[1] == d else plain + table[:, d]
