"""FedRAP: Li et al., ICLR 2024 (arXiv 2301.09109), as in the authors' own code: no user embedding, no hidden layer.

    y_ui = sigmoid(w_u . (P_u[i] + E[i]) + b_u)
    loss = BCE - lambda * mean (P_u[B] - E[B])^2 + mu * mean |E[B]|        B: the rows of the batch, with repetition

E is shared and averaged; P_u (the personal table), w_u and b_u never leave the client. A client ranks with its own
P_u, w_u, b_u and the aggregated E. Paper -> here: lambda `independence`, mu `sparsity`, lr_network `lr`, lr_args
`item_lr`, the 0.97 a round `lr_decay`, the 0.95 after each mini-batch `step_decay` (of all three rates).

Departures. The paper's tanh schedule of lambda and mu is computed in the public code but never read; here it is
`schedule: tanh`, and `constant`, what the code does, the default. A client does not stop early within a round when its
loss hardly moves. All P_u start from one common draw (`personal_init_std`), as the code's copies of one model do. By
default that draw is smaller (0.1; theirs 1) and P_u moves at a thousandth of E's rate (`personal_lr_scale`; theirs is
E's): with theirs, the generated catalogue is ranked no better than at random under `clean`.
"""

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from fedray import seeding
from fedray.federated.aggregate import weighted_mean
from fedray.federated.kernels.additive import additive_kernel
from fedray.federated.kernels.routed_additive import routed_additive_kernel
from fedray.federated.local import Phase
from fedray.federated.method import Batch, Method
from fedray.methods.backbones.fcf import (
    BIAS,
    TABLE,
    WEIGHT,
    LinearConfig,
    common_head,
    decayed,
    item_table,
    linear_predictor,
)
from fedray.methods.context import Context
from fedray.models import linear
from fedray.models.losses import LOSSES
from fedray.types import Arrays, Params

PERSONAL, INDEPENDENCE, SPARSITY = "personal_item_embedding", "independence", "sparsity"
TERMS = (INDEPENDENCE, SPARSITY)


class Config(LinearConfig):
    """lr is that of the head."""

    name: Literal["fedrap"] = "fedrap"
    lr: float = Field(0.5, ge=0, description="learning rate of the private head")
    item_lr: float = Field(200.0, ge=0, description="learning rate of both item tables")
    personal_lr_scale: float = Field(
        0.001, ge=0, description="times item_lr, for the personal table: it is not averaged, so less will do"
    )
    lr_decay: float = Field(0.97, gt=0, le=1, description="every learning rate is multiplied by it after each round")
    step_decay: float = Field(0.95, gt=0, le=1, description="and by this after each local step of a round")
    independence: float = Field(0.1, ge=0, description="lambda: pushes the personal table away from the shared one")
    sparsity: float = Field(0.1, ge=0, description="mu: keeps the shared table small")
    sparsity_norm: Literal["l1", "l2"] = "l1"
    schedule: Literal["constant", "tanh"] = Field(
        "constant", description="of lambda and mu; tanh: times tanh(round/10)"
    )
    personal_init_std: float = Field(0.1, ge=0, description="standard deviation of the personal tables' common start")


def make(config: Config, context: Context) -> Method:
    """FedRAP over `context.n_items` items."""
    squared, loss = config.sparsity_norm == "l2", LOSSES[context.train.loss]
    own = config.item_lr * config.personal_lr_scale
    rates: Phase = {WEIGHT: config.lr, BIAS: config.lr, TABLE: config.item_lr, PERSONAL: own}

    def init_private_rows(seed: int) -> Arrays:
        rng = seeding.generator(seeding.key(seed, "init_client", client=-1))
        draw = rng.standard_normal((context.n_items, config.dim), dtype=np.float32)
        return {PERSONAL: draw * np.float32(config.personal_init_std)}

    def coefficients(round_: int) -> dict[str, float]:
        ramp = math.tanh(round_ / 10) if config.schedule == "tanh" else 1.0
        return {INDEPENDENCE: config.independence * ramp, SPARSITY: config.sparsity * ramp}

    def logits(params: Params, batch: Batch) -> torch.Tensor:
        return _logits(params[TABLE][batch.item], params[PERSONAL][batch.item], params)

    def local_loss(params: Params, batch: Batch) -> torch.Tensor:
        e, p = params[TABLE][batch.item], params[PERSONAL][batch.item]
        return (
            loss(logits(params, batch), batch.label, batch.mask)
            - params[INDEPENDENCE] * _mean((p - _rows(e, p)) ** 2, batch.mask)
            + params[SPARSITY] * _mean(_rows(e, p) ** 2 if squared else _rows(e, p).abs(), batch.mask)
        )

    return Method(
        name="fedrap",
        init_server=lambda seed: {TABLE: item_table(seed, config, context)},
        init_clients=lambda seed, clients: common_head(seed, len(clients), config.dim),
        shared_rows=(TABLE,),
        shared_dense=(),
        private=(WEIGHT, BIAS),
        local_loss=local_loss,
        phases=lambda round_: (decayed(rates, config, round_),),
        weight=lambda n_samples: (n_samples > 0).astype(np.int64),
        server_step=weighted_mean,
        score=lambda params: _logits(params[TABLE], params[PERSONAL], params),
        private_rows=(PERSONAL,),
        init_private_rows=init_private_rows,
        coefficients=coefficients,
        step_decay=config.step_decay,
        predictor=None if config.item_bias else linear_predictor(),
        logits=logits,
        kernel=additive_kernel(TABLE, PERSONAL, WEIGHT, BIAS, TERMS, squared),
        routed=lambda routing: routed_additive_kernel(routing, PERSONAL, WEIGHT, BIAS, TERMS, squared),
    )


def _rows(shared: torch.Tensor, personal: torch.Tensor) -> torch.Tensor:
    """E without its item bias."""
    return shared[:, : personal.shape[1]]


def _logits(shared: torch.Tensor, personal: torch.Tensor, params: Params) -> torch.Tensor:
    rows = _rows(shared, personal) + personal
    both = torch.cat([rows, shared[:, personal.shape[1] :]], dim=1)
    return linear.logits(both, params[WEIGHT], params[BIAS])


def _mean(each: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Over the unmasked samples and the coordinates."""
    keep = mask.to(each.dtype)
    return (each.mean(dim=1) * keep).sum() / keep.sum().clamp_min(1.0)
