"""A Ray actor that is one client, or many: it holds their private interactions and local models.

Its clients' data arrive once, at creation, and never leave; what it returns is a sum over its cohort (in literal
mode, `runtime.clients_per_actor: 1`, that "sum" is one client's upload), except for methods that collect each client's
tables (GPFedRec), and, at the end of a run, each client's test metrics and traits. Of the items' content it is told the
features' names alone: what clients compute with comes in broadcasts. The shell keeps one `ClientHost` and calls one
pure function per request.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import ray
import torch

from fedray.config import RunConfig
from fedray.errors import OutOfStepError
from fedray.evaluation.metrics import MetricSums
from fedray.evaluation.users import Users
from fedray.federated import client_snapshots, clients
from fedray.federated.aggregate import Aggregate
from fedray.federated.clients import ClientHost, Seconds
from fedray.federated.local_only import local_only
from fedray.federated.method import Uploads
from fedray.federated.reports import TrainReport
from fedray.methods import build
from fedray.storage import Storage, Written
from fedray.types import Arrays, Broadcast, ClientData, FeatureNames, Split


class ClientActor:
    """One or many clients. `max_concurrency` is 1: requests run in the order they come.

    Ray starts it again when it dies and repeats what it was asked. That is safe, because a request says which round it
    is about: an actor in another one (fresh, or done with it already) refuses, and the executor restores it first.
    """

    def __init__(self, config: RunConfig, device: str, features: FeatureNames | None) -> None:
        torch.set_num_threads(1)
        self._about = config, device, features
        self._fresh: Callable[[], ClientHost] | None = None
        self._host: ClientHost | None = None
        self._before: ClientHost | None = None

    def begin(self, data: ClientData, initial: Arrays) -> None:
        """Whose clients these are. Not said to the constructor: Ray may forget a large argument of it, and then could
        not start the actor again."""
        config, device, features = self._about
        method = build(config, data.n_items, features)
        own, first = data.take(np.arange(len(data))), _own(initial)  # copies, for the reasons of `_own`
        self._fresh = partial(clients.make_host, config, method, own, device, first)
        self._host = self._fresh()

    def ready(self) -> dict[str, Any]:
        """Who is here."""
        return {"pid": os.getpid(), "clients": len(self._mine().data)}

    def members(self) -> np.ndarray:
        """The ids of the clients that are here."""
        return self._mine().data.client

    def train(self, params: Arrays, round_: int, limit: np.uint64, targets: Uploads | None = None) -> TrainReport:
        """One round; see `clients.train`."""
        self._host = replace(self._in(round_), trained=None)
        if self._about[0].runtime.recovery == "drop":
            self._before = self._host
        self._host, report = clients.train(self._host, Broadcast(round_, _own(params)), limit, targets)
        return report

    def replay(
        self, params: Arrays, round_: int, limit: np.uint64, targets: Uploads | None, kept: Sequence[str]
    ) -> None:
        """A round that was summed already, again; `kept`: as what the state after it was remembered."""
        self.train(params, round_, limit, targets)
        for which in kept:
            self.keep_best(round_ + 1, which)

    def leave_out(self, round_: int) -> None:
        """That round is done without these clients: they are as before it, whether or not they trained meanwhile."""
        before = self._before if self._before is not None and self._before.round == round_ else self._in(round_)
        self._host = replace(before, trained=None, round=round_ + 1)

    def join(self, round_: int, kept: Sequence[str]) -> None:
        """Back, as they are, among the others, which are after `round_` rounds; `kept`: as what those remembered their
        states in the meantime."""
        self._host = replace(self._mine(), trained=None, round=round_)
        for which in kept:
            self.keep_best(round_, which)

    def by_group(self, round_: int, client: np.ndarray, labels: np.ndarray) -> tuple[tuple[Aggregate, ...], Seconds]:
        """Sums by group of what was trained last; see `clients.by_group`."""
        self._host, sums, seconds = clients.by_group(self._in(round_), client, labels)
        return sums, seconds

    def evaluate(
        self, params: Arrays, round_: int, splits: tuple[Split, ...], which: str
    ) -> tuple[dict[str, MetricSums], Seconds]:
        """Metric sums; see `clients.evaluate`."""
        return clients.evaluate(self._in(round_), Broadcast(round_, _own(params)), splits, which)

    def keep_best(self, round_: int, which: str) -> None:
        """Remember this round's state; see `clients.keep_best`."""
        self._host = clients.keep_best(self._in(round_), which)

    def per_client(self, params: Arrays, at: int, round_: int, which: str) -> tuple[MetricSums, Users]:
        """Test metrics of each client, after `at` rounds, with the broadcast of `round_`; see `clients.per_client`."""
        return clients.per_client(self._in(at), Broadcast(round_, _own(params)), which)

    def local_only(self, params: Arrays, round_: int, rounds: int) -> dict[str, MetricSums]:
        """The control with federation off; every client takes its own copy of `params`."""
        return local_only(self._mine(), Broadcast(round_, params), rounds)

    def snapshot(self, round_: int, folder: Storage, part: int) -> Written:
        """The clients' state as a file in `folder`."""
        return client_snapshots.written(self._in(round_), folder, part)

    def restore(self, folder: Storage, files: Sequence[Written]) -> int:
        """Back to what these files have, or to the start; after how many rounds that is."""
        if self._fresh is None:
            raise OutOfStepError("an actor was started again and has no clients", "begin() first")
        fresh, self._before = self._fresh(), None
        self._host = client_snapshots.read(fresh, folder, files) if files else fresh
        return self._host.round

    def save(self, round_: int, folder: str, part: int) -> str:
        """Write the best round's client state under `folder`."""
        return str(clients.save(self._in(round_), folder, part))

    def sees(self, folder: Storage, name: str) -> bool:
        """Whether a file that another process wrote is there."""
        return name in folder.names()

    def nothing(self, params: Arrays, round_: int) -> float:
        """An empty round, to measure what the shell itself costs."""
        return time.time() + 0.0 * (round_ + len(params))

    def _mine(self) -> ClientHost:
        if self._host is None:
            raise OutOfStepError("an actor was started again and has no clients", "begin() first")
        return self._host

    def _in(self, round_: int) -> ClientHost:
        if (here := self._mine()).round != round_:
            raise OutOfStepError(f"an actor is after round {here.round}", f"it to be after round {round_}")
        return here


Remote = ray.remote(ClientActor)
"""The actor class to place."""


def _own(params: Arrays) -> Arrays:
    """A copy: what arrived is a read-only view, and keeping it would keep it in the node's object store."""
    return {k: v.copy() for k, v in params.items()}
