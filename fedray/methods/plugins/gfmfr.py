"""GFMFR: Group-wise Fusion for Multimodal-enhanced Federated Recommendation (WWW 2026), on any backbone.

    client   loss + lambda_r KL(preference of its group, its own prediction); no content, no fused items
    server   after the backbone's own step
             1. groups: clients alike in their trained score functions
             2. C_l, the mean of the group's trained item tables, and the group's mean score function
             3. a fusion of (group row, contents) is fitted to the C_l, going on where it stood: Q_l
             4. preference_l = sigmoid(mean score function on Q_l): one number an item, down to the group's clients

Of single clients the server sees the vector that grouping reads; tables and score functions come as sums by group,
which of a group of one are that client's own. Where the score function is private (FCF, FedRAP, PFedRec: the head) this
plug-in uploads it, and the mean of a group's user vectors where the teacher needs one.

Paper -> here: E_G `group_embedding`, S_phi `models.group_fusion`, E_M `preference`, P_u the backbone's `predictor`.

Departures from the authors' code, each of which has an option where it can be brought back.
- The teacher is the backbone's whole score function (`teacher: hidden`), with the group's mean user vector; theirs
  puts rows of the item space into the last layer (`teacher: head`).
- lambda is `weight` times a cosine; their scale, the ratio of the two losses, was one running mean over all clients'
  batches in the order of the simulation: with `ratio: client` each client keeps its own.
  There the weight has no bound: where predictions come near to the group's, the ratio grows, and with it the rate.
- A client without a group trains on its backbone's loss; theirs does not train at all.
- Under BPR the term is the same, on each item's own logit, though BPR gives these no zero and no scale: the paper has
  BCE only.
- Negatives, schedules and FedRAP's regularisers are the backbone's and the job's (`evaluation.options`,
  `backbone.schedule`).
- The fit is shorter, by Adam, on the content's principal axes, and a step takes items with all groups; theirs takes 50
  epochs of 256 tuples by SGD (near it: `fit_epochs: 50`, `fit_batch: 51`, `fit_optimizer: sgd`, `content_dim: 0`).
  Contents are at one scale first, and `gate` multiplies each part by its gate, as FedVLR's (theirs hands the gates on).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Int
from pydantic import Field

from fedray import seeding
from fedray.config import Closed
from fedray.errors import UnsupportedError
from fedray.federated import grouping as clustering
from fedray.federated.aggregate import mean_decay, mean_deltas
from fedray.federated.method import VECTOR, Grouped, Grouping, Guide, Method, Portrait, Uploads
from fedray.methods.context import Context
from fedray.methods.plugins._views import content_of, with_features
from fedray.models import linear
from fedray.models.group_fusion import Fitting, GroupFusion
from fedray.types import Arrays, FeatureNames, Params, ServerState

PREFERENCE, GROUP, RATIO = "gfmfr/preference", "gfmfr/group", "gfmfr/ratio"
FUSION = "gfmfr/fusion/"
LOSS = "gfmfr/loss"
MAP = ("gfmfr/map/client", "gfmfr/map/at", "gfmfr/map/share")
LEAST, MOST = np.float32(1e-7), np.nextafter(np.float32(1 - 1e-7), np.float32(0))


class Config(Closed):
    """Settings of the plug-in."""

    groups: int = Field(5, ge=1, le=1000)
    weight: float = Field(0.1, ge=0, description="lambda, of the KL term; 0: the backbone")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of lambda: cos(pi r / 2T), or as it is")
    ratio: Literal["constant", "client"] = Field(
        "constant", description="client: lambda is also times each client's own running mean of loss / KL"
    )
    ratio_decay: float = Field(0.9, ge=0, lt=1, description="of that running mean, a batch")
    grouping: Literal["auto", "spectral", "kmeans", "minibatch", "random"] = Field(
        "auto",
        description="spectral up to 500 clients, k-means up to 20,000, in mini-batches above; random: a control",
    )
    reduce: Literal["none", "pca", "projection"] = Field("none", description="of the vectors, before grouping")
    sketch: int = Field(0, ge=0, description="a client sends so many random projections of its vector; 0: the vector")
    features: tuple[str, ...] = Field((), description="of the items; empty: all there are")
    fusion: Literal["mlp", "sum", "gate", "attention"] = "mlp"
    gain: float = Field(0.1, ge=0, description="times the start of the contents' projections")
    group_dim: int = Field(64, ge=1, le=4096, description="width of a group's row")
    content_dim: int = Field(64, ge=0, description="principal axes of each feature that the fit reads; 0: all of it")
    fit_epochs: int = Field(10, ge=0, description="over the items, each round")
    fit_batch: int = Field(128, ge=0, description="items a step, with all groups; 0: all")
    fit_lr: float = Field(0.01, gt=0)
    fit_optimizer: Literal["sgd", "adam"] = "adam"
    fit_weight_decay: float = Field(0.0, ge=0)
    teacher: Literal["hidden", "head"] = Field(
        "hidden", description="the whole score function, or its last layer alone"
    )


def wrap(inner: Method, config: Config, context: Context) -> Method:
    """`inner` with its group's preference beside its loss."""
    _check(inner)
    _check_head(inner, config, context)
    assert inner.predictor is not None
    with_features(context.features, config.features)
    means = inner.predictor.head if config.teacher == "head" else inner.predictor.reads

    def weight(round_: int) -> float:
        return config.weight * (math.cos(math.pi * round_ / (2 * context.train.rounds)) if cosine else 1.0)

    cosine, own = config.schedule == "cosine", config.ratio == "client"
    guide = Guide(PREFERENCE, GROUP, weight, RATIO if own else "", config.ratio_decay if own else -1.0)
    group = Grouping(
        vector=inner.predictor.names,
        sketch=config.sketch,
        tables=tuple(k for k in inner.shared_rows if k not in inner.collects),
        means=means,
        groups=config.groups,
        labels=_labels(config),
        fitted=_fitted(inner, config, context, means),
        report=report,
        portrait=portrait,
    )
    return inner._replace(
        name=f"gfmfr({inner.name})",
        init_server=lambda seed: inner.init_server(seed) | _ungrouped(config, context),
        init_clients=lambda seed, clients: inner.init_clients(seed, clients) | _no_ratio(own, len(clients)),
        private=inner.private + ((RATIO,) if own else ()),
        within=None if inner.within is None else lambda plugin: wrap(_within(inner, plugin), config, context),
        guide=guide,
        grouping=group,
    )


def _within(inner: Method, plugin: Callable[[Method], Method]) -> Method:
    assert inner.within is not None
    return inner.within(plugin)


def _check(inner: Method) -> None:
    if inner.predictor is None or inner.guide is not None:
        raise UnsupportedError(
            f"gfmfr on {inner.name}",
            "one gfmfr, on a backbone that scores plain item rows",
            "Leave vbpr out and set item_bias: false.",
        )
    if inner.noise is not None:
        raise UnsupportedError(
            f"gfmfr on {inner.name}",
            "uploads without noise: groups are made of single clients' score functions",
            "Leave laplace_ldp out.",
        )


def _check_head(inner: Method, config: Config, context: Context) -> None:
    """The authors' teacher puts item rows where the last hidden layer's numbers belong."""
    if config.teacher != "head" or isinstance(context.features, FeatureNames):
        return  # a client has no rows to compare with; the server has them
    assert inner.predictor is not None
    server, client = inner.init_server(0), inner.init_clients(0, np.array([0]))
    name = inner.predictor.head[0]
    wide = (server[name] if name in server else client[name][0]).shape[0]
    rows = inner.item_rows(inner.down(server)).shape[1]
    if wide != rows:
        raise UnsupportedError(
            f"gfmfr with teacher head on {inner.name}: its last layer reads {wide} numbers, an item row has {rows}",
            "a last layer as wide as an item row",
            f"Set backbone.hidden: [{rows}], or teacher: hidden.",
        )


def _ungrouped(config: Config, context: Context) -> Arrays:
    """Nobody has a group."""
    half = np.full((config.groups, context.n_items), 0.5, np.float32)
    return {PREFERENCE: half, GROUP: np.full(0, -1, np.int32)}


def _no_ratio(own: bool, n: int) -> Arrays:
    return {RATIO: np.full(n, np.nan, np.float32)} if own else {}


def _labels(config: Config) -> Callable[[int, ServerState, Uploads], np.ndarray]:
    def labels(seed: int, state: ServerState, vectors: Uploads) -> np.ndarray:
        if config.grouping == "random":  # each client's own draw, the same in every round
            return (seeding.keys(seed, "grouping", 0, vectors.client) % np.uint64(config.groups)).astype(np.int64)
        key = seeding.key(seed, "grouping", state.round)
        x = clustering.standardised(vectors.tables[VECTOR], vectors.client)
        x = clustering.reduced(x, config.reduce, seed=seed)
        found = clustering.grouped(x, config.groups, config.grouping, key)
        return clustering.aligned(found, vectors.client, state.params[GROUP])

    return labels


def _fitted(
    inner: Method, config: Config, context: Context, means: tuple[str, ...]
) -> Callable[[int, ServerState, Grouped], ServerState]:
    assert inner.predictor is not None
    teach = linear_head(inner.predictor.head) if config.teacher == "head" else inner.predictor.logits
    fitting = Fitting(config.fit_epochs, config.fit_batch, config.fit_lr, config.fit_optimizer, config.fit_weight_decay)

    @cache
    def fusion_of(width: int) -> GroupFusion:
        """Made when it is first used, and so on the server alone: a client has no content."""
        features = content_of(with_features(context.features, config.features))
        sizes = (config.groups, config.group_dim, width, config.content_dim)
        return GroupFusion(config.fusion, features, config.features, *sizes, config.gain)

    def fitted(seed: int, state: ServerState, found: Grouped) -> ServerState:
        """A group of whose clients none was heard of (they are lost, or late) keeps what it had."""
        members = np.bincount(found.labels, minlength=config.groups) * [bool(s.scalars) for s in found.sums]
        targets = np.stack([group_table(inner, found, g) for g in range(config.groups)])
        fusion, extra = fusion_of(targets.shape[2]), dict(state.extra)
        params = {k.removeprefix(FUSION): v for k, v in extra.items() if k.startswith(FUSION)} or fusion.init(seed)
        params, losses = fusion.fit(params, targets, members, fitting, seeding.key(seed, "fusion", state.round))
        q = fusion.fused(params)
        extra |= {FUSION + k: v for k, v in params.items()} | {LOSS: np.asarray(losses, np.float32)}
        extra |= mapped(seed, found)
        preference = state.params[PREFERENCE].copy()
        for g in np.flatnonzero(members):
            preference[g] = preference_of(teach, found.mean(int(g), means), q[g])
        group = joined(state.params[GROUP], found.client, found.labels)
        return replace(state, params={**state.params, PREFERENCE: preference, GROUP: group}, extra=extra)

    return fitted


def linear_head(names: tuple[str, str]) -> Callable[[Params, torch.Tensor], torch.Tensor]:
    """The last layer alone, on item rows: the authors' teacher."""
    weight, bias = names

    def logits(params: Params, rows: torch.Tensor) -> torch.Tensor:
        return linear.logits(rows, params[weight].reshape(-1), params[bias].reshape(()))

    return logits


def preference_of(
    teach: Callable[[Params, torch.Tensor], torch.Tensor], mean: Arrays, rows: np.ndarray
) -> Float32[np.ndarray, " M"]:
    """sigmoid(score function on the rows), kept off 0 and 1 by 1e-7 (in float32: by 1.2e-7 at the top)."""
    params = {k: torch.from_numpy(np.asarray(v, np.float32)) for k, v in mean.items()}
    p = torch.sigmoid(teach(params, torch.from_numpy(rows))).numpy()
    return np.clip(p, LEAST, MOST)


def group_table(inner: Method, found: Grouped, g: int) -> Float32[np.ndarray, "M d"]:
    """C_g: the mean of what its clients' item rows were after training; of an empty group, or of one of whose clients
    none was heard of, the broadcast's."""
    old = found.broadcast.params
    if not found.sums[g].scalars:
        return inner.item_rows(old)
    tables = dict(old)
    for k, step in mean_deltas(found.sums[g]).items():
        if k in inner.shared_rows:
            tables[k] = (old[k] * mean_decay(found.sums[g], k) + step).astype(np.float32)
    for k, v in found.uploads.items():
        tables[k] = v[found.labels == g].mean(axis=0, dtype=np.float64).astype(np.float32)
    return inner.item_rows(tables)


def joined(group: Int[np.ndarray, " N"], client: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> np.ndarray:
    """The groups of all clients: of those of this round the new ones, of others those they had."""
    out = np.full(max(len(group), int(client.max(initial=-1)) + 1), -1, np.int32)
    out[: len(group)] = group
    out[client] = labels
    return out


def mapped(seed: int, found: Grouped) -> Arrays:
    """Where the round's clients are on the plane: two numbers each, in place of their vectors."""
    if found.vectors is None:
        return {}
    at, share = clustering.plane(clustering.standardised(found.vectors), seed)
    return dict(zip(MAP, (found.client, at, share)))


def portrait(state: ServerState) -> Portrait:
    """Who is in which group, where, and what the groups like; nobody is on the map before the first round."""
    nobody = (np.zeros(0, np.int64), np.zeros((0, 2), np.float32), np.zeros(2, np.float32))
    client, at, share = (state.extra.get(name, none) for name, none in zip(MAP, nobody))
    return Portrait(state.params[GROUP], client, at, share, state.params[PREFERENCE])


def report(before: ServerState, after: ServerState) -> dict[str, float]:
    """Sizes of the groups, how much of the last round's grouping is left (adjusted Rand index over the clients that
    had a group), and the fit's last loss."""
    old, new = before.params[GROUP], after.params[GROUP]
    sizes = np.bincount(new[new >= 0], minlength=len(after.params[PREFERENCE]))
    out = {f"group/size_{g}": float(n) for g, n in enumerate(sizes)}
    known = np.flatnonzero(old >= 0)
    if len(known):
        out["group/stability"] = clustering.rand_index(old[known], new[known])
    return out | {"group/fit_loss": float(after.extra[LOSS][-1])} if len(after.extra[LOSS]) else out
