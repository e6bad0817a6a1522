"""Where rounds run. `rounds.py` is handed an `Executor`; the serial one is also the fake that tests use.

An executor gives sums over all clients, never one client's part, except for methods that collect each client's tables
(GPFedRec) and for `per_client`, once, at the end of a run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int

from fedray.evaluation.metrics import MetricSums
from fedray.evaluation.users import Users, merged
from fedray.federated import client_snapshots, clients, rejections
from fedray.federated.aggregate import ZERO, Aggregate, merge
from fedray.federated.clients import ClientHost, Seconds
from fedray.federated.local_only import local_only
from fedray.federated.method import Uploads
from fedray.federated.reports import TrainReport, check_report
from fedray.storage import Storage, Written
from fedray.types import Broadcast, Split

Sums = dict[str, MetricSums]


class Executor(Protocol):
    """Runs one step on every host of clients and adds up what they return."""

    clients: Int[np.ndarray, " n"]
    restarts: int
    """Hosts that were lost so far, and made again."""
    kept_bytes: int
    """Of what went down since the last checkpoint, kept to do the rounds again."""

    def train(self, broadcast: Broadcast, limit: np.uint64, targets: Uploads | None) -> TrainReport:
        """One round of local training on the cohort; the sum of its uploads. targets: see `clients.train`."""
        ...

    def by_group(
        self, client: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
    ) -> tuple[tuple[Aggregate, ...], Seconds]:
        """Sums by group of what the round's clients trained; `client` ascending."""
        ...

    def evaluate(self, broadcast: Broadcast, splits: tuple[Split, ...], which: str) -> tuple[Sums, Seconds]:
        """Metric sums of the splits; `which` is 'current' or what `keep_best` kept."""
        ...

    def keep_best(self, which: str = "best") -> None:
        """Every client remembers its state of this round as the best (under several metrics: as that of `which`)."""
        ...

    def per_client(self, broadcast: Broadcast, which: str = "best") -> tuple[MetricSums, Users]:
        """Test metrics of the best round, summed and for each client by id."""
        ...

    def local_only(self, first: Broadcast, rounds: int) -> Sums:
        """The control with federation off, from the broadcast before the first round."""
        ...

    def snapshot(self, folder: Storage) -> list[Written]:
        """Every host writes its clients' state; the files."""
        ...

    def restore(self, folder: Storage, files: Sequence[Written], round_: int) -> None:
        """All clients are as these files have them, after `round_` rounds; without files, as they were made."""
        ...

    def committed(self, folder: Storage, files: Sequence[Written], round_: int) -> None:
        """These files are a checkpoint now: what is lost from here on is restored from them."""
        ...


class SerialExecutor:
    """Hosts in this process, one after the other, on one thread."""

    def __init__(self, hosts: Iterable[ClientHost]) -> None:
        torch.set_num_threads(1)
        self._hosts = list(hosts)
        self._made = [(h.config, h.method, h.data, h.device) for h in self._hosts]
        self.restarts = self.kept_bytes = 0
        self.clients = np.sort(np.concatenate([h.data.client for h in self._hosts]))

    def train(self, broadcast: Broadcast, limit: np.uint64, targets: Uploads | None = None) -> TrainReport:
        """See `Executor`."""
        # the rows of the last round, before there are those of another
        self._hosts = [h if h.trained is None else replace(h, trained=None) for h in self._hosts]
        done = [clients.train(h, broadcast, limit, targets) for h in self._hosts]
        checked = [check_report(h.method, broadcast, h.data.client, report) for h, report in done]
        self._hosts = [h for h, _ in done]
        return merge_reports(checked, add)

    def by_group(
        self, client: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
    ) -> tuple[tuple[Aggregate, ...], Seconds]:
        """See `Executor`."""
        done = [clients.by_group(h, client, labels) for h in self._hosts]
        self._hosts = [h for h, _, _ in done]
        return merge_groups(((sums, took) for _, sums, took in done), add)

    def evaluate(self, broadcast: Broadcast, splits: tuple[Split, ...], which: str) -> tuple[Sums, Seconds]:
        """See `Executor`."""
        return merge_sums((clients.evaluate(h, broadcast, splits, which) for h in self._hosts), add)

    def keep_best(self, which: str = "best") -> None:
        """See `Executor`."""
        self._hosts = [clients.keep_best(h, which) for h in self._hosts]

    def per_client(self, broadcast: Broadcast, which: str = "best") -> tuple[MetricSums, Users]:
        """See `Executor`."""
        return merge_users(clients.per_client(h, broadcast, which) for h in self._hosts)

    def local_only(self, first: Broadcast, rounds: int) -> Sums:
        """See `Executor`."""
        return merge_sums(((local_only(h, first, rounds), {}) for h in self._hosts), add)[0]

    def snapshot(self, folder: Storage) -> list[Written]:
        """See `Executor`."""
        return [client_snapshots.written(h, folder, i) for i, h in enumerate(self._hosts)]

    def restore(self, folder: Storage, files: Sequence[Written], round_: int) -> None:
        """See `Executor`."""
        fresh = [clients.make_host(*made) for made in self._made]
        self._hosts = [client_snapshots.read(h, folder, files) for h in fresh] if files else fresh

    def committed(self, folder: Storage, files: Sequence[Written], round_: int) -> None:
        """Nothing: hosts in this process are not lost one by one."""

    def save(self, folder: str) -> list[str]:
        """Write the clients' best state; the files."""
        return [str(clients.save(h, folder, i)) for i, h in enumerate(self._hosts)]


def add(a: float, b: float) -> float:
    """Seconds of hosts that took turns; hosts that ran side by side take `max`."""
    return a + b


def merge_reports(reports: Iterable[TrainReport], join: Callable[[float, float], float]) -> TrainReport:
    """One report of all hosts."""

    def both(a: TrainReport, b: TrainReport) -> TrainReport:
        seconds = merge_seconds(a.seconds, b.seconds, join)
        counts = a.clients + b.clients, a.bytes_up + b.bytes_up
        lists = a.uploads + b.uploads, a.vectors + b.vectors
        rejected, round_ = rejections.both(a.rejected, b.rejected), max(a.round, b.round)
        return TrainReport(merge(a.total, b.total), *counts, seconds, *lists, rejected, round_)

    return reduce(both, reports, TrainReport(ZERO, 0, 0, {}))


def merge_sums(parts: Iterable[tuple[Sums, Seconds]], join: Callable[[float, float], float]) -> tuple[Sums, Seconds]:
    """The sums of all hosts."""
    total: Sums = {}
    seconds: Seconds = {}
    for sums, took in parts:
        total = {k: total[k].merge(v) if k in total else v for k, v in sums.items()}
        seconds = merge_seconds(seconds, took, join)
    return total, seconds


def merge_groups(
    parts: Iterable[tuple[tuple[Aggregate, ...], Seconds]], join: Callable[[float, float], float]
) -> tuple[tuple[Aggregate, ...], Seconds]:
    """Group by group, the sums of all hosts; a host none of whose clients trained has none."""
    total: tuple[Aggregate, ...] = ()
    seconds: Seconds = {}
    for sums, took in parts:
        total = tuple(merge(a, b) for a, b in zip(total, sums, strict=True)) if total and sums else total or sums
        seconds = merge_seconds(seconds, took, join)
    return total, seconds


def merge_users(parts: Iterable[tuple[MetricSums, Users]]) -> tuple[MetricSums, Users]:
    """The sums and the clients of all hosts."""
    sums, users = zip(*parts, strict=True)
    return reduce(MetricSums.merge, sums, MetricSums.zero()), merged(users)


def merge_seconds(a: Seconds, b: Seconds, join: Callable[[float, float], float]) -> Seconds:
    """Stage by stage."""
    return {k: join(a.get(k, 0.0), b.get(k, 0.0)) for k in {**a, **b}}
