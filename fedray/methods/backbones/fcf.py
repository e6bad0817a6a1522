"""FCF: federated collaborative filtering as in Ammad-ud-din et al., 2019 (arXiv 1901.09888), in the form that the
federated recommendation papers use: shared item table E [M, d], private linear head (w_u [d], b_u), joint SGD steps.

    y_ui = sigmoid(w_u . E[i] + b_u),    binary cross-entropy,    E <- mean of the clients' E

With d = 32 it is the "FedMF" of the PFedRec tables. The head is the user vector; its bias is private here
(the authors of PFedRec upload it by oversight).
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field

from fedray import seeding
from fedray.config import BackboneConfig
from fedray.federated.aggregate import weighted_mean
from fedray.federated.method import Batch, Method, Phase
from fedray.methods.context import Context
from fedray.models import linear
from fedray.types import Arrays, Params

TABLE, WEIGHT, BIAS = "item_embedding", "head_weight", "head_bias"


class Config(BackboneConfig):
    """lr is eta; the item table moves with eta * M * item_lr_scale."""

    name: Literal["fcf"] = "fcf"
    item_lr_scale: float = Field(1.0, ge=0, description="item learning rate = lr * items * this")


def make(config: Config, context: Context) -> Method:
    """FCF over `context.n_items` items."""
    item_lr = config.lr * context.n_items * config.item_lr_scale
    return linear_method(config, context, item_lr)._replace(name="fcf")


def linear_method(config: BackboneConfig, context: Context, item_lr: float) -> Method:
    """The linear-head family (FCF, FedAvg-MF): they differ in the item learning rate and the weights."""
    rates: Phase = {WEIGHT: config.lr, BIAS: config.lr, TABLE: item_lr}

    def init_server(seed: int) -> Arrays:
        rng = seeding.generator(seeding.key(seed, "init_server"))
        table = rng.standard_normal((context.n_items, config.dim), dtype=np.float32)
        return {TABLE: table * np.float32(config.init_std)}

    def init_clients(seed: int, clients: np.ndarray) -> Arrays:
        return common_head(seed, len(clients), config.dim)

    return Method(
        name=config.name,
        init_server=init_server,
        init_clients=init_clients,
        shared_rows=(TABLE,),
        shared_dense=(),
        private=(WEIGHT, BIAS),
        local_loss=local_loss,
        phases=lambda round_: (rates,),
        weight=lambda n_samples: (n_samples > 0).astype(np.int64),
        server_step=weighted_mean,
        score=score,
        linear_head=(TABLE, WEIGHT, BIAS),
    )


def common_head(seed: int, n: int, dim: int) -> Arrays:
    """One draw for all clients, w and b uniform on +-1/sqrt(d), as the authors' code starts them."""
    rng = seeding.generator(seeding.key(seed, "init_client"))
    draw = rng.uniform(-1.0, 1.0, dim + 1).astype(np.float32) / np.float32(np.sqrt(dim))
    return {WEIGHT: np.repeat(draw[None, :dim], n, axis=0), BIAS: np.repeat(draw[dim], n)}


def local_loss(params: Params, batch: Batch) -> torch.Tensor:
    """Mean binary cross-entropy of one client's batch."""
    return linear.batch_loss(params[TABLE], params[WEIGHT], params[BIAS], *batch)


def score(params: Params) -> torch.Tensor:
    """A logit per row; the sigmoid would not change the ranking."""
    return linear.logits(params[TABLE], params[WEIGHT], params[BIAS])
