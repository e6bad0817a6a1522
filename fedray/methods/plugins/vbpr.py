"""VBPR (He and McAuley, AAAI 2016, arXiv 1510.01784) in the federated form of the FedVLR tables: a content half beside
the ID half of every item row, and a private vector for each.

    y_ui = p_u . D_i + q_u . (W [V_i ; C_i] + b) + b_u

The server projects the contents once a round (W and the projections are its own); D_i and the content half go down, q_u
joins the private head, and the steps of the content half's rows go up summed, as `fedvlr`'s views do. BPR is
`train.loss: bpr`.

Departures. W is trained on the server; the FedVLR authors average copies of it that their clients train.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field

from fedray import seeding
from fedray.config import Closed
from fedray.errors import UnsupportedError
from fedray.federated.aggregate import Aggregate, mean_deltas
from fedray.federated.local import Phase
from fedray.federated.method import Batch, Method
from fedray.methods.backbones.fcf import TABLE, WEIGHT
from fedray.methods.context import Context
from fedray.methods.plugins import fedvlr
from fedray.methods.plugins._views import Views
from fedray.methods.plugins.fedvlr import OfBatch
from fedray.models.projection import Start
from fedray.types import Arrays, Params, ServerState

OWN = "content_weight"


class Config(Closed):
    """Settings of the plug-in."""

    features: tuple[str, ...] = Field((), description="of the items; empty: all there are")
    operator_lr: float = Field(1.0, ge=0, description="of the projections, on the server, by SGD")
    projection: Start = Field("principal", description="start of the projections: along the content's axes, or random")
    gain: float = Field(0.1, ge=0, description="times the projections' start")


def wrap(inner: Method, config: Config, context: Context) -> Method:
    """`inner`, a linear head, with a content half."""
    if WEIGHT not in inner.private or inner.private_rows or inner.tuned or inner.broadcast is not None:
        mend = "Take fcf or fedavg, with at most fedopt before it."
        raise UnsupportedError(f"vbpr on {inner.name}", "a linear head on shared rows", mend)
    width = inner.init_clients(0, np.array([0]))[WEIGHT].shape[1]
    views = Views(("content",), config.features, context.features, width, config.gain, start=config.projection)
    (view,) = views.tables

    def sent(params: Arrays, without: Sequence[str] = ()) -> Arrays:
        ids = np.zeros_like(params[TABLE]) if "id" in without else params[TABLE]
        return _without_operators({**params, TABLE: ids}) | views.make(params, ids, without)

    def init_clients(seed: int, clients: np.ndarray) -> Arrays:
        rng = seeding.generator(seeding.key(seed, "method", client=-1))
        draw = rng.uniform(-1.0, 1.0, (1, width)).astype(np.float32) / np.float32(np.sqrt(width))
        return inner.init_clients(seed, clients) | {OWN: np.repeat(draw, len(clients), axis=0)}

    def phase(given: Phase) -> Phase:
        half = {view: given[TABLE]} if TABLE in given else {}
        return {**given, **half, **({OWN: given[WEIGHT]} if WEIGHT in given else {})}

    return inner._replace(
        name=f"vbpr({inner.name})",
        init_server=lambda seed: inner.init_server(seed) | views.init(seed),
        init_clients=init_clients,
        shared_rows=(*inner.shared_rows, view),
        private=(*inner.private, OWN),
        predictor=None,
        local_loss=_on_both(inner.local_loss, view),
        phases=lambda round_: tuple(phase(p) for p in inner.phases(round_)),
        server_step=_server_step(inner, config, views),
        score=lambda params: inner.score(_both(params, params[TABLE], params[view])),
        broadcast=sent,
        within=lambda plugin: wrap(plugin(inner), config, context),
        fixed=(view,),
        logits=inner.logits and _on_both(inner.logits, view),
        kernel=None,
        ablations=views.ablations(sent),
    )


def _both(params: Params, ids: torch.Tensor, content: torch.Tensor) -> Params:
    """The head's parameters and rows with the content half beside them; an item bias stays the last column."""
    d = params[WEIGHT].shape[0]
    rows = torch.cat([ids[:, :d], content, ids[:, d:]], dim=1)
    return {**params, TABLE: rows, WEIGHT: torch.cat([params[WEIGHT], params[OWN]])}


def _on_both(of_batch: OfBatch, view: str) -> OfBatch:
    """The head's loss or logits, on rows with the content half."""

    def on_both(params: Params, batch: Batch) -> torch.Tensor:
        here = batch._replace(item=torch.arange(len(batch.item), device=batch.item.device))
        return of_batch(_both(params, params[TABLE][batch.item], params[view][batch.item]), here)

    return on_both


def _without_operators(params: Arrays) -> Arrays:
    return {k: v for k, v in params.items() if not k.startswith("operator/")}


def _server_step(inner: Method, config: Config, views: Views) -> Callable[[ServerState, Aggregate], ServerState]:
    (view,) = views.tables
    alike = fedvlr.Config(operator_lr=config.operator_lr)

    def server_step(state: ServerState, total: Aggregate) -> ServerState:
        steps = {k: v for k, v in mean_deltas(total).items() if k == view}
        rows = {k: v for k, v in total.rows.items() if k != view}
        new = inner.server_step(state, replace(total, rows=rows))
        if not steps:
            return new
        _, towards = views.back(state.params, state.params[TABLE], steps)
        rate = max((p.get(TABLE, 0.0) for p in inner.phases(state.round)), default=0.0)
        return fedvlr.operators_moved(alike, new, towards, rate)

    return server_step
