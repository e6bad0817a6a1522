"""A Ray actor that is one client, or many: it holds their private interactions and local models.

Its clients' data arrive once, at creation, and never leave; what it returns is a sum over its cohort (in literal
mode, `runtime.clients_per_actor: 1`, that "sum" is one client's upload), except for methods that collect each client's
tables (GPFedRec), and, at the end of a run, each client's test metrics and traits. Of the items' content it is told the
features' names alone: what clients compute with comes in broadcasts. The shell keeps one `ClientHost` and calls one
pure function per request.
"""

import os
import time
from typing import Any

import numpy as np
import ray
import torch

from fedray.config import RunConfig
from fedray.evaluation.metrics import MetricSums
from fedray.evaluation.users import Users
from fedray.federated import clients
from fedray.federated.aggregate import Aggregate
from fedray.federated.clients import Seconds, TrainReport
from fedray.federated.local_only import local_only
from fedray.federated.method import Uploads
from fedray.methods import build
from fedray.types import Arrays, Broadcast, ClientData, FeatureNames, Split


class ClientActor:
    """One or many clients. `max_concurrency` is 1: requests run in the order they come."""

    def __init__(
        self, config: RunConfig, data: ClientData, device: str, initial: Arrays, features: FeatureNames | None
    ) -> None:
        torch.set_num_threads(1)
        method = build(config, data.n_items, features)
        own = data.take(np.arange(len(data)))  # a copy, for the reasons of `_own`
        self._host = clients.make_host(config, method, own, device, initial)

    def ready(self) -> dict[str, Any]:
        """Who is here."""
        return {"pid": os.getpid(), "clients": len(self._host.data)}

    def members(self) -> np.ndarray:
        """The ids of the clients that are here."""
        return self._host.data.client

    def train(self, params: Arrays, round_: int, limit: np.uint64, targets: Uploads | None = None) -> TrainReport:
        """One round; see `clients.train`."""
        self._host, report = clients.train(self._host, Broadcast(round_, _own(params)), limit, targets)
        return report

    def by_group(self, client: np.ndarray, labels: np.ndarray) -> tuple[tuple[Aggregate, ...], Seconds]:
        """Sums by group of what was trained last; see `clients.by_group`."""
        self._host, sums, seconds = clients.by_group(self._host, client, labels)
        return sums, seconds

    def evaluate(
        self, params: Arrays, round_: int, splits: tuple[Split, ...], which: str
    ) -> tuple[dict[str, MetricSums], Seconds]:
        """Metric sums; see `clients.evaluate`."""
        return clients.evaluate(self._host, Broadcast(round_, _own(params)), splits, which)

    def keep_best(self, which: str) -> None:
        """Remember this round's state; see `clients.keep_best`."""
        self._host = clients.keep_best(self._host, which)

    def per_client(self, params: Arrays, round_: int, which: str) -> tuple[MetricSums, Users]:
        """Test metrics of each client; see `clients.per_client`."""
        return clients.per_client(self._host, Broadcast(round_, _own(params)), which)

    def local_only(self, params: Arrays, round_: int, rounds: int) -> dict[str, MetricSums]:
        """The control with federation off; every client takes its own copy of `params`."""
        return local_only(self._host, Broadcast(round_, params), rounds)

    def save(self, folder: str, part: int) -> str:
        """Write the best round's client state under `folder`."""
        return str(clients.save(self._host, folder, part))

    def nothing(self, params: Arrays, round_: int) -> float:
        """An empty round, to measure what the shell itself costs."""
        return time.time() + 0.0 * (round_ + len(params))


Remote = ray.remote(ClientActor)
"""The actor class to place."""


def _own(params: Arrays) -> Arrays:
    """A copy: what arrived is a read-only view, and keeping it would keep it in the node's object store."""
    return {k: v.copy() for k, v in params.items()}
