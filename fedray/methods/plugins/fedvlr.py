"""FedVLR: vision-language representations fused on the server, mixed by every client's own router (AAAI 2026; the first
release is FedMR, arXiv 2410.08478).

    server   V = h_v(E_v), C = h_c(E_c)                     frozen embeddings of the encoders, projected
             F_j = g_j(D, V, C)                             views, one per operator; they go down once a round
    client   w = router_u(F),  z_i = sum_j w_j F_j(i),  score_u(z_i)
             steps of its score function and router; the steps of the views' rows are summed and go up
    server   back-propagates their mean through the operators into D, the projections and the operators

A client computes with views alone; content, projections and operators are the server's (on Ray a client actor knows the
features' names and nothing else of them). Router, head and personal tables never leave it.

Paper -> here: gamma_j `operator/...`, varphi_u `router_...`, D the backbone's `item_embedding`.

Where a backbone's own item part stands beside the fused one (FedNCF, GPFedRec: q_i + z_i) D goes down as well and is
also trained there; on FedRAP z_i takes the place of the shared row, P_i + z_i. Under `dualper` a client tunes private
copies of the view rows it touches, and ranks with them. In the paper a client's views stay as they came for a round and
it sums their gradients up (`rows: fixed`); with `rows: moving` they take every local step, as a backbone's own rows do,
and what they moved goes up: with content off that is the backbone. Several local epochs are worth little without.

Departures. D is as wide as the backbone's rows, without a map of its own (the authors: 512, mapped to 64). No dropout
and no layer norms: the norms' gains start near 0 in the authors' code and take the signal with them. On FedRAP the
authors fuse P_i as well, which would put operators on the client. The operators learn at `operator_lr`, by SGD as in
the paper or by Adam as in its code; what the clients' learning rate of items puts into D's step is taken out for them.
By default views are residual and start quiet: F_j = D + g_j (beside a row that the backbone adds itself, F_j = g_j), so
that a run starts as its backbone does, and content has to earn its place (with the authors' start, `residual: false`,
`gain: 1` and `projection: random`, it drowns the ID rows on ML-100K). Projections start along the content's principal
axes: of 384 numbers, 32 random mixtures tell less.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from fedray import fixed_point, seeding
from fedray.config import Closed
from fedray.errors import UnsupportedError
from fedray.federated.aggregate import Aggregate, RowSum, mean_deltas
from fedray.federated.kernels.router import KINDS
from fedray.federated.local import Phase
from fedray.federated.method import Batch, Kernel, Method, Routing, Traits, Uploads
from fedray.methods.backbones.fcf import TABLE, WEIGHT
from fedray.methods.backbones.fedncf import USER
from fedray.methods.context import Context
from fedray.methods.plugins import fedopt
from fedray.methods.plugins._views import Views
from fedray.models.fusions import linear
from fedray.models.projection import Start
from fedray.models.router import PARAMETERS, Weights, mixed, shares
from fedray.types import Arrays, FeatureNames, Params, ServerState

MOVED = "fedvlr/moved"
Softmax = Literal["single", "double"]
Rows = Literal["fixed", "moving"]
OfBatch = Callable[[Params, Batch], torch.Tensor]


class Config(Closed):
    """Settings of the plug-in."""

    views: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("sum", "mlp", "gate"), description="modules of models/fusions; a single one needs no router"
    )
    features: tuple[str, ...] = Field((), description="of the items; empty: all there are")
    weights: Weights = Field("client", description="the router weighs the views for the client, or for each item")
    softmax: Softmax = "single"
    rows: Rows = Field("fixed", description="of the views on a client: fixed for a round, or moving with each step")
    router_dim: int = Field(64, ge=1, le=4096, description="width of the router's hidden layer")
    router_lr_scale: float = Field(1.0, ge=0, description="times the learning rate of the client's score function")
    operator_optimizer: Literal["sgd", "adam"] = "sgd"
    operator_lr: float = Field(1.0, ge=0, description="of projections and operators, on the server")
    projection: Start = Field("principal", description="start of the projections: along the content's axes, or random")
    gain: float = Field(0.1, ge=0, description="times the projections' start: how loud content is at first")
    residual: bool = Field(True, description="views are the ID row and what is fused on top of it, which starts quiet")


def wrap(inner: Method, config: Config, context: Context) -> Method:
    """`inner` on fused item rows."""
    if inner.grouping is not None:
        raise UnsupportedError(
            f"fedvlr on {inner.name}", "item rows that are there when groups are made", "Name it before gfmfr."
        )
    width = _width(inner, context)
    added = inner.item_input == "added"
    how = config.gain, config.residual, config.projection, added
    views = Views(config.views, config.features, context.features, width, *how)
    kept = tuple(k for k in inner.shared_rows if k != TABLE or added)
    routed = PARAMETERS if len(config.views) > 1 else ()
    tables = views.tables + kept

    def sent(params: Arrays, without: Sequence[str] = ()) -> Arrays:
        ids = np.zeros_like(params[TABLE]) if "id" in without else params[TABLE]
        plain = {k: v for k, v in {**params, TABLE: ids}.items() if not k.startswith("operator/")}
        return {k: v for k, v in plain.items() if k != TABLE or added} | views.make(params, ids, without)

    def item_rows(tables: Arrays) -> np.ndarray:
        """As a router sees them that weighs all views the same."""
        mean = np.stack([tables[v] for v in views.tables]).mean(axis=0, dtype=np.float32)
        return np.asarray(mean + tables[TABLE] if added else mean)

    return inner._replace(
        name=f"fedvlr({inner.name})",
        item_rows=item_rows,
        init_server=lambda seed: inner.init_server(seed) | views.init(seed),
        init_clients=lambda seed, clients: inner.init_clients(seed, clients) | _routers(config, width, seed, clients),
        shared_rows=tables,
        private=inner.private + routed,
        local_loss=_on_fused(inner.local_loss, inner, config, views.tables, added),
        phases=lambda round_: tuple(_phase(p, inner, config, views.tables, added) for p in inner.phases(round_)),
        server_step=_server_step(inner, config, views),
        personalise=_personalise(inner),
        score=_fused_score(inner, config, views.tables, added),
        broadcast=sent,
        within=lambda plugin: wrap(plugin(inner), config, context),
        tuned=tables if inner.tuned else (),
        fixed=views.tables if config.rows == "fixed" and not inner.tuned else (),
        logits=inner.logits and _on_fused(inner.logits, inner, config, views.tables, added),
        kernel=_kernel(inner, config, views.tables),
        traits=_traits(config, views),
        ablations=None if inner.tuned or inner.collects else views.ablations(sent),
    )


def _kernel(inner: Method, config: Config, views: tuple[str, ...]) -> Kernel | None:
    """The backbone's own, on mixtures."""
    if inner.routed is None:
        return None
    names = PARAMETERS if len(views) > 1 else ()
    return inner.routed(Routing(views, names, config.router_dim, KINDS[config.weights, config.softmax]))


def _traits(config: Config, views: Views) -> Traits | None:
    """How much a client's router makes of each view, mean over its training items; sums to 1."""
    if len(views.names) == 1:
        return None

    def of(params: Params) -> torch.Tensor:
        rows = torch.cat([params[k] for k in views.tables], dim=1)
        every = torch.ones(len(rows), dtype=torch.bool)
        return shares(rows, params, every, config.weights, _twice(config)).double().mean(dim=0)

    return Traits(tuple(f"router/{name}" for name in views.names), views.tables, PARAMETERS, of)


def _width(inner: Method, context: Context) -> int:
    """Of the backbone's item rows. A client does not draw the table to know: it has the vector that the rows meet."""
    if inner.broadcast is not None:
        raise UnsupportedError(f"fedvlr on {inner.name}", "one plug-in that makes the item rows", "Leave one out.")
    own = inner.init_clients(0, np.array([0]))
    dim = next((own[k].shape[1] for k in (WEIGHT, USER) if k in own), 0)
    if dim and isinstance(context.features, FeatureNames):
        return dim  # the server has compared it with the table
    shape = inner.init_server(0)[TABLE].shape
    if shape != (context.n_items, dim or shape[1]):
        raise UnsupportedError(f"fedvlr on {inner.name} with an item bias", "rows without one", "Set item_bias: false.")
    return shape[1]


def _routers(config: Config, width: int, seed: int, clients: np.ndarray) -> Arrays:
    """One start for all: the views weigh the same, since the last layer starts at 0."""
    n = len(config.views)
    if n == 1:
        return {}
    rng = seeding.generator(seeding.key(seed, "method", client=-1))
    one = linear(rng, "router_1", n * width, config.router_dim)
    one |= {k: np.zeros_like(v) for k, v in linear(rng, "router_2", config.router_dim, n).items()}
    return {k: np.repeat(v[None], len(clients), axis=0) for k, v in one.items()}


def _phase(phase: Phase, inner: Method, config: Config, views: tuple[str, ...], added: bool) -> Phase:
    """The views move as the item table does, the router with the score function."""
    out = {k: lr for k, lr in phase.items() if k != TABLE or added}
    if TABLE in phase:
        out |= dict.fromkeys(views, phase[TABLE])
    own = [lr for k, lr in phase.items() if k not in inner.row_tables]
    if own and len(views) > 1:
        out |= dict.fromkeys(PARAMETERS, own[0] * config.router_lr_scale)
    return out


def _on_fused(of_batch: OfBatch, inner: Method, config: Config, views: tuple[str, ...], added: bool) -> OfBatch:
    """The backbone's loss or logits, on fused rows."""

    def on_fused(params: Params, batch: Batch) -> torch.Tensor:
        fused = mixed([params[v][batch.item] for v in views], params, batch.mask, config.weights, _twice(config))
        rows = {k: params[k][batch.item] for k in inner.row_tables if k != TABLE}
        own = fused + params[TABLE][batch.item] if added else fused
        here = batch._replace(item=torch.arange(len(batch.item), device=batch.item.device))
        return of_batch({**params, **rows, TABLE: own}, here)

    return on_fused


def _fused_score(
    inner: Method, config: Config, views: tuple[str, ...], added: bool
) -> Callable[[Params], torch.Tensor]:
    def score(params: Params) -> torch.Tensor:
        every = torch.ones(len(params[views[0]]), dtype=torch.bool, device=params[views[0]].device)
        fused = mixed([params[v] for v in views], params, every, config.weights, _twice(config))
        return inner.score({**params, TABLE: fused + params[TABLE] if added else fused})

    return score


def _twice(config: Config) -> bool:
    return config.softmax == "double"


def _server_step(inner: Method, config: Config, views: Views) -> Callable[[ServerState, Aggregate], ServerState]:
    def server_step(state: ServerState, total: Aggregate) -> ServerState:
        steps = {k: v for k, v in mean_deltas(total).items() if k in views.tables}
        if not steps:
            return inner.server_step(state, total)
        moved, towards = views.back(state.params, state.params[TABLE], steps)
        new = inner.server_step(state, _with_table(total, views, moved))
        rate = max((p.get(TABLE, 0.0) for p in inner.phases(state.round)), default=0.0)
        new = operators_moved(config, new, towards, rate)
        return replace(new, extra={**new.extra, MOVED: moved}) if inner.collects else new

    return server_step


def _with_table(total: Aggregate, views: Views, moved: np.ndarray) -> Aggregate:
    """The sum as the backbone's server knows it: what the views say of D counts as every client's step."""
    first = views.tables[0]
    weight = total.scalar(f"weight/{first}")
    grid = fixed_point.quantise(moved.astype(np.float64) * weight)
    own = total.rows.get(TABLE)
    scalars = {k: v for k, v in total.scalars.items() if k.rsplit("/", 1)[0] not in ("weight", "decay")}
    names = [k for k in (*total.rows, *total.dense) if k not in views.tables]
    scalars |= {
        f"{p}/{k}": total.scalars[f"{p}/{k}"] for k in names for p in ("weight", "decay") if f"{p}/{k}" in total.scalars
    }
    if own is None:
        scalars |= {f"{p}/{TABLE}": total.scalars[f"{p}/{first}"] for p in ("weight", "decay")}
    summed = grid if own is None else own.dense() + grid
    rows = {k: v for k, v in total.rows.items() if k not in views.tables}
    return Aggregate({**rows, TABLE: RowSum(len(grid), None, summed)}, total.dense, scalars, total.peak)


def operators_moved(config: Config, state: ServerState, towards: Arrays, rate: float) -> ServerState:
    """`towards` are steps at the clients' rate of items, which is taken out again."""
    if rate <= 0 or config.operator_lr <= 0:
        return state
    if config.operator_optimizer == "sgd":
        moved = {k: (state.params[k] + v * (config.operator_lr / rate)).astype(np.float32) for k, v in towards.items()}
        return replace(state, params={**state.params, **moved})
    params, extra = dict(state.params), dict(state.extra)
    adam = fedopt.Config(optimizer="adam", lr=config.operator_lr, beta2=0.999)
    for k, v in towards.items():
        moments = {p: extra.get(f"fedvlr/{p}/{k}") for p in ("m", "v", "t")}
        params[k], found = fedopt.update(adam, adam.lr, params[k], v.astype(np.float64) / rate, moments, rows=False)
        extra |= {f"fedvlr/{p}/{k}": a for p, a in found.items()}
    return replace(state, params=params, extra=extra)


def _personalise(inner: Method) -> Callable[[ServerState, Uploads], tuple[ServerState, Arrays]] | None:
    """What the views say of D is on top of the mean of the clients' own tables."""
    if inner.personalise is None:
        return None

    def personalise(state: ServerState, uploads: Uploads) -> tuple[ServerState, Arrays]:
        assert inner.personalise is not None
        new, targets = inner.personalise(state, uploads)
        table = (new.params[TABLE] + state.extra[MOVED]).astype(np.float32)
        return replace(new, params={**new.params, TABLE: table}), targets

    return personalise
