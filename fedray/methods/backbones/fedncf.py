"""FedNCF: neural collaborative filtering (He et al., 2017, arXiv 1708.05031) federated as in Perifanis and Efraimidis,
2022 (arXiv 2106.04405), in the form of the PFedRec paper's baseline: the user vector p_u [d] is private; the item table
E [M, d] and the layers are shared and averaged.

    h_1 = ReLU(W_1 [p_u ; E_i] + b_1),  h_l = ReLU(W_l h_l-1 + b_l),  y_ui = sigmoid(w . h_L + b)

W_1 is kept as its two halves, `mlp_1_user_weight` and `mlp_1_item_weight`. With `gmf` it is NeuMF: user vector and
item row are twice as wide, and the product of their second halves joins the last layer,

    y_ui = sigmoid(w . [h_L ; p' * q'] + b)

Departures: the FedVLR authors' code uploads every user's vector and lets clients reload their own last model; here the
user vector stays and the shared parts are averaged each round. The layers start Kaiming-normal, the output
Xavier-uniform, biases 0.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from fedray import seeding
from fedray.config import BackboneConfig
from fedray.federated.aggregate import weighted_mean
from fedray.federated.kernels.routed_tower import routed_tower_kernel
from fedray.federated.kernels.tower import Tower, layer_names, layer_shapes, tower_kernel
from fedray.federated.local import Phase
from fedray.federated.method import Batch, Method, Predictor
from fedray.methods.backbones.fcf import TABLE, decayed
from fedray.methods.context import Context
from fedray.models import tower as model
from fedray.models.losses import LOSSES
from fedray.types import Arrays, Params

USER = "user_embedding"
Width = Annotated[int, Field(ge=1, le=4096)]


class TowerConfig(BackboneConfig):
    """What the backbones with hidden layers share; lr is that of the layers."""

    hidden: tuple[Width, ...] = Field((32, 16, 8), min_length=1, description="widths of the hidden layers")
    user_lr_scale: float = Field(1.0, ge=0, description="user vector's learning rate = lr * this")
    item_lr_scale: float = Field(1.0, ge=0, description="item learning rate = lr * items * this")
    user_init_std: float = Field(0.1, ge=0, description="standard deviation of the user vectors' start")
    init_std: float = Field(0.1, ge=0, description="standard deviation of the item table's start")


class Config(TowerConfig):
    """One rate for all would be item_lr_scale = 1 / items."""

    name: Literal["fedncf"] = "fedncf"
    gmf: bool = Field(False, description="NeuMF: a product branch beside the layers")
    weighting: Literal["uniform", "samples"] = Field("uniform", description="of clients in the mean")


def make(config: Config, context: Context) -> Method:
    """FedNCF over `context.n_items` items."""
    g = config.dim if config.gmf else 0
    tower = Tower(TABLE, USER, layer_names(config.hidden), config.dim, g, config.hidden)
    method = tower_method(config, context, tower, shared=tower.layers)
    weight = (lambda n: n.astype(np.int64)) if config.weighting == "samples" else method.weight
    return method._replace(name="fedncf", weight=weight)


def tower_method(config: TowerConfig, context: Context, tower: Tower, shared: tuple[str, ...]) -> Method:
    """A tower whose layers are all shared or all private."""
    loss, width = LOSSES[context.train.loss], tower.d + tower.g
    rates: Phase = {
        **dict.fromkeys(tower.layers, config.lr),
        USER: config.lr * config.user_lr_scale,
        TABLE: config.lr * context.n_items * config.item_lr_scale,
    }

    def init_server(seed: int) -> Arrays:
        rng = seeding.generator(seeding.key(seed, "init_server"))
        table = rng.standard_normal((context.n_items, width), dtype=np.float32) * np.float32(config.init_std)
        return {TABLE: table, **(init_layers(tower, rng) if shared else {})}

    def init_clients(seed: int, clients: np.ndarray) -> Arrays:
        keys = seeding.keys(seed, "init_client", 0, clients)
        users = [seeding.generator(k).standard_normal(width, dtype=np.float32) for k in keys]
        own = {USER: np.array(users, np.float32).reshape(-1, width) * np.float32(config.user_init_std)}
        if shared:
            return own
        layers = init_layers(tower, seeding.generator(seeding.key(seed, "init_client", client=-1)))  # nobody's key
        return own | {k: np.repeat(v[None], len(clients), axis=0) for k, v in layers.items()}

    def logits(params: Params, batch: Batch) -> torch.Tensor:
        return model.logits(params[TABLE][batch.item], params[USER], params, tower.layers)

    return Method(
        name=config.name,
        init_server=init_server,
        init_clients=init_clients,
        shared_rows=(TABLE,),
        shared_dense=shared,
        private=(USER,) if shared else (USER, *tower.layers),
        local_loss=lambda params, batch: loss(logits(params, batch), batch.label, batch.mask),
        phases=lambda round_: (decayed(rates, config, round_),),
        weight=lambda n_samples: (n_samples > 0).astype(np.int64),
        server_step=weighted_mean,
        score=lambda params: model.logits(params[TABLE], params[USER], params, tower.layers),
        item_input="added",
        predictor=tower_predictor(tower),
        logits=logits,
        kernel=tower_kernel(tower),
        routed=lambda routing: routed_tower_kernel(tower, routing),
    )


def tower_predictor(tower: Tower) -> Predictor:
    """The layers; a user vector goes in beside them."""

    def logits(params: Params, rows: torch.Tensor) -> torch.Tensor:
        return model.logits(rows, params[USER], params, tower.layers)

    return Predictor(tower.layers, (USER, *tower.layers), ("output_weight", "output_bias"), logits)


def init_layers(tower: Tower, rng: np.random.Generator) -> Arrays:
    """Kaiming-normal layers (fan-in of the whole first layer: 2d), Xavier-uniform output, zero biases."""
    out: Arrays = {}
    for name, shape in layer_shapes(tower.d, tower.g, tower.widths).items():
        if name.endswith("bias"):
            out[name] = np.zeros(shape, np.float32)
        elif name == "output_weight":
            out[name] = rng.uniform(-1, 1, shape).astype(np.float32) * np.float32(np.sqrt(6 / (shape[0] + 1)))
        else:
            fan_in = 2 * tower.d if name.startswith("mlp_1_") else shape[1]
            out[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))
    return out
