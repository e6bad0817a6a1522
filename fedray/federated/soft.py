"""Soft labels: a term that pulls clients' predictions to those of their group, beside the loss on their own samples.

    loss of a batch = base + lam KL,    KL = mean_k [softplus(x_k) - q_k x_k + h_k]

x: the batch's logits (under BPR all of them, too); q_k: the probability that the client's group gives the item of
sample k; h = q log q + (1 - q) log(1 - q), so that KL is 0 where sigmoid(x) = q. lam is the round's weight, in methods
that keep ratios times a running mean of base / (KL + 1e-8) over the client's own batches, through which no gradient
goes. A client without a group trains as it would without the term.

Departure: GFMFR's code clamps probabilities at 1e-7; on logits there is no need to.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from scipy.special import entr

from fedray.data.blocks import RoundSamples
from fedray.federated.local import Soft
from fedray.federated.method import Guide
from fedray.models.losses import divergence
from fedray.types import Arrays, Broadcast

Tensor = torch.Tensor


class Labels(NamedTuple):
    """`Soft` of clients that are stacked: target and entropy of their rows or samples, the others a number each."""

    target: Float[Tensor, "C A"]
    entropy: Float[Tensor, "C A"]
    strength: Float[Tensor, " C"]
    ratio: Float[Tensor, " C"]
    ema: Float[Tensor, " C"]


def soft_of(guide: Guide | None, broadcast: Broadcast, samples: RoundSamples, private: Arrays) -> Soft | None:
    """The round's soft labels of the clients in `samples`, `private` being theirs; None if nobody has any."""
    weight = 0.0 if guide is None else guide.weight(broadcast.round)
    if guide is None or weight <= 0:
        return None
    group = groups_of(broadcast.params[guide.group], samples.client)
    if not (group >= 0).any():
        return None
    q = broadcast.params[guide.preference]
    place = np.repeat(np.maximum(group, 0), samples.n_rows()), samples.rows
    return Soft(
        q[place],
        entropy(q)[place],
        np.where(group >= 0, weight, 0.0).astype(np.float32),
        private[guide.ratio] if guide.ratio else np.full(len(group), np.nan, np.float32),
        np.float32(guide.ema if guide.ratio else -1.0),
    )


def groups_of(group: Int[np.ndarray, " N"], client: Int[np.ndarray, " C"]) -> Int[np.ndarray, " C"]:
    """The group of each client, -1 for one that has none or that the array does not know."""
    known = client < len(group)
    found = np.full(len(client), -1, np.int64)
    found[known] = group[client[known]]
    return found


def entropy(q: Float32[np.ndarray, "G M"]) -> Float32[np.ndarray, "G M"]:
    """q log q + (1 - q) log(1 - q), 0 at both ends."""
    wide = q.astype(np.float64)
    found: np.ndarray = -(entr(wide) + entr(1.0 - wide)).astype(np.float32)
    return found


def stacked(soft: Soft, rows: Int[np.ndarray, "C A"], slot: Int[np.ndarray, " C"], device: str) -> Labels:
    """The labels of the clients at places `slot`, whose rows are at `rows`."""
    ema = np.full(len(slot), soft.ema)
    parts = soft.target[rows], soft.entropy[rows], soft.strength[slot], soft.ratio[slot], ema
    return Labels(*(torch.from_numpy(v).to(device) for v in parts))


def joint(
    base: Float[Tensor, ""], logit: Float[Tensor, " B"], mask: Bool[Tensor, " B"], labels: Labels, first: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(loss, ratio as it is now) of one client's batch. The ratio moves in the `first` phase of a step."""
    term = divergence(logit, labels.target, labels.entropy, mask)
    on = (labels.strength > 0) & mask.any()
    ratio = torch.where(on, moved(labels, base.detach(), term.detach()), labels.ratio) if first else labels.ratio
    strength = labels.strength * torch.where(labels.ema >= 0, ratio, 1.0)
    return base + torch.where(on, strength, 0.0) * term, ratio


def moved(labels: Labels, base: Float[Tensor, ""], term: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The running mean of base / term after one more batch. A term within rounding of 0 is none less than 0."""
    now = base / (term.clamp_min(0.0) + 1e-8)
    mean = torch.where(labels.ratio.isnan(), now, labels.ema * labels.ratio + (1.0 - labels.ema) * now)
    return torch.where(labels.ema >= 0, mean, labels.ratio)
