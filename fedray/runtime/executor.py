"""The executor on Ray: one `ray.put` of the broadcast a round, one call per actor, partial sums folded as they land;
and what makes it exact: an actor that is lost is restored and does its rounds since the last checkpoint again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from jaxtyping import Int
from ray import exceptions

from fedray.errors import ActorLostError, FedrayError
from fedray.evaluation.metrics import MetricSums
from fedray.evaluation.users import Users
from fedray.federated.aggregate import Aggregate
from fedray.federated.clients import Seconds
from fedray.federated.executor import Sums, merge_groups, merge_reports, merge_sums, merge_users
from fedray.federated.method import Method, Uploads
from fedray.federated.reports import TrainReport, check_report
from fedray.runtime.failures import Failures, recoverable
from fedray.storage import Storage, Written
from fedray.types import Arrays, Broadcast, Split


@dataclass
class Trained:
    """A round since the last checkpoint, as it went down: enough to do it again. targets: each actor's, or None."""

    params: Any
    round: int
    limit: np.uint64
    targets: list[Any]
    size: int
    kept: list[str] = field(default_factory=list)


class RayExecutor:
    """Runs rounds on `ClientActor`s that somebody else owns. Sums are exact, so in which order they land, and how
    often they are made, cannot matter: to one request each actor's one answer is summed, and what else it may have
    answered before it was lost is never read. births: what each actor is told first (see `ClientActor.begin`)."""

    def __init__(
        self,
        actors: Sequence[Any],
        clients: Int[np.ndarray, " n"],
        method: Method,
        births: Sequence[Sequence[Any]] = (),
        most_restarts: int = 0,
    ) -> None:
        self._actors, self._births = list(actors), births
        self._method = method
        self._put: tuple[Arrays, Any] | None = None
        self._known: dict[int, Any] = {}
        self._failures = Failures(most_restarts)
        self._since: list[Trained] = []
        self._at: tuple[Storage, Sequence[Written]] = (Storage(""), ())
        self._round = 0
        self._restoring: dict[int, list[Any]] = {}
        self._unseen: dict[int, list[Any]] = {}
        self.clients = clients

    @property
    def kept_bytes(self) -> int:
        """See `Executor`."""
        return sum(t.size for t in self._since)

    @property
    def restarts(self) -> int:
        """See `Executor`."""
        return self._failures.restarts

    def train(self, broadcast: Broadcast, limit: np.uint64, targets: Uploads | None = None) -> TrainReport:
        """See `federated.executor.Executor`."""
        own = self._split(targets) if targets else [None] * len(self._actors)
        tables = (*broadcast.params.values(), *(targets.tables.values() if targets else ()))
        now = Trained(self._ref(broadcast), broadcast.round, limit, own, sum(v.nbytes for v in tables))
        members = self._members()
        landing = self._landing(lambda a, i: a.train.remote(now.params, now.round, limit, own[i]))
        done = merge_reports((check_report(self._method, broadcast, members[i], r) for i, r in landing), max)
        if self._failures.most:
            self._since.append(now)
        self._round = broadcast.round + 1
        return done

    def _split(self, targets: Uploads) -> list[Any]:
        """Each actor's part, in the object store: no client gets what was made for another's actor."""
        known = self._members()
        mine = [np.flatnonzero(np.isin(targets.client, known[i])) for i in range(len(self._actors))]
        return [ray.put(Uploads(targets.client[i], {k: v[i] for k, v in targets.tables.items()})) for i in mine]

    def _members(self) -> dict[int, Any]:
        """The ids of each actor's clients, asked for once."""
        if not self._known:
            self._known = dict(self._landing(lambda a, _: a.members.remote()))
        return self._known

    def by_group(
        self, client: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
    ) -> tuple[tuple[Aggregate, ...], Seconds]:
        """See `federated.executor.Executor`."""
        return merge_groups(self._each(lambda a, _: a.by_group.remote(self._round, client, labels)), max)

    def evaluate(self, broadcast: Broadcast, splits: tuple[Split, ...], which: str) -> tuple[Sums, Seconds]:
        """See `federated.executor.Executor`."""
        call = (self._ref(broadcast), broadcast.round, splits, which)
        return merge_sums(self._each(lambda a, _: a.evaluate.remote(*call)), max)

    def keep_best(self, which: str = "best") -> None:
        """Queued behind the evaluation; nothing to wait for. Whether it was done is seen with the next answer."""
        for i in range(len(self._actors)):
            self._keep(i, which)
        if self._since:
            self._since[-1].kept.append(which)

    def _keep(self, i: int, which: str) -> None:
        self._unseen.setdefault(i, []).append(self._actors[i].keep_best.remote(self._round, which))

    def _answer(self, i: int, ref: Any) -> Any:
        """What actor i says to a request, if it did what it was told before."""
        answer = get(ref)
        for told in self._unseen.pop(i, []):
            get(told)
        return answer

    def per_client(self, broadcast: Broadcast, which: str = "best") -> tuple[MetricSums, Users]:
        """See `federated.executor.Executor`."""
        call = (self._ref(broadcast), self._round, broadcast.round, which)
        return merge_users(self._each(lambda a, _: a.per_client.remote(*call)))

    def local_only(self, first: Broadcast, rounds: int) -> Sums:
        """See `federated.executor.Executor`."""
        call = (self._ref(first), first.round, rounds)
        landing = self._each(lambda a, _: a.local_only.remote(*call))
        return merge_sums(((sums, {}) for sums in landing), max)[0]

    def snapshot(self, folder: Storage) -> list[Written]:
        """See `federated.executor.Executor`."""
        return sorted(self._each(lambda a, i: a.snapshot.remote(self._round, folder, i)))

    def committed(self, folder: Storage, files: Sequence[Written], round_: int) -> None:
        """See `federated.executor.Executor`. What the rounds before sent down is freed."""
        self._at, self._since = (folder, tuple(files)), []

    def restore(self, folder: Storage, files: Sequence[Written], round_: int) -> None:
        """See `federated.executor.Executor`."""
        self.committed(folder, files, round_)
        self._round = round_
        for done in self._each(lambda a, _: a.restore.remote(*self._at)):
            assert done == round_, f"files of round {done} where {round_} was asked for"

    def save(self, folder: str) -> list[str]:
        """Every actor writes its clients' best state; the files."""
        return list(self._each(lambda a, i: a.save.remote(self._round, folder, i)))

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

    def _each(self, call: Callable[[Any, int], Any]) -> Iterator[Any]:
        """`_landing`, whoever answers."""
        for _, answer in self._landing(call):
            yield answer
            del answer

    def _landing(self, call: Callable[[Any, int], Any]) -> Iterator[tuple[int, Any]]:
        """What each actor answers, as it lands. A lost one is restored meanwhile, and asked again: what it may answer
        to the first request after all is nobody's."""
        waiting = {call(a, i): i for i, a in enumerate(self._actors)}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            i = waiting.pop(done)
            try:
                answer = self._answer(i, done)
            except FedrayError as error:
                self._restore_one(i, error)
                waiting[call(self._actors[i], i)] = i
                continue
            self._restoring.pop(i, None)
            yield i, answer
            del answer, done

    def _restore_one(self, i: int, error: FedrayError) -> None:
        """Requests that bring a fresh actor to where it was; they are not waited for, since it does one after the
        other. If the last attempt at that failed by itself (its files are gone, say) that is the error."""
        self._failures.note(error)
        self._unseen.pop(i, None)
        for ref in self._restoring.pop(i, []):
            if ray.wait([ref], timeout=0)[0]:
                blame(ref)
        self._restoring[i] = self._remade(i) + self._caught_up(i)

    def _remade(self, i: int) -> list[Any]:
        """A fresh actor's clients as of the last checkpoint."""
        actor = self._actors[i]
        return [actor.begin.remote(*self._births[i]), actor.restore.remote(*self._at)]

    def _caught_up(self, i: int) -> list[Any]:
        """From there to where the others are."""
        actor = self._actors[i]
        return [actor.replay.remote(t.params, t.round, t.limit, t.targets[i], t.kept) for t in self._since]


def blame(ref: Any) -> None:
    """Raise what a request ended with, if that was another thing than a lost actor."""
    try:
        get(ref)
    except FedrayError as error:
        if not recoverable(error):
            raise


def as_they_land(refs: list[Any]) -> Iterator[Any]:
    """Results in order of arrival. A result is freed once it is folded."""
    while refs:
        done, refs = ray.wait(refs, num_returns=1)
        yield get(done.pop())


def answered(ref: Any, timeout_s: float) -> bool:
    """Whether there is an answer within that time."""
    return bool(ray.wait([ref], timeout=timeout_s)[0])


def get(ref: Any) -> Any:
    """`ray.get` with fedray's errors: what an actor raised on purpose comes back as itself."""
    try:
        return ray.get(ref)
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, FedrayError) or _of_a_file(error.cause):
            raise error.cause from None
        if isinstance(error.cause, OSError):  # Ray's own word in an actor whose node is going down
            raise _lost(error) from error
        raise
    except exceptions.RayError as error:
        raise _lost(error) from error


def _of_a_file(error: Exception) -> bool:
    """A disk that is full where an actor writes, say: these have a number, Ray's have none."""
    return isinstance(error, OSError) and error.errno is not None


def _lost(error: Exception) -> ActorLostError:
    return ActorLostError(
        f"an actor was lost ({type(error).__name__}): {_cause(error)}",
        "all actors alive to the end",
        "Look at the memory of the machine and at `ray logs`; then go on from the last checkpoint.",
    )


def _cause(error: Exception) -> str:
    """The last line of what Ray knows: for an error in an actor's start that is the error itself."""
    if isinstance(error, exceptions.RayTaskError):
        return str(error.cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no details"]
    return lines[-1] if "creation task" in lines[0] else lines[0]
