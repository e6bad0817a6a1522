"""The executor on Ray: one `ray.put` of the broadcast a round, one call per actor, partial sums folded as they land."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import ray
from jaxtyping import Int
from ray import exceptions

from fedray.errors import ActorLostError, FedrayError
from fedray.evaluation.metrics import MetricSums
from fedray.evaluation.users import Users
from fedray.federated.aggregate import Aggregate
from fedray.federated.clients import Seconds, TrainReport
from fedray.federated.executor import Sums, merge_groups, merge_reports, merge_sums, merge_users
from fedray.federated.method import Uploads
from fedray.types import Arrays, Broadcast, Split

T = TypeVar("T")


class RayExecutor:
    """Runs rounds on `ClientActor`s that somebody else owns."""

    def __init__(self, actors: Sequence[Any], clients: Int[np.ndarray, " n"]) -> None:
        self._actors = list(actors)
        self._put: tuple[Arrays, Any] | None = None
        self._members: list[Any] = []
        self.clients = clients

    def train(self, broadcast: Broadcast, limit: np.uint64, targets: Uploads | None = None) -> TrainReport:
        """See `federated.executor.Executor`."""
        params = self._ref(broadcast)
        own = self._split(targets) if targets else [None] * len(self._actors)
        calls = [a.train.remote(params, broadcast.round, limit, t) for a, t in zip(self._actors, own)]
        return merge_reports(as_they_land(calls), max)

    def _split(self, targets: Uploads) -> list[Any]:
        """Each actor's part, in the object store: no client gets what was made for another's actor."""
        self._members = self._members or [get(a.members.remote()) for a in self._actors]
        mine = [np.flatnonzero(np.isin(targets.client, m)) for m in self._members]
        return [ray.put(Uploads(targets.client[i], {k: v[i] for k, v in targets.tables.items()})) for i in mine]

    def by_group(
        self, client: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
    ) -> tuple[tuple[Aggregate, ...], Seconds]:
        """See `federated.executor.Executor`."""
        return merge_groups(as_they_land([a.by_group.remote(client, labels) for a in self._actors]), max)

    def evaluate(self, broadcast: Broadcast, splits: tuple[Split, ...], which: str) -> tuple[Sums, Seconds]:
        """See `federated.executor.Executor`."""
        params = self._ref(broadcast)
        call = (params, broadcast.round, splits, which)
        return merge_sums(as_they_land([a.evaluate.remote(*call) for a in self._actors]), max)

    def keep_best(self, which: str = "best") -> None:
        """Queued behind the evaluation; nothing to wait for."""
        for actor in self._actors:
            actor.keep_best.remote(which)

    def per_client(self, broadcast: Broadcast, which: str = "best") -> tuple[MetricSums, Users]:
        """See `federated.executor.Executor`."""
        call = (self._ref(broadcast), broadcast.round, which)
        return merge_users(as_they_land([a.per_client.remote(*call) for a in self._actors]))

    def local_only(self, first: Broadcast, rounds: int) -> Sums:
        """See `federated.executor.Executor`."""
        call = (self._ref(first), first.round, rounds)
        landing = as_they_land([a.local_only.remote(*call) for a in self._actors])
        return merge_sums(((sums, {}) for sums in landing), max)[0]

    def save(self, folder: str) -> list[str]:
        """Every actor writes its clients' best state; the files."""
        return list(as_they_land([a.save.remote(folder, i) for i, a in enumerate(self._actors)]))

    def nothing(self, broadcast: Broadcast) -> None:
        """An empty round."""
        params = self._ref(broadcast)
        list(as_they_land([a.nothing.remote(params, broadcast.round) for a in self._actors]))

    def _ref(self, broadcast: Broadcast) -> Any:
        """The state after a round is evaluated and then trained from: it is put once. Known by itself and not by its
        round: at the end a round goes down in several versions."""
        if self._put is None or self._put[0] is not broadcast.params:
            self._put = (broadcast.params, ray.put(broadcast.params))
        return self._put[1]


def as_they_land(refs: list[Any]) -> Iterator[Any]:
    """Results in order of arrival; sums are exact, so the order cannot matter. A result is freed once it is folded."""
    while refs:
        done, refs = ray.wait(refs, num_returns=1)
        yield get(done.pop())


def get(ref: Any) -> Any:
    """`ray.get` with fedray's errors: what an actor raised on purpose comes back as itself."""
    try:
        return ray.get(ref)
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, FedrayError):
            raise error.cause from None
        raise
    except exceptions.RayError as error:
        raise ActorLostError(
            f"an actor was lost ({type(error).__name__}): {_cause(error)}",
            "all actors alive to the end",
            "Look at the memory of the machine and at `ray logs`; start the run again.",
        ) from error


def _cause(error: Exception) -> str:
    """The last line of what Ray knows: for an error in an actor's start that is the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no details"]
    return lines[-1] if "creation task" in lines[0] else lines[0]
