"""A host of clients: the private data and state of one or many, and the pure functions that work on them.

A `ClientActor` is a thin shell round one `ClientHost`; so is each part of the `SerialExecutor`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt64
from safetensors.numpy import load_file, save_file

from fedray.config import RunConfig
from fedray.data.blocks import RoundSamples, draw_samples
from fedray.data.negatives import shortlists, spared
from fedray.data.protocols import Protocol, rules_of
from fedray.evaluation.metrics import ByClient, MetricSums, score_metrics, summed
from fedray.evaluation.users import Users, merged, users_of
from fedray.federated import admission, client_store
from fedray.federated.aggregate import ZERO, Aggregate
from fedray.federated.client_store import ClientStore, OwnRows, TunedRows
from fedray.federated.cohort import members
from fedray.federated.kernels.rows import whole_tables
from fedray.federated.local import LocalResult, LocalStart
from fedray.federated.local_training import train_clients
from fedray.federated.method import Method, Uploads
from fedray.federated.rejections import Rejected
from fedray.federated.reports import TrainReport
from fedray.federated.scoring import score_clients
from fedray.federated.soft import soft_of
from fedray.federated.traits import TRAITS, summed_traits, traits_of
from fedray.federated.uploads import (
    grouping_bytes,
    noise_keys,
    sum_groups,
    sum_uploads,
    upload_bytes,
    vectors_of,
    whole_uploads,
)
from fedray.types import Arrays, Broadcast, ClientData, Ragged, Split

Seconds = dict[str, float]


@dataclass(frozen=True)
class ClientHost:
    """Clients and everything that is theirs, after `round` rounds. Frozen: training returns a new host."""

    config: RunConfig
    method: Method
    data: ClientData
    spare: Ragged
    candidates: dict[str, Ragged]
    store: ClientStore
    best: ClientStore
    device: str = "cpu"
    also: Mapping[str, ClientStore] = field(default_factory=dict)
    trained: "Trained | None" = None
    round: int = 0

    @property
    def protocol(self) -> Protocol:
        """The run's protocol."""
        return rules_of(self.config.evaluation)


class Trained(NamedTuple):
    """What the clients of a round came to: kept where it was made until the server has grouped them."""

    broadcast: Broadcast
    samples: RoundSamples
    result: LocalResult


class Taken(NamedTuple):
    """Of a round, the k clients whose updates are taken. who: places on the host. own: targets (see `own_targets`).
    keys: of their noise. total: their sum."""

    who: Int[np.ndarray, " k"]
    samples: RoundSamples
    result: LocalResult
    own: Mapping[str, np.ndarray]
    keys: UInt64[np.ndarray, " k"]
    total: Aggregate


def make_host(
    config: RunConfig, method: Method, data: ClientData, device: str = "cpu", initial: Arrays | None = None
) -> ClientHost:
    """Clients at their start. Initial values depend on seed and client only. initial: `first_tables`, for a method
    that does not have the content to make them (nothing is kept of them but copies)."""
    rules = rules_of(config.evaluation)
    private = method.init_clients(config.seed, data.client)
    shared = first_tables(method, config.seed) if initial is None else initial
    tables, whole = ({k: shared[k] for k in names} for names in (method.tuned, method.collects))
    store = client_store.fresh(private, len(data), tables, method.init_private_rows(config.seed), whole)
    shortlist = shortlists(config.data.seed, data, rules)
    return ClientHost(config, method, data, spared(data, rules), shortlist, store, store, device)


def first_tables(method: Method, seed: int) -> Arrays:
    """Of the broadcast before the first round, the tables that clients start from: those they tune or keep whole."""
    names = {*method.tuned, *method.collects}
    return {k: v for k, v in method.down(method.init_server(seed)).items() if k in names} if names else {}


def train(
    host: ClientHost, broadcast: Broadcast, limit: np.uint64, targets: Uploads | None = None
) -> tuple[ClientHost, TrainReport]:
    """One round on this host's share of the cohort (see `cohort`). targets: what the server made for single clients
    (at least those of this host that have one), where the method personalises. A client whose update is refused (see
    `admission`) is as it was before, and in nothing that leaves."""
    chosen = members(host.config.seed, broadcast.round, host.data.client, limit)
    who = np.flatnonzero(chosen & (host.data.train.lengths() > 0))
    seconds: Seconds = {}
    found: tuple[Taken | None, Rejected] = (None, {})
    if len(who):
        found = taken_of(host, who, broadcast, targets, seconds)
    taken, rejected = found
    host = replace(host, trained=None, round=broadcast.round + 1)
    if taken is None:
        return host, TrainReport(ZERO, 0, 0, seconds, rejected=rejected, round=broadcast.round)
    return handed_in(host, broadcast, taken, rejected, seconds)


def taken_of(
    host: ClientHost, who: Int[np.ndarray, " k"], broadcast: Broadcast, targets: Uploads | None, seconds: Seconds
) -> tuple[Taken | None, Rejected]:
    """What the clients at positions `who` come to, as far as it is taken, and whose updates are refused."""
    with timed(seconds, "samples"):
        samples = samples_of(host, who, broadcast.round)
    with timed(seconds, "train"):
        own = own_targets(host, who, broadcast, targets)
        start = start_of(host, who, broadcast, samples, own)
        result = train_clients(host.method, host.config.train, broadcast.round, start, samples, host.device)
    with timed(seconds, "aggregate"):
        keys = noise_keys(host.config.seed, broadcast.round, samples.client)
        bound = host.config.train.max_update_norm
        total, rejected, fit = admission.summed(host.method, bound, broadcast, start, samples, result, keys)
        if total is None:
            at = np.flatnonzero(fit)
            if len(at) == 0:
                return None, rejected
            own, who, keys = {k: v[at] for k, v in own.items()}, who[at], keys[at]
            samples, result = samples.take(at), result.take(at, samples.row_ptr)
            total = sum_uploads(host.method, broadcast, samples, result, keys)
    return Taken(who, samples, result, own, keys, total), rejected


def handed_in(
    host: ClientHost, broadcast: Broadcast, taken: Taken, rejected: Rejected, seconds: Seconds
) -> tuple[ClientHost, TrainReport]:
    """What those clients keep, and what leaves them."""
    method, (who, samples, result, own, keys, total) = host.method, taken
    with timed(seconds, "train"):
        whole = whole_of(method, broadcast, samples, result, own)
    with timed(seconds, "aggregate"):
        uploads = (whole_uploads(method, whole, samples.client, keys),) if whole else ()
    with timed(seconds, "store"):
        store = keep(host, who, broadcast, samples, result, whole)
    up = upload_bytes(method, broadcast, samples, result)
    vectors: tuple[Uploads, ...] = ()
    if group := method.grouping:
        vectors = (vectors_of(method, group, host.config.seed, samples, result),)
        up += grouping_bytes(method, group, vectors[0], result)
    kept = Trained(broadcast, samples, result) if group else None
    report = TrainReport(total.compact(), len(who), up, seconds, uploads, vectors, rejected, broadcast.round)
    return replace(host, store=store, trained=kept), report


def by_group(
    host: ClientHost, client: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> tuple[ClientHost, tuple[Aggregate, ...], Seconds]:
    """The round's second half on this host: sums by group over those of `client` (ascending) that are here. What they
    are made of stays until the next round, so that it can be asked for again."""
    seconds: Seconds = {}
    group, kept = host.method.grouping, host.trained
    if group is None or kept is None:
        return host, (), seconds
    with timed(seconds, "reduce"):
        mine = labels[np.searchsorted(client, kept.samples.client)]
        sums = sum_groups(host.method, group, kept.broadcast, kept.samples, kept.result, mine)
    return host, sums, seconds


def own_targets(
    host: ClientHost, who: Int[np.ndarray, " k"], broadcast: Broadcast, targets: Uploads | None
) -> Mapping[str, np.ndarray]:
    """table -> the target of each client [k] [M, d]: the server's own for it, else the broadcast."""
    if not host.method.pull:
        return {}
    place = dict(zip(targets.client.tolist(), range(len(targets.client)))) if targets else {}
    ids = host.data.client[who].tolist()
    return {
        k: np.stack([targets.tables[k][place[c]] if targets and c in place else broadcast.params[k] for c in ids])
        for k in host.method.pull
    }


def whole_of(
    method: Method, broadcast: Broadcast, samples: RoundSamples, result: LocalResult, targets: Mapping[str, np.ndarray]
) -> Arrays:
    """The trained tables in full [k, M, d], of those that the method collects."""
    n, zero = len(samples.client), np.zeros(len(samples.client))
    none = np.zeros((n, 0, 0), np.float32)
    return {
        k: whole_tables(
            broadcast.params[k], targets.get(k, none), result.decay[k], result.toward.get(k, zero), samples.row_ptr,
            samples.rows, result.rows[k],
        )
        for k in method.collects
    }  # fmt: skip


def samples_of(host: ClientHost, who: Int[np.ndarray, " k"], round_: int) -> RoundSamples:
    """The round's samples of the clients at positions `who`."""
    schedule, data = host.config.train, host.data
    return draw_samples(
        host.config.seed,
        round_,
        data.client[who],
        data.train.take(who),
        host.spare.take(who),
        data.n_items,
        schedule.negatives,
        schedule.local_epochs,
        pairs=schedule.loss == "bpr",
        lowest=host.protocol.negatives == "fixed_lowest",
        cold=data.cold,
    )


def start_of(
    host: ClientHost,
    who: Int[np.ndarray, " k"],
    broadcast: Broadcast,
    samples: RoundSamples,
    targets: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> LocalStart:
    """The broadcast's rows that each client touches, its own private rows and parameters, its targets' rows and soft
    labels."""
    method, store = host.method, host.store
    tables = {k: broadcast.params[k] for k in method.shared_rows}
    tables |= {k: store.own[k].take(who, samples.row_ptr, samples.rows) for k in method.private_rows}
    flat = np.arange(len(samples.rows))
    client = np.repeat(np.arange(len(who)), samples.n_rows())
    private = {k: store.private[k][who] for k in method.private}
    return LocalStart(
        tables,
        {k: flat if k in method.private_rows else samples.rows for k in tables},
        {k: np.broadcast_to(v := broadcast.params[k], (len(who), *v.shape)) for k in method.shared_dense},
        private,
        {k: v[client, samples.rows] for k, v in targets.items()},
        soft_of(method.guide, broadcast, samples, private),
    )


def keep(
    host: ClientHost,
    who: Int[np.ndarray, " k"],
    broadcast: Broadcast,
    samples: RoundSamples,
    result: LocalResult,
    whole: Arrays,
) -> ClientStore:
    """The store after the round."""
    tuned, method = None, host.method
    if method.tuned:
        values = {k: result.rows[k] for k in method.tuned}
        scale = {k: result.decay[k] for k in method.tuned}
        tuned = TunedRows(samples.row_ptr, samples.rows, values, scale)
    base = {k: broadcast.params[k] for k in method.tuned}
    own: dict[str, OwnRows] = {
        k: host.store.own[k].updated(who, samples.row_ptr, samples.rows, result.rows[k], result.decay[k])
        for k in method.private_rows
    }
    return client_store.updated(host.store, who, broadcast.round, result.private, tuned, base, own, whole)


def keep_best(host: ClientHost, which: str = "best") -> ClientHost:
    """Remember this round's store as the best so far, or, under several metrics, as that of another one."""
    return replace(host, best=host.store) if which == "best" else replace(host, also={**host.also, which: host.store})


def scored_store(host: ClientHost, which: str) -> ClientStore:
    """The current store or one that was kept; from the broadcast's item tables where the protocol scores those."""
    store = {"current": host.store, "best": host.best, **host.also}[which]
    return client_store.untrained(store) if host.protocol.scored_table == "aggregated" else store


def evaluate(
    host: ClientHost, broadcast: Broadcast, splits: tuple[Split, ...], which: str = "current"
) -> tuple[dict[str, MetricSums], Seconds]:
    """Metric sums over this host's clients, per split, of the current round's store or of a kept one; and, where the
    method has traits, those of the clients."""
    seconds: Seconds = {}
    store = scored_store(host, which)
    sums: dict[str, MetricSums] = dict.fromkeys(splits, MetricSums.zero())
    with timed(seconds, "evaluate"):
        for who, scores in score_clients(host.method, store, broadcast.params, host.device):
            for split in splits:
                sums[split] = sums[split].merge(measure(host, who, scores, split))
    if host.method.traits is not None:
        with timed(seconds, "traits"):
            sums[TRAITS] = summed_traits(traits_of(host.method, host.data, store, broadcast.params))
    return sums, seconds


def measure(
    host: ClientHost, who: Int[np.ndarray, " k"], scores: Float32[np.ndarray, "k M"], split: Split
) -> MetricSums:
    """Metric sums of the clients at positions `who`, whose scores are given row for row."""
    return summed(measure_each(host, who, scores, split))


def measure_each(
    host: ClientHost, who: Int[np.ndarray, " k"], scores: Float32[np.ndarray, "k M"], split: Split
) -> ByClient:
    """`measure` before it is summed."""
    data = host.data.take(who)
    shortlist = host.candidates[split].take(who) if split in host.candidates else None
    return score_metrics(scores, data, split, host.protocol, shortlist, host.config.evaluation.k)


def per_client(host: ClientHost, broadcast: Broadcast, which: str = "best") -> tuple[MetricSums, Users]:
    """The test metrics of a kept round's store, in one pass: their sums, and each client's own, with its traits."""
    total, parts, store = MetricSums.zero(), [], scored_store(host, which)
    traits = traits_of(host.method, host.data, store, broadcast.params)
    for who, scores in score_clients(host.method, store, broadcast.params, host.device):
        found = measure_each(host, who, scores, "test")
        total = total.merge(summed(found))
        parts.append(users_of(host.data.client[who], found, {k: v[who] for k, v in traits.items()}))
    return total, merged(parts)


@contextmanager
def timed(seconds: Seconds, stage: str) -> Iterator[None]:
    """Add the wall time of the body to `seconds[stage]`."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def save(host: ClientHost, folder: str | Path, part: int) -> Path:
    """The clients' state of the best round as `clients-<part>.safetensors`; see `client_store.to_arrays`."""
    file = Path(folder) / f"clients-{part:05d}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"client": host.data.client, **client_store.to_arrays(host.best)}, file)
    return file


def load(host: ClientHost, files: Sequence[Path]) -> ClientHost:
    """The host with the saved state of its clients as current and best, wherever the files put them."""
    store = client_store.from_files([load_file(f) for f in files], host.data.client)
    return replace(host, store=store, best=store)
