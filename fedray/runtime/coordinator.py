"""A run on an executor, with its checkpoints: what the driver actor does, and the serial run too. No Ray in here."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedray.config import RunConfig
from fedray.errors import FedrayWarning
from fedray.federated import rounds, run_snapshots
from fedray.federated.clients import timed
from fedray.federated.method import Method
from fedray.federated.rounds import Outcome, Run
from fedray.runtime.checkpoint import Checkpoint, Checkpoints
from fedray.runtime.plan import MOST_BYTES
from fedray.storage import Storage
from fedray.types import Arrays, RoundReport

SHARE, LEAST_ROUNDS, FIRST_COST_S = 0.05, 10, 1.0
"""Of the time; between two; what the first one is expected to cost."""


class Coordinator:
    """One run's server. `checkpoints` None: it leaves none."""

    def __init__(self, config: RunConfig, method: Method, executor: Any, checkpoints: Checkpoints | None) -> None:
        self._config, self._method, self._executor = config, method, executor
        self._checkpoints = checkpoints
        self._run: Run = rounds.start(config, method)
        self._unsaved: list[RoundReport] = []
        self._restarts = 0
        self._clock, self._cost = 0.0, FIRST_COST_S
        self.last: Checkpoint | None = None

    @property
    def executor(self) -> Any:
        """Where its clients are."""
        return self._executor

    @property
    def run(self) -> Run:
        """As it is between two rounds."""
        return self._run

    def step(self) -> tuple[RoundReport, bool]:
        """One round, with a checkpoint where one is due; and whether it was the last."""
        self._run, report = rounds.step(self._run, self._executor)
        report = replace(report, restarts=self._restarts + self._executor.restarts)
        self._unsaved.append(report)
        last, seconds = rounds.finished(self._run), dict(report.seconds)
        self._clock += report.seconds["round"]
        if self._due(last):
            with timed(seconds, "checkpoint"):
                self.commit()
            failed = self.last is None or self.last.round < report.round  # not again at once
            self._cost, self._clock = max(seconds["checkpoint"], FIRST_COST_S * failed), 0.0
        return replace(report, seconds=seconds), last

    def _due(self, last: bool) -> bool:
        """Whether a checkpoint follows this round. When it does changes no result, so a clock may say."""
        if self._checkpoints is None:
            return False
        if last:
            return self._checkpoints.last
        if self._executor.kept_bytes > MOST_BYTES:
            return True
        if self._checkpoints.every != "auto":
            return self._run.state.round % self._checkpoints.every == 0
        return self._clock * SHARE >= self._cost and len(self._unsaved) >= LEAST_ROUNDS

    def commit(self) -> int:
        """A checkpoint of the last finished round, unless there is one: its round. Where it cannot be written (a full
        disk) the run goes on, and what is lost then is restored from the one before."""
        round_ = self._run.state.round
        if self._checkpoints and (self.last.round if self.last else 0) < round_:
            try:
                files = self._executor.snapshot(self._checkpoints.aside(round_))
                self.last = self._checkpoints.commit(round_, run_snapshots.of_run(self._run), files, self._unsaved)
            except OSError as error:
                text = f"no checkpoint of round {round_}: {error.strerror or error} ({self._checkpoints.storage.url})"
                warnings.warn(text, FedrayWarning, stacklevel=2)
                self._checkpoints.give_up(round_)
                return self.last.round if self.last else 0
            self._unsaved = []
            self._executor.committed(self.last.folder, self.last.clients, round_)
        return self.last.round if self.last else 0

    def resume(self, restarts: int = 0) -> tuple[Sequence[RoundReport], bool]:
        """Back to the newest checkpoint, or to the start where there is none: what the rounds until there said, and
        whether they were all. restarts: of actors so far, if they are more than those rounds know of."""
        found = self._checkpoints.newest() if self._checkpoints else None
        self.last, self._unsaved = found, []
        past = self._checkpoints.reports(found.round if found else 0) if self._checkpoints else []
        self._restarts = max(restarts, past[-1].restarts if past else 0)
        if found is None:
            self._run = rounds.start(self._config, self._method)
            self._executor.restore(Storage(""), (), 0)
            return (), False
        self._run = run_snapshots.run_of(self._config, self._method, found.server())
        self._executor.restore(found.folder, found.clients, found.round)
        return past, rounds.finished(self._run)

    def finish(self) -> Outcome:
        """The selected round's test metrics."""
        return rounds.finish(self._run, self._executor)

    def save(self, folder: str) -> tuple[Arrays, int, list[str]]:
        """Client files written where the clients are; the selected round's shared parameters come back."""
        best = self._run.best
        assert best is not None
        return best.broadcast.params, best.round, self._executor.save(folder)
