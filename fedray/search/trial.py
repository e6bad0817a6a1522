"""A trial on Ray Tune: a federation that says how it goes at every validation. Its test set is left alone.

Its checkpoints are those of any run (`runtime.checkpoint`), under the trial's own run id: one whose process died goes
on from there, on this node or another, and tells what it told before once more.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from ray import tune

from fedray.config import RunConfig, make_config
from fedray.data.protocols import rules_of
from fedray.errors import ConfigError, FedrayError
from fedray.federation import federation
from fedray.methods import build
from fedray.runtime.checkpoint import Go, opened
from fedray.runtime.plan import Resources
from fedray.search.placing import placed, serial
from fedray.search.sweep import TrialsConfig
from fedray.types import ClientData, ItemFeatures, RoundReport

VALUE, ROUND = "value", "round"
WORST = -1.0
"""Below any ranking metric: of a trial that failed before its first validation."""


class Shared(NamedTuple):
    """Data of trials: read, split and encoded once, and the same in Ray's memory for all of them."""

    data: ClientData
    features: ItemFeatures | None
    contents: str


class Trial(tune.Trainable):
    """One trial after another in the same process. `config` has its number, run id, the job as JSON, which of the data
    it is on, its last round and the run id of the trial it goes on from, if any."""

    def setup(self, config: dict[str, Any], shared: dict[str, Shared], asked: TrialsConfig, there: Resources) -> None:
        """Ready for the next round, the first one or the one after the last checkpoint."""
        self._shared, self._asked, self._there = shared, asked, there
        self._open(config)

    def _open(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._begun, self._broken = time.perf_counter(), ""
        self._stack, self._last = ExitStack(), {VALUE: WORST, ROUND: 0, "best": 0, "last": WORST}
        try:
            self._prepare(config)
        except ConfigError as error:  # settings that only the method itself refuses
            self._broken = f"{type(error).__name__}: {error}"

    def _prepare(self, config: dict[str, Any]) -> None:
        run: RunConfig = make_config(json.loads(config["job"]))
        self._most, self._lead = int(config["until"]), f"val/{rules_of(run.evaluation).lead}"
        data, features, contents = self._shared[config["data"]]
        method = build(run, data.n_items, features)
        plan = placed(run, self._asked, method, data, self._there).plan
        run = serial(run) if plan.executor == "serial" else run
        go = Go(config["run_id"], resume=bool(run.runtime.checkpoint.every))
        checkpoints = opened(run, contents, plan.device, go)
        if checkpoints and config["parent"]:
            checkpoints.adopt(config["parent"])
        clients = self._stack.enter_context(federation(run, method, data, features, plan, checkpoints))
        past = clients.resume() if checkpoints else ()
        self._rounds: Iterator[RoundReport] = _chained(past, clients.rounds())
        self._commit = clients.commit

    def step(self) -> dict[str, Any]:
        """Until the next validation. A failure of the method is an answer; that of a process is Tune's to see."""
        reports: list[RoundReport] = []
        if self._broken:
            return self._result(reports, True, self._broken)
        try:
            over = not self._until_scored(reports)
            if over:
                self._commit()  # others may go on from here
        except FedrayError as error:
            return self._result(reports, True, f"{type(error).__name__}: {error}")
        return self._result(reports, over)

    def _until_scored(self, reports: list[RoundReport]) -> bool:
        """Whether there was one more validation, and rounds are left."""
        for report in self._rounds:
            reports.append(report)
            value = report.metrics.get(self._lead)
            if value is not None:
                if value > self._last[VALUE]:
                    self._last |= {VALUE: value, "best": report.round}
                self._last |= {ROUND: report.round, "last": value}
            if report.round >= self._most:
                return False
            if value is not None:
                return True
        return False

    def _result(self, reports: list[RoundReport], over: bool, error: str = "") -> dict[str, Any]:
        seconds = time.perf_counter() - self._begun
        return {**self._last, "reports": reports, "over": over, "done": over, "error": error, "seconds": seconds}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in this process: torch and numba are there already."""
        self.cleanup()
        self._open(new_config)
        return True

    def cleanup(self) -> None:
        """No actor stays."""
        self._stack.close()


def _chained(past: Any, rest: Iterator[RoundReport]) -> Iterator[RoundReport]:
    yield from past
    yield from rest
