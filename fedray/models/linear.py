"""The linear head on an item row, a biased matrix factorisation: y = sigmoid(w . z_i + b)."""

import torch
from jaxtyping import Bool, Float, Int

Tensor = torch.Tensor


def logits(table: Float[Tensor, "R d"], weight: Float[Tensor, " d"], bias: Float[Tensor, ""]) -> Float[Tensor, " R"]:
    """One logit per row."""
    return table @ weight + bias


def bce(logit: Float[Tensor, " B"], label: Float[Tensor, " B"], mask: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Binary cross-entropy, mean over the unmasked samples (0 where there are none).

    On logits, so a saturated sigmoid keeps its gradient; the authors' code takes the logarithm of the rounded
    probability and gets gradient 0 there.
    """
    each = torch.nn.functional.softplus(logit) - label * logit
    keep = mask.to(each.dtype)
    return (each * keep).sum() / keep.sum().clamp_min(1.0)


def batch_loss(
    table: Float[Tensor, "R d"],
    weight: Float[Tensor, " d"],
    bias: Float[Tensor, ""],
    item: Int[Tensor, " B"],
    label: Float[Tensor, " B"],
    mask: Bool[Tensor, " B"],
) -> Float[Tensor, ""]:
    """The loss of one client's batch; `item` are positions in its rows."""
    return bce(logits(table[item], weight, bias), label, mask)
