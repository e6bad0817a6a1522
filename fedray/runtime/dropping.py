"""The executor that waits for nobody (`runtime.recovery: drop`): a round goes on without the clients of an actor that
is lost or late, and says how many those were.

Actors answer, not clients: of an actor, all clients are there or none is. One that is lost is made again while the
others go on, with its clients as of the last checkpoint (or as at the start). One that is late finishes what it does,
but nobody reads its report, and its clients go back to where they were before that round. Either joins at the first
round or validation after it is done with that. An actor does what it is told in order, so it is told all of this
without being waited for.

Only rounds and their validations go on so. A checkpoint, and all that a run ends with, is of all clients: there
everybody is waited for.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from jaxtyping import Int

from fedray.errors import FedrayError
from fedray.federated import cohort
from fedray.federated.aggregate import ZERO, Aggregate
from fedray.federated.clients import Seconds
from fedray.federated.executor import Sums, merge_groups, merge_reports, merge_sums
from fedray.federated.method import Method, Uploads
from fedray.federated.reports import TrainReport, check_report
from fedray.runtime.executor import RayExecutor, get
from fedray.runtime.failures import Dropping
from fedray.storage import Storage, Written
from fedray.types import Broadcast, Split

ONCE = {"max_task_retries": 0}
"""Ray would repeat a request on an actor that it started again, and not say meanwhile that the first one is dead."""


@dataclass
class Away:
    """An actor that is not with the others. back: the requests after which it can be. kept: as what the others
    remembered their states meanwhile."""

    back: list[Any]
    kept: set[str] = field(default_factory=set)


class DroppingExecutor(RayExecutor):
    """`RayExecutor`, whose rounds are of the actors that answer in time."""

    def __init__(
        self,
        actors: Sequence[Any],
        clients: Int[np.ndarray, " n"],
        method: Method,
        births: Sequence[Sequence[Any]],
        most_restarts: int,
        policy: Dropping,
    ) -> None:
        super().__init__(actors, clients, method, births, most_restarts)
        self._policy = policy
        self._away: dict[int, Away] = {}
        self._kept: set[str] = set()  # since the last checkpoint

    def train(self, broadcast: Broadcast, limit: np.uint64, targets: Uploads | None = None) -> TrainReport:
        """See `federated.executor.Executor`. Where so few report that there is no round, nobody has trained."""
        round_, until = broadcast.round, self._until()
        chosen = {i: self._chosen(ids, round_, limit) for i, ids in self._members().items()}
        self._gather(lambda: sum(chosen[i] for i in self._here()) >= self._policy.least, until)
        asked, members = self._asked(broadcast, limit, targets, chosen), self._members()
        landing = self._arriving(asked, until, lambda a: a.leave_out.remote(round_), chosen, self._policy.goal)
        done = merge_reports((check_report(self._method, broadcast, members[i], r) for i, r in landing), max)
        self._round = round_ + 1
        selected, landed = sum(chosen.values()), sum(chosen[i] for i in self._here())
        if landed >= self._policy.least:
            return replace(done, dropped=selected - landed)
        for i in filter(chosen.get, self._here()):
            self._actors[i].leave_out.remote(round_)
        return TrainReport(ZERO, 0, 0, {}, round=round_, dropped=selected, abandoned=True)

    def _chosen(self, ids: Int[np.ndarray, " k"], round_: int, limit: np.uint64) -> int:
        """How many of these clients are selected."""
        return int(cohort.members(self._policy.seed, round_, ids, limit).sum())

    def _asked(
        self, broadcast: Broadcast, limit: np.uint64, targets: Uploads | None, chosen: Mapping[int, int]
    ) -> dict[Any, int]:
        """Requests to those here to train; where no client is selected there is nothing to wait for."""
        own = self._split(targets) if targets else [None] * len(self._actors)
        params, asked = self._ref(broadcast), dict[Any, int]()
        for i in self._here():
            if chosen[i]:
                asked[self._actors[i].train.options(**ONCE).remote(params, broadcast.round, limit, own[i])] = i
            else:
                self._actors[i].leave_out.remote(broadcast.round)
        return asked

    def by_group(
        self, client: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
    ) -> tuple[tuple[Aggregate, ...], Seconds]:
        """See `federated.executor.Executor`. Who is lost or late here is missing in the sums of its groups."""
        found, seconds = merge_groups(self._timely("by_group", self._round, client, labels), max)
        groups = self._method.grouping.groups if self._method.grouping else 0
        return found or (ZERO,) * groups, seconds

    def evaluate(self, broadcast: Broadcast, splits: tuple[Split, ...], which: str) -> tuple[Sums, Seconds]:
        """See `federated.executor.Executor`. Over the clients that are there; if none are, over all."""
        self._gather(lambda: bool(self._here()), self._until())
        call = (self._ref(broadcast), broadcast.round, splits, which)
        found = merge_sums(self._timely("evaluate", *call), max)
        return found if found[0] else super().evaluate(broadcast, splits, which)

    def keep_best(self, which: str = "best") -> None:
        """See `RayExecutor`. Who is away does so when it joins."""
        self._kept.add(which)
        for away in self._away.values():
            away.kept.add(which)
        for i in self._here():
            self._keep(i, which)

    def committed(self, folder: Storage, files: Sequence[Written], round_: int) -> None:
        """See `federated.executor.Executor`."""
        super().committed(folder, files, round_)
        self._kept = set()

    def _landing(self, call: Callable[[Any, int], Any]) -> Iterator[tuple[int, Any]]:
        """What everybody answers, whoever is away."""
        self._gather(lambda: not self._away, math.inf)
        yield from super()._landing(call)

    def _caught_up(self, i: int) -> list[Any]:
        return [self._actors[i].join.remote(self._round, sorted(self._kept))]

    def _timely(self, what: str, *args: Any) -> Iterator[Any]:
        """What those here answer, each in time."""
        asked = {getattr(self._actors[i], what).options(**ONCE).remote(*args): i for i in self._here()}
        for _, answer in self._arriving(asked, self._until(), lambda a: a.ready.remote(), {}):
            yield answer

    def _arriving(
        self,
        waiting: dict[Any, int],
        until: float,
        back: Callable[[Any], Any],
        worth: Mapping[int, int],
        goal: float = math.inf,
    ) -> Iterator[tuple[int, Any]]:
        """What actors answer, as it lands, until it is worth the goal or time is up. Who is lost or late is away; back:
        what a late one is told."""
        while waiting and goal > 0:
            landed, _ = ray.wait(list(waiting), num_returns=1, timeout=_left(until))
            if not landed:
                break
            i = waiting.pop(landed[0])
            try:
                answer = self._answer(i, landed.pop())
            except FedrayError as error:
                self._lost(i, error)
                continue
            goal -= worth.get(i, 0)
            yield i, answer
            del answer
        for i in waiting.values():
            self._away[i] = Away([*self._unseen.pop(i, []), back(self._actors[i])])

    def _lost(self, i: int, error: FedrayError) -> None:
        """It is made again in the meantime."""
        self._failures.note(error)
        self._unseen.pop(i, None)
        self._away[i] = Away(self._remade(i), set(self._kept))

    def _here(self) -> list[int]:
        return [i for i in range(len(self._actors)) if i not in self._away]

    def _gather(self, enough: Callable[[], bool], until: float) -> None:
        """Who can be back joins; while those here are not enough, others are waited for."""
        while self._away:
            last = {away.back[-1]: i for i, away in self._away.items()}
            done, _ = ray.wait(list(last), num_returns=1, timeout=0 if enough() else _left(until))
            if not done:
                return
            self._join(last[done[0]])

    def _join(self, i: int) -> None:
        away = self._away.pop(i)
        try:
            for ref in away.back:
                get(ref)
        except FedrayError as error:
            self._lost(i, error)
            return
        self._actors[i].join.remote(self._round, sorted(away.kept))

    def _until(self) -> float:
        return time.monotonic() + self._policy.deadline_s


def _left(until: float) -> float | None:
    """Seconds; None: without end."""
    return None if until == math.inf else max(0.0, until - time.monotonic())
