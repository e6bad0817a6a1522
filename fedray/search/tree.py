"""A sweep's runs in the tracking store: itself, and a child a trial. Written by the sweep's own process alone.

A store that goes away costs no trial: a child that could not be opened is opened later, with all that it missed.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from fedray.config import RunConfig
from fedray.errors import FedrayWarning, TrackingError
from fedray.search.space import Settings, spell
from fedray.tracking.tracker import RunEnd, RunStart, Tracker, make_tracker
from fedray.types import RoundReport

SWEEP, TRIAL = "sweep", "trial"


class Tree:
    """One sweep's. dataset: as `data.dataset.describe` says it."""

    def __init__(self, run_id: str, dataset: Mapping[str, Any]) -> None:
        self._run_id, self._dataset = run_id, dataset
        self._parent: Tracker | None = None
        self._parent_id = self._name = ""
        self._open: dict[int, Tracker] = {}
        self._missed: dict[int, tuple[RunStart, list[RoundReport]]] = {}

    def start(self, job: RunConfig, name: str, tags: Mapping[str, str], resume: bool) -> str:
        """The parent. `TrackingError` if the store is away: little has been paid for yet."""
        named, self._name = _named(job, f"{name}-sweep"), name
        parent = make_tracker(job.tracking)
        self._parent_id = parent.start(
            RunStart(
                named,
                job.method_name(),
                self._dataset,
                {"fedray.stage": SWEEP, **tags},
                run_id=self._run_id,
                resume=resume,
            )
        )
        self._parent = parent
        return self._parent_id

    def open(self, number: int, job: RunConfig, settings: Settings, parent: int | None = None) -> None:
        """A child, found again by its id where there is one already. parent: the trial that it goes on from."""
        tags = {"fedray.stage": TRIAL, "fedray.trial": str(number), "fedray.settings": spell(settings)}
        tags |= {} if parent is None else {"fedray.trial_parent": str(parent)}
        named = _named(job, f"{self._name}-t{number:03d}")
        start = RunStart(
            named,
            job.method_name(),
            self._dataset,
            tags,
            self._parent_id,
            run_id=trial_id(self._run_id, number),
            resume=True,
            bare=True,
        )
        self._missed[number] = (start, [])
        self._caught_up(number)

    def log(self, number: int, reports: Sequence[RoundReport]) -> None:
        """Rounds of a trial."""
        if number in self._missed:
            self._missed[number][1].extend(reports)
            return
        for report in reports:
            self._open[number].log_round(report)

    def close(self, number: int, end: RunEnd) -> None:
        """A trial's end."""
        if number in self._missed and not self._caught_up(number):
            warnings.warn(f"trial {number} is not in the tracking store", FedrayWarning, stacklevel=2)
            return
        if number in self._open:
            self._open.pop(number).finish(end)

    def best(self, step: int, metrics: Mapping[str, float]) -> None:
        """The parent's curve: the best so far, by the number of trials that are over."""
        assert self._parent is not None
        self._parent.log_metrics(step, metrics)

    def finish(self, end: RunEnd) -> None:
        """The parent's end; trials that are not over are said to be broken off."""
        for tracker in self._open.values():
            tracker.finish(RunEnd("KILLED"))
        self._open = {}
        if self._parent is not None:
            self._parent.finish(end)

    def where(self) -> str:
        """Where the parent is."""
        return self._parent.where() if self._parent is not None else ""

    def _caught_up(self, number: int) -> bool:
        start, reports = self._missed[number]
        tracker = make_tracker(start.config.tracking)
        try:
            tracker.start(start)
        except TrackingError as error:
            warnings.warn(f"trial {number}: {error}", FedrayWarning, stacklevel=3)
            return False
        del self._missed[number]
        self._open[number] = tracker
        self.log(number, reports)
        return True


def trial_id(run_id: str, number: int) -> str:
    """A trial's run id: of its checkpoints, and of its run in the tracking store."""
    return f"{run_id}-t{number:05d}"


def _named(job: RunConfig, name: str) -> RunConfig:
    return job.model_copy(update={"tracking": job.tracking.model_copy(update={"run_name": name})})
