"""A run whose settings change (`fedray.changes`): at each change it is broken off at a checkpoint and gone on with
under the new settings, as after a stop. To the bit what it would be if nothing but the settings had changed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

from fedray.config import RunConfig
from fedray.errors import BeforeChangeError, CheckpointError
from fedray.federated.method import Method
from fedray.federated.rounds import Outcome
from fedray.methods import build
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.plan import Plan, Resources, make_plan
from fedray.types import ClientData, ItemFeatures, RoundReport


@dataclass(frozen=True)
class Federation:
    """A run between data and end table. resume: what the rounds up to the last checkpoint said, from where `rounds`
    goes on. save: folder -> shared parameters, their round, the clients' files. commit: a checkpoint of now; its round,
    0 where there is none."""

    resume: Callable[[], Sequence[RoundReport]]
    rounds: Callable[[], Iterator[RoundReport]]
    finish: Callable[[], Outcome]
    save: Callable[[str], Any]
    commit: Callable[[], int]


def widest_plan(
    config: RunConfig, method: Method, data: ClientData, features: ItemFeatures | None, there: Resources
) -> Plan:
    """The plan of that part of a run which needs most. A change that no method can be made of is refused here."""
    later = [config.at(r) for r in sorted(config.changes)]
    parts = [(config, method), *((c, build(c, data.n_items, features)) for c in later)]
    return max((make_plan(c, m, data, there) for c, m in parts), key=lambda plan: plan.total_bytes)


class Segments:
    """One after another, each in a federation of its own, which `opened` makes."""

    def __init__(
        self,
        config: RunConfig,
        checkpoints: Checkpoints,
        opened: Callable[[RunConfig, Checkpoints], AbstractContextManager[Federation]],
    ) -> None:
        self._config, self._checkpoints, self._opened = config, checkpoints, opened
        self._starts = [0, *sorted(config.changes)]
        self._stack = ExitStack()
        self._now: Federation | None = None
        self._at = self._until = self._seen = 0

    def close(self) -> None:
        """The federation of now ends."""
        self._stack.close()

    def resume(self) -> Sequence[RoundReport]:
        """From the newest whole checkpoint, under the settings of then; what the rounds before it said."""
        for start in reversed([s for s in self._starts if s <= self._checkpoints.last_round()]):
            try:
                past = self._open(start).resume()
            except BeforeChangeError:
                continue
            self._at = past[-1].round if past else 0
            self._seen = max(self._seen, self._at)
            return past
        raise AssertionError("a run can always begin anew")

    def rounds(self) -> Iterator[RoundReport]:
        """Those that are left, each once."""
        now: Federation | None = self.now()
        while now is not None:
            try:
                yield from self._of(now)
                now = self._next(now)
            except BeforeChangeError:  # its checkpoints are torn back to the settings before
                self.resume()
                now = self._now

    def _of(self, now: Federation) -> Iterator[RoundReport]:
        for report in now.rounds():
            self._at = report.round
            if report.round > self._seen:
                self._seen = report.round
                yield report
            if report.round == self._until:
                return

    def _next(self, now: Federation) -> Federation | None:
        """The federation after the next change; None where the run is over."""
        if self._at < self._until or self._until == self._config.train.rounds:
            return None
        if now.commit() < self._until:
            raise CheckpointError(f"no checkpoint of round {self._until}", "one: there the settings change")
        self.resume()
        return self._now

    def now(self) -> Federation:
        """That of the last rounds."""
        return self._now or self._open(0)

    def _open(self, start: int) -> Federation:
        self._stack.close()
        self._until = next((s for s in self._starts if s > start), self._config.train.rounds)
        own = replace(self._checkpoints, since=start)
        now = self._now = self._stack.enter_context(self._opened(self._config.at(start), own))
        return now
