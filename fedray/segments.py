"""A run whose settings change (`fedray.changes`): at each change it is broken off at a checkpoint and gone on with
under the new settings, as after a stop. To the bit what it would be if nothing but the settings had changed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

from fedray.config import RunConfig
from fedray.errors import CheckpointError
from fedray.federated.rounds import Outcome
from fedray.runtime.checkpoint import Checkpoints
from fedray.types import RoundReport


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


class Segments(ExitStack):
    """One after another, each in a federation of its own, which `opened` makes."""

    def __init__(
        self,
        config: RunConfig,
        checkpoints: Checkpoints,
        opened: Callable[[RunConfig], AbstractContextManager[Federation]],
    ) -> None:
        super().__init__()
        self._config, self._checkpoints, self._opened = config, checkpoints, opened
        self._ends = [*sorted(config.changes), config.train.rounds]
        self._restarts = 0
        self._open(0)

    def resume(self) -> Sequence[RoundReport]:
        """From the newest checkpoint; what the rounds before it said. The newest may be torn, and the one before it
        from before a change."""
        at, past = self._checkpoints.last_round(), self._resumed(self._checkpoints.last_round())
        while (found := past[-1].round if past else 0) != at:
            at, past = found, self._resumed(found)
        return past

    def rounds(self) -> Iterator[RoundReport]:
        """Those that are left."""
        while True:
            restarts = self._restarts
            for report in self._now.rounds():
                self._restarts = restarts + report.restarts
                yield replace(report, restarts=self._restarts)
                if report.round == self._until < self._ends[-1]:
                    break
            else:
                return
            if self._now.commit() < self._until:
                raise CheckpointError(f"no checkpoint of round {self._until}", "one: there the settings change")
            self._resumed(self._until)

    def finish(self) -> Outcome:
        """Of the last segment."""
        return self._now.finish()

    def save(self, folder: str) -> Any:
        """Of the last segment."""
        return self._now.save(folder)

    def commit(self) -> int:
        """A checkpoint of now."""
        return self._now.commit()

    def _resumed(self, round_: int) -> Sequence[RoundReport]:
        self._open(round_)
        return self._now.resume()

    def _open(self, round_: int) -> None:
        self.close()
        self._until = next((end for end in self._ends if end > round_), self._ends[-1])
        self._now = self.enter_context(self._opened(self._config.at(round_)))
