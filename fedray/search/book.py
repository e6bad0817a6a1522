"""A sweep while it goes: what is asked next and what was answered, kept on disk, in the tracking store and on the
terminal. Tune's classes in `tune` only hand on to it."""

import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from rich.console import Console

from fedray.config import RunConfig
from fedray.data.dataset import describe
from fedray.data.protocols import rules_of
from fedray.errors import ResumeError, SweepError
from fedray.job import Prepared
from fedray.progress import say
from fedray.runtime.checkpoint import Go
from fedray.search import report
from fedray.search.placing import Place
from fedray.search.population import Member, member, until
from fedray.search.records import Records, State, TrialRecord, best_of
from fedray.search.space import spell
from fedray.search.suggest import suggested
from fedray.search.sweep import Sweep
from fedray.search.tree import Tree, trial_id
from fedray.search.trial import ROUND, VALUE
from fedray.storage import Storage
from fedray.tracking.tracker import RunEnd, Status

ENDS: dict[State, Status] = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


class Book:
    """One sweep's. at_once: trials that may be under way; place: of a trial with these settings. broken_off: by a
    signal."""

    def __init__(
        self, sweep: Sweep, run_id: str, records: Records, tree: Tree, at_once: int, place: Callable[[RunConfig], Place]
    ) -> None:
        self.sweep, self.run_id, self.at_once, self._place = sweep, run_id, at_once, place
        self._records, self._tree = records, tree
        self._known: dict[int, TrialRecord] = {}
        self._left: list[int] = []
        self._live: set[int] = set()
        self._sequence = sweep.sequence()
        self._batch = len(self._sequence) if sweep.config.scheduler.name == "pbt" else sweep.config.search.batch
        self._begun, self._ended, self._before = time.monotonic(), 0.0, 0.0
        self._console: Console | None = None
        self._thread: ThreadPoolExecutor
        self._done: list[Future[None]] = []
        self.broken_off = False
        self.metric = rules_of(sweep.job.evaluation).lead

    @property
    def trials(self) -> list[TrialRecord]:
        """All there are, by number."""
        return [self._known[n] for n in sorted(self._known)]

    @property
    def best(self) -> TrialRecord | None:
        """The best so far."""
        return best_of(self.trials)

    @property
    def wall_s(self) -> float:
        """Seconds from the beginning until all trials are over; those of an earlier process by its trials."""
        return self._before + (self._ended or time.monotonic()) - self._begun

    def ended(self) -> list[TrialRecord]:
        """Those that are over."""
        return [r for r in self.trials if r.state != "running"]

    def next(self) -> dict[str, Any] | None | Literal["over"]:
        """A trial for Tune: one that an earlier process began, else a new one; None while there is no room."""
        found = self._next()
        if found == "over":
            self._later(report.with_pictures)  # in time for the end, while the last trials go on
        return found

    def _next(self) -> dict[str, Any] | None | Literal["over"]:
        if len(self._live) >= self.at_once:
            return None
        if self._left:
            return self._started(self._known[self._left.pop(0)])
        if self.spent():
            return "over"
        number = next(n for n in itertools.count() if n not in self._known)
        known = self._told(number)
        if known is None:
            return None
        found = self._proposed(number, known)
        if found is None:
            return "over"
        return self._started(TrialRecord(number, found.settings, parent=found.parent, begun=found.begun))

    def _proposed(self, number: int, known: list[TrialRecord]) -> Member | None:
        if self.sweep.config.scheduler.name == "pbt":
            return member(self.sweep, self._sequence, number, known)
        settings = suggested(self.sweep, self._sequence, number, known)
        return None if settings is None else Member(settings)

    def _told(self, number: int) -> list[TrialRecord] | None:
        """What the search may know: with `search.batch` all earlier batches, once they are over, and so of generations;
        else all there is."""
        if not (size := self._batch):
            return self.trials
        earlier = [r for r in self.trials if r.number < number // size * size]
        return None if any(r.state == "running" for r in earlier) else earlier

    def _started(self, record: TrialRecord) -> dict[str, Any]:
        job = self.sweep.trial(record.settings)
        self._known[record.number] = record
        self._live.add(record.number)
        self._records.put(record)
        self._later(self._tree.open, record.number, job, record.settings, record.parent)
        return {
            "number": record.number,
            "run_id": trial_id(self.run_id, record.number),
            "parent": "" if record.parent is None else trial_id(self.run_id, record.parent),
            "until": until(self.sweep, record.number),
            "job": json.dumps(job.model_dump(mode="json")),
            "data": data_key(job),
            "bundles": json.dumps(self._place(job).bundles),
        }

    def result(self, number: int, result: Mapping[str, Any]) -> None:
        """One validation more of a trial, or its end."""
        record = self._known[number]
        points = dict(record.points)
        if result[ROUND]:
            points[int(result[ROUND])] = float(result[VALUE])
        rounds = max([record.rounds, *(r.round for r in result["reports"])])
        state: State = "failed" if result["error"] else "finished" if result["over"] else "running"
        self._known[number] = replace(
            record,
            state=state,
            value=float(result[VALUE]) if points else None,
            best=int(result["best"]),
            last=float(result["last"]) if points else None,
            points=tuple(sorted(points.items())),
            rounds=rounds,
            seconds=float(result["seconds"]),
            error=result["error"],
        )
        self._later(self._tree.log, number, result["reports"])

    def over(self, number: int) -> None:
        """A trial is over: by itself, or broken off; or the sweep is, and the trial goes on another time."""
        record = self._known[number]
        if self.broken_off and record.state == "running":
            return
        self._end(record if record.state != "running" else replace(record, state="pruned"))

    def failed(self, number: int, error: str) -> None:
        """A trial's process died once too often."""
        self._end(replace(self._known[number], state="failed", error=error))

    def _end(self, record: TrialRecord) -> None:
        if record.number not in self._live:
            return
        self._known[record.number] = record
        self._live.discard(record.number)
        best = self.best
        self._later(self._settle, record, best, len(self.ended()))
        if self._console:
            say(self._console, report.trial_line(record, best, self.metric, len(self.ended())))

    def _settle(self, record: TrialRecord, best: TrialRecord | None, ended: int) -> None:
        """The tracking store first: what the records call over is over everywhere."""
        self._tree.close(record.number, self._run_end(record))
        if best is not None and best.value is not None:
            self._tree.best(ended, {f"best/{self.metric}": best.value})
        self._records.put(record)
        if self.sweep.config.scheduler.name != "pbt":
            self._records.forget(trial_id(self.run_id, record.number))
        elif (earlier := record.number - 2 * self._batch) >= 0:  # of the last generation trials go on
            self._records.forget(trial_id(self.run_id, earlier))

    def _run_end(self, record: TrialRecord) -> RunEnd:
        tags = {"fedray.trial_state": record.state, **({"fedray.error": record.error} if record.error else {})}
        metrics = {"trial/number": float(record.number), "trial/rounds": float(record.rounds)}
        metrics |= {"trial/seconds": record.seconds, "best_round": float(record.best)}
        value = {} if record.value is None else {f"val/best_{self.metric}": record.value}
        return RunEnd(
            ENDS[record.state], metrics | value, tags | ({"pruned": "true"} if record.state == "pruned" else {})
        )

    def spent(self) -> bool:
        """Whether the hours or the rounds are used up."""
        budget = self.sweep.config.budget
        rounds = sum(max(0, r.rounds - r.begun) for r in self._known.values())
        return bool((budget.hours and self.wall_s > 3600 * budget.hours) or (budget.rounds and rounds >= budget.rounds))

    @contextmanager
    def kept(self, console: Console, resume: bool) -> Iterator[None]:
        """The sweep's run, from its start to its end, whatever that is."""
        there = self._records.open(resume)
        self._known, self._console = {r.number: r for r in there}, console
        self._left = [r.number for r in there if r.state == "running"]
        self._before = sum(r.seconds for r in there) / self.at_once
        if there:
            say(console, f"goes on: {len(self.ended())} trials are over, {len(self._left)} were under way")
        tags = {"fedray.sweep_fingerprint": self.sweep.fingerprint()}
        end = RunEnd("KILLED")
        try:
            with ThreadPoolExecutor(1) as self._thread:  # trials do not wait for the tracking store
                self._later(self._tree.start, self.sweep.job, self.sweep.config.name, tags, resume)
                yield
                for number in () if self.broken_off else sorted(self._live):  # the budget was spent
                    self.over(number)
            for done in self._done:
                done.result()
            self._ended = time.monotonic()
            for number in self._known if self._batch else ():
                self._records.forget(trial_id(self.run_id, number))
            if self.best is None:
                raise self._nothing()
            end = report.sweep_end(self.sweep, self.run_id, self.trials, self.metric, self.wall_s, self.at_once)
        except Exception as error:
            end = RunEnd("FAILED", tags={"fedray.error": f"{type(error).__name__}: {error}"[:500]})
            raise
        finally:
            self._tree.finish(end)
            if end.status != "FINISHED":
                say(console, f"to go on, add: --run-id {self.run_id} --resume-or-start")

    def torn(self) -> bool:
        """Whether something could not be written down: trials from here on would be lost."""
        return any(done.done() and done.exception() for done in self._done)

    def _unless_torn(self, what: Callable[..., object], *args: Any) -> None:
        if not self.torn():
            what(*args)

    def _later(self, what: Callable[..., object], *args: Any) -> None:
        """In order, one after another, as long as all goes well."""
        self._done = [done for done in self._done if not done.done() or done.exception()]
        self._done.append(self._thread.submit(self._unless_torn, what, *args))

    def _nothing(self) -> SweepError:
        first = next((r for r in self.trials if r.error), None)
        said = f"; trial {first.number}: {first.error}" if first else ""
        return SweepError(f"none of {len(self.trials)} trials has a result{said}", "at least one")

    def where(self) -> str:
        """Where the sweep is recorded."""
        return self._tree.where()


def opened(sweep: Sweep, job: Prepared, go: Go, at_once: int, place: Callable[[RunConfig], Place]) -> Book:
    """The book of a run id; of a new one where none is given."""
    if not sweep.job.runtime.checkpoint.every and go.resume:
        raise ResumeError("runtime.checkpoint.every is 0", "checkpoints to go on from")
    run_id = go.run_id or f"{sweep.config.name}-{uuid.uuid4().hex[:8]}"
    storage = Storage.at(sweep.job.runtime.checkpoint.path)
    records = Records(storage, run_id, f"{sweep.fingerprint()}-{job.dataset.contents}", report.sweep_yaml(sweep))
    return Book(sweep, run_id, records, Tree(run_id, describe(job.dataset)), at_once, place)


def data_key(config: RunConfig) -> str:
    """What the data of a trial depend on."""
    return spell(config.model_dump(mode="json", include={"data", "encoders"}))
