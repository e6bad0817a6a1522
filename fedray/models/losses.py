"""Losses of one client's batch, from logits."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float

Tensor = torch.Tensor
BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logit [B], label [B], mask [B]) -> mean loss."""


def bce(logit: Float[Tensor, " B"], label: Float[Tensor, " B"], mask: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Binary cross-entropy, mean over the unmasked samples (0 where there are none).

    On logits, so a saturated sigmoid keeps its gradient; the authors' code takes the logarithm of the rounded
    probability and gets gradient 0 there.
    """
    return _mean(torch.nn.functional.softplus(logit) - label * logit, mask)


def bpr(logit: Float[Tensor, " B"], label: Float[Tensor, " B"], mask: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Bayesian personalised ranking (Rendle et al., 2009): mean over pairs of -log sigmoid(positive - negative).

    Places 2k and 2k + 1 are a pair, the positive first; `label` says the same and is not read.
    """
    pair = logit[: len(logit) // 2 * 2].reshape(-1, 2)
    return _mean(torch.nn.functional.softplus(pair[:, 1] - pair[:, 0]), mask[: len(logit) // 2 * 2 : 2])


def divergence(
    logit: Float[Tensor, " B"], target: Float[Tensor, " B"], entropy: Float[Tensor, " B"], mask: Bool[Tensor, " B"]
) -> Float[Tensor, ""]:
    """KL(q || sigmoid(x)), mean over the unmasked samples; `entropy` is q log q + (1 - q) log(1 - q)."""
    return _mean(torch.nn.functional.softplus(logit) - target * logit + entropy, mask)


def _mean(each: Tensor, mask: Tensor) -> Tensor:
    keep = mask.to(each.dtype)
    return (each * keep).sum() / keep.sum().clamp_min(1.0)


LOSSES: dict[str, BatchLoss] = {"bce": bce, "bpr": bpr}
