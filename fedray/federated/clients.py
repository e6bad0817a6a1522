"""A host of clients: the private data and state of one or many, and the pure functions that work on them.

A `ClientActor` is a thin shell round one `ClientHost`; so is each part of the `SerialExecutor`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int
from safetensors.numpy import load_file, save_file

from fedray.config import RunConfig
from fedray.data.blocks import RoundSamples, draw_samples
from fedray.data.negatives import candidates, spared
from fedray.data.protocols import Protocol, protocol
from fedray.evaluation.metrics import MetricSums, evaluate_scores
from fedray.federated import client_store
from fedray.federated.aggregate import ZERO, Aggregate, merge, sum_dense, sum_rows, sum_scalars
from fedray.federated.client_store import ClientStore, TunedRows
from fedray.federated.cohort import members
from fedray.federated.local_training import LocalResult, LocalStart, train_clients
from fedray.federated.method import Method
from fedray.federated.scoring import score_clients
from fedray.types import Broadcast, ClientData, Ragged, Split

Seconds = dict[str, float]


@dataclass(frozen=True)
class ClientHost:
    """Clients and everything that is theirs. Frozen: training returns a new host."""

    config: RunConfig
    method: Method
    data: ClientData
    spare: Ragged
    candidates: dict[str, Ragged]
    store: ClientStore
    best: ClientStore
    device: str = "cpu"

    @property
    def protocol(self) -> Protocol:
        """The run's protocol."""
        return protocol(self.config.evaluation.protocol)


@dataclass(frozen=True)
class TrainReport:
    """What leaves a host after a round: one partial sum, never one table per client."""

    total: Aggregate
    clients: int
    bytes_up: int
    seconds: Seconds


def make_host(config: RunConfig, method: Method, data: ClientData, device: str = "cpu") -> ClientHost:
    """Clients at their start. Initial values depend on seed and client only."""
    rules = protocol(config.evaluation.protocol)
    private = method.init_clients(config.seed, data.client)
    tables = {k: v for k, v in method.init_server(config.seed).items() if k in method.tuned}
    store = client_store.fresh(private, len(data), tables)
    shortlist = candidates(config.data.seed, data) if "sampled99" in rules.rankings else {}
    return ClientHost(config, method, data, spared(data, rules), shortlist, store, store, device)


def train(host: ClientHost, broadcast: Broadcast, limit: np.uint64) -> tuple[ClientHost, TrainReport]:
    """One round on this host's share of the cohort (see `cohort`)."""
    seconds: Seconds = {}
    chosen = members(host.config.seed, broadcast.round, host.data.client, limit)
    who = np.flatnonzero(chosen & (host.data.train.lengths() > 0))
    if len(who) == 0:
        return host, TrainReport(ZERO, 0, 0, seconds)
    with timed(seconds, "samples"):
        samples = samples_of(host, who, broadcast.round)
    with timed(seconds, "train"):
        start = start_of(host, who, broadcast, samples)
        result = train_clients(host.method, host.config.train, broadcast.round, start, samples, host.device)
    with timed(seconds, "aggregate"):
        total = sum_uploads(host.method, broadcast, samples, result)
    with timed(seconds, "store"):
        store = keep(host, who, broadcast, samples, result)
    report = TrainReport(total.compact(), len(who), upload_bytes(host.method, samples, result), seconds)
    return replace(host, store=store), report


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
    )


def start_of(host: ClientHost, who: Int[np.ndarray, " k"], broadcast: Broadcast, samples: RoundSamples) -> LocalStart:
    """The broadcast's rows that each client touches, and its own private parameters."""
    method = host.method
    return LocalStart(
        {k: broadcast.params[k] for k in method.shared_rows},
        samples.rows,
        {k: np.broadcast_to(v := broadcast.params[k], (len(who), *v.shape)) for k in method.shared_dense},
        {k: host.store.private[k][who] for k in method.private},
    )


def sum_uploads(method: Method, broadcast: Broadcast, samples: RoundSamples, result: LocalResult) -> Aggregate:
    """All uploads of the clients as one exact sum: declared tables, weights and losses, nothing private."""
    weight = method.weight(samples.n_samples())
    parts = [
        sum_rows(k, broadcast.params[k], result.rows[k], samples.rows, samples.row_ptr, result.decay[k], weight)
        for k in method.shared_rows
    ]
    parts += [sum_dense(k, broadcast.params[k], result.dense[k], weight) for k in method.shared_dense]
    n = samples.n_samples()
    losses = {
        "loss": result.loss.astype(np.float64),
        "clients": np.ones(len(n)),
        "samples": n.astype(np.float64),
    }
    return reduce(merge, parts, sum_scalars(losses))


def upload_bytes(method: Method, samples: RoundSamples, result: LocalResult) -> int:
    """What the clients of this host would send, as 4-byte numbers: the ids of the rows they touched, row and dense
    deltas, and under weight decay one factor per client and table."""
    factors = sum(len(f) for f in result.decay.values() if np.any(f != 1.0))
    rows = len(samples.rows) + sum(result.rows[k].size for k in method.shared_rows)
    return 4 * (rows + factors + sum(result.dense[k].size for k in method.shared_dense))


def keep(
    host: ClientHost,
    who: Int[np.ndarray, " k"],
    broadcast: Broadcast,
    samples: RoundSamples,
    result: LocalResult,
) -> ClientStore:
    """The store after the round."""
    tuned = None
    if host.method.tuned:
        values = {k: result.rows[k] for k in host.method.tuned}
        scale = {k: result.decay[k] for k in host.method.tuned}
        tuned = TunedRows(samples.row_ptr, samples.rows, values, scale)
    base = {k: broadcast.params[k] for k in host.method.tuned}
    return client_store.updated(host.store, who, broadcast.round, result.private, tuned, base)


def keep_best(host: ClientHost) -> ClientHost:
    """Remember this round's store: validation found it the best so far."""
    return replace(host, best=host.store)


def evaluate(
    host: ClientHost, broadcast: Broadcast, splits: tuple[Split, ...], which: str = "current"
) -> tuple[dict[str, MetricSums], Seconds]:
    """Metric sums over this host's clients, per split, of the current or the best round's store."""
    seconds: Seconds = {}
    store = host.best if which == "best" else host.store
    sums: dict[str, MetricSums] = dict.fromkeys(splits, MetricSums.zero())
    with timed(seconds, "evaluate"):
        for who, scores in score_clients(host.method, store, broadcast.params, host.device):
            for split in splits:
                sums[split] = sums[split].merge(measure(host, who, scores, split))
    return sums, seconds


def measure(
    host: ClientHost, who: Int[np.ndarray, " k"], scores: Float32[np.ndarray, "k M"], split: Split
) -> MetricSums:
    """Metric sums of the clients at positions `who`, whose scores are given row for row."""
    data = host.data.take(who)
    shortlist = host.candidates[split].take(who) if split in host.candidates else None
    return evaluate_scores(scores, data, split, host.protocol, shortlist, host.config.evaluation.k)


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
