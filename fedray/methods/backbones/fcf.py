"""FCF: federated collaborative filtering as in Ammad-ud-din et al., 2019 (arXiv 1901.09888), in the form that the
federated recommendation papers use: shared item table E [M, d], private linear head (w_u [d], b_u), joint SGD steps.

    y_ui = sigmoid(w_u . E[i] + b_u),    binary cross-entropy,    E <- mean of the clients' E

With d = 32 it is the "FedMF" of the PFedRec tables. The head is the user vector; its bias is private here
(the authors of PFedRec upload it by oversight). With `item_bias` a row of E carries b_i as its last number, trained
and shared like the rest: y_ui = sigmoid(w_u . E[i] + b_i + b_u).
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field

from fedray import seeding
from fedray.config import BackboneConfig
from fedray.federated.aggregate import weighted_mean
from fedray.federated.kernels.linear import linear_kernel
from fedray.federated.kernels.routed_linear import routed_linear_kernel
from fedray.federated.local import Phase
from fedray.federated.method import Batch, Method, Predictor
from fedray.methods.context import Context
from fedray.models import linear
from fedray.models.losses import LOSSES
from fedray.types import Arrays, Params

TABLE, WEIGHT, BIAS = "item_embedding", "head_weight", "head_bias"


class LinearConfig(BackboneConfig):
    """What the backbones with a linear head share."""

    item_bias: bool = Field(False, description="a bias per item, the last column of the item table")


class Config(LinearConfig):
    """lr is eta; the item table moves with eta * M * item_lr_scale."""

    name: Literal["fcf"] = "fcf"
    item_lr_scale: float = Field(1.0, ge=0, description="item learning rate = lr * items * this")


def make(config: Config, context: Context) -> Method:
    """FCF over `context.n_items` items."""
    item_lr = config.lr * context.n_items * config.item_lr_scale
    return linear_method(config, context, item_lr)._replace(name="fcf")


def linear_method(config: LinearConfig, context: Context, item_lr: float) -> Method:
    """The linear-head family (FCF, FedAvg-MF): they differ in the item learning rate and the weights."""
    rates: Phase = {WEIGHT: config.lr, BIAS: config.lr, TABLE: item_lr}
    loss = LOSSES[context.train.loss]

    def logits(params: Params, batch: Batch) -> torch.Tensor:
        return linear.logits(params[TABLE][batch.item], params[WEIGHT], params[BIAS])

    return Method(
        name=config.name,
        init_server=lambda seed: {TABLE: item_table(seed, config, context)},
        init_clients=lambda seed, clients: common_head(seed, len(clients), config.dim),
        shared_rows=(TABLE,),
        shared_dense=(),
        private=(WEIGHT, BIAS),
        local_loss=lambda params, batch: loss(logits(params, batch), batch.label, batch.mask),
        phases=lambda round_: (decayed(rates, config, round_),),
        weight=lambda n_samples: (n_samples > 0).astype(np.int64),
        server_step=weighted_mean,
        score=score,
        predictor=None if config.item_bias else linear_predictor(),
        logits=logits,
        kernel=linear_kernel(TABLE, WEIGHT, BIAS),
        routed=lambda routing: routed_linear_kernel(routing, WEIGHT, BIAS),
    )


def linear_predictor() -> Predictor:
    """The head, which is the user vector, too."""
    head = (WEIGHT, BIAS)
    return Predictor(head, head, head, lambda params, rows: linear.logits(rows, params[WEIGHT], params[BIAS]))


def decayed(rates: Phase, config: BackboneConfig, round_: int) -> Phase:
    """The learning rates of a round."""
    return {k: lr * config.lr_decay**round_ for k, lr in rates.items()}


def item_table(seed: int, config: LinearConfig, context: Context) -> np.ndarray:
    """N(0, init_std^2), [M, d]; an item bias starts at 0."""
    rng = seeding.generator(seeding.key(seed, "init_server"))
    table = rng.standard_normal((context.n_items, config.dim), dtype=np.float32) * np.float32(config.init_std)
    return np.pad(table, ((0, 0), (0, int(config.item_bias))))


def common_head(seed: int, n: int, dim: int) -> Arrays:
    """One draw for all clients, w and b uniform on +-1/sqrt(d), as the authors' code starts them."""
    rng = seeding.generator(seeding.key(seed, "init_client"))
    draw = rng.uniform(-1.0, 1.0, dim + 1).astype(np.float32) / np.float32(np.sqrt(dim))
    return {WEIGHT: np.repeat(draw[None, :dim], n, axis=0), BIAS: np.repeat(draw[dim], n)}


def score(params: Params) -> torch.Tensor:
    """A logit per row; the sigmoid would not change the ranking."""
    return linear.logits(params[TABLE], params[WEIGHT], params[BIAS])
