"""GPFedRec: Zhang et al., KDD 2024 (arXiv 2305.07866). Clients upload whole item tables; the server links similar
clients and sends each one the mean of its neighbours' tables.

Client: user vector, layers 2d-32-16-8 and output, all private; item table E_u, which starts each round as the global
one.

    loss = BCE + reg * mean (E_u - A_u)^2          A_u: the client's table from the server, last round

Server: S = pairwise similarity of the uploaded tables; u's neighbours are the v with
S_uv > mean S + (threshold - 1) |mean S| (or the `neighbours` most similar), each counting the same, itself among them
under a similarity; with none left, itself alone. A_u = mean of its neighbours' tables, passed on `graph_layers` times;
the global table is the mean of all A_u. A client ranks with what it trained, its own E_u included. The reported
training loss leaves the pull out.

Departures. The authors' `cosine` takes the cosine distance for a similarity, so it links the most different users; here
`metric: cosine` is the similarity, and `cosine_distance` what they do. Their rule is S_uv > threshold * mean S, the
same where the mean is above 0; below it, where `euclidean` always is, a higher threshold would let more in. A client
without an A_u of the last round (it was not in the cohort, or it is the first round) has the global table as its
target, so its term starts at 0. Item learning rate: lr * M * item_lr_scale (theirs is less by lr).
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import Field

from fedray.errors import OutOfRangeError
from fedray.federated.kernels.tower import Tower, layer_names
from fedray.federated.method import Method, Uploads
from fedray.methods.backbones.fcf import TABLE
from fedray.methods.backbones.fedncf import USER, TowerConfig, tower_method
from fedray.methods.context import Context
from fedray.types import Arrays, ServerState


class Config(TowerConfig):
    """lr is that of the layers."""

    name: Literal["gpfedrec"] = "gpfedrec"
    user_lr_scale: float = Field(80.0, ge=0, description="user vector's learning rate = lr * this")
    item_lr_scale: float = Field(80.0, ge=0, description="item learning rate = lr * items * this")
    reg: float = Field(1.0, ge=0, description="weight of the pull to the client's table from the server")
    metric: Literal["cosine", "cosine_distance", "euclidean"] = "cosine"
    neighbours: int = Field(0, ge=0, description="so many most similar clients; 0: by threshold")
    threshold: float = Field(1.0, description="times the mean similarity: who is above is a neighbour")
    graph_layers: int = Field(1, ge=1)


def make(config: Config, context: Context) -> Method:
    """GPFedRec over `context.n_items` items."""
    tower = Tower(TABLE, USER, layer_names(config.hidden), config.dim, 0, config.hidden)
    method = tower_method(config, context, tower, shared=())
    pull = 2.0 * config.reg / (context.n_items * config.dim)
    step = pull * config.lr * context.n_items * config.item_lr_scale
    if step >= 2:
        raise OutOfRangeError(
            f"gpfedrec: a step goes {step:.3g} times the way to the client's table from the server",
            "less than 2 (lr * item_lr_scale * 2 reg / dim), or the tables grow without end",
            "Lower backbone.item_lr_scale or backbone.reg, or raise backbone.dim.",
        )

    def personalise(state: ServerState, uploads: Uploads) -> tuple[ServerState, Arrays]:
        tables = uploads.tables[TABLE]
        own = neighbours_mean(tables, config)
        mean = own.mean(axis=0, dtype=np.float64).astype(np.float32)
        return ServerState(state.round, {**state.params, TABLE: mean}, state.extra), {TABLE: own}

    return method._replace(
        name="gpfedrec",
        pull={TABLE: pull},
        collects=(TABLE,),
        personalise=personalise,
    )


def neighbours_mean(tables: Float32[np.ndarray, "n M d"], config: Config) -> Float32[np.ndarray, "n M d"]:
    """A_u of each client."""
    flat = torch.from_numpy(tables.reshape(len(tables), -1))
    graph = neighbourhood(similarity(flat, config.metric), config)
    for _ in range(config.graph_layers):
        flat = graph @ flat
    return flat.numpy().reshape(tables.shape)


def similarity(x: torch.Tensor, metric: str) -> torch.Tensor:
    """[n, n]: cosine, cosine distance, or minus the Euclidean distance of the rows."""
    gram = x @ x.T
    square = (x * x).sum(dim=1)
    if metric == "euclidean":
        distance = (square[:, None] + square[None, :] - 2 * gram).clamp_min(0).sqrt()
        return -distance.fill_diagonal_(0)  # the difference of large numbers leaves more than 0
    norm = square.sqrt().clamp_min(1e-12)
    cosine = gram / (norm[:, None] * norm[None, :])
    return 1 - cosine if metric == "cosine_distance" else cosine


def neighbourhood(s: torch.Tensor, config: Config) -> torch.Tensor:
    """The graph [n, n], every row summing to 1: equal weights on u's neighbours."""
    if config.neighbours:
        k = min(config.neighbours, len(s))
        chosen = torch.zeros_like(s).scatter_(1, s.argsort(dim=1, descending=True, stable=True)[:, :k], 1.0)
    else:
        mean = s.mean()
        chosen = (s > mean + (config.threshold - 1) * mean.abs()).to(s.dtype)
    alone = chosen.sum(dim=1) == 0
    chosen[alone] = torch.eye(len(s))[alone]
    return chosen / chosen.sum(dim=1, keepdim=True)
