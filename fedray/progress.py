"""The terminal while a job goes: one live line on a terminal, one line every so often in a log file; and its end."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fedray.config import RunConfig
from fedray.data.protocols import rules_of
from fedray.embeddings.fill import Step
from fedray.errors import StoppedBetweenRounds, Terminated
from fedray.status_line import RoundStatus, format_round, quality
from fedray.types import RoundReport

LOG_EVERY_S = 2.0
GRACE_S = 40.0
"""That a round may take to end after a signal; `fedray submit` gives a job 60 s."""
SPLITS = {"valid": ("val", "validation"), "test": ("test", "TEST")}  # as logged, as said


class Progress:
    """Use as a context manager; `show` each report."""

    def __init__(self, console: Console, config: RunConfig, control: dict[str, dict[str, dict[str, float]]]) -> None:
        self._console, self._rounds = console, config.train.rounds
        rules = rules_of(config.evaluation)
        self._metric, self._split = rules.lead, rules.select_split
        self._last_line = 0.0
        self._abandoned = 0
        self._best = float("nan")
        self._begun: tuple[float, int] | None = None
        columns = (
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("starting", total=self._rounds) if self._bar else None
        reference = {name: found[self._split].get(self._metric) for name, found in control.items()}
        known = ", ".join(f"{k} {v:.4f}" for k, v in reference.items() if v is not None)
        if known:
            say(console, f"controls  {SPLITS[self._split][1]} {self._metric}: {known}")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, report: RoundReport) -> None:
        """One round more."""
        status = self._status(report)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=report.round, description=quality(status))
            return
        now = time.monotonic()
        if now - self._last_line >= LOG_EVERY_S or report.round in (1, self._rounds):
            self._last_line = now
            say(self._console, format_round(status))

    def recall(self, report: RoundReport) -> float | None:
        """A round of which no line is shown: of before the run was resumed. Its validation metric, if it has one."""
        value = report.metrics.get(f"{SPLITS[self._split][0]}/{self._metric}")
        if value is not None:
            self._best = value if not value <= self._best else self._best
        self._abandoned += report.abandoned
        return value

    def _status(self, report: RoundReport) -> RoundStatus:
        value = self.recall(report)
        status = RoundStatus(
            report.round,
            self._rounds,
            report.metrics["train/loss"],
            report.clients_ok,
            report.seconds["round"],
            self._left_s(report),
            dropped=report.clients_dropped,
            rejected=report.clients_rejected,
            restarts=report.restarts,
            abandoned=self._abandoned,
        )
        return status if value is None else replace(status, metric=self._metric, value=value, best=self._best)

    def _left_s(self, report: RoundReport) -> int:
        """By the pace of the rounds of this process: a resumed run has not done the earlier ones."""
        now, took = time.monotonic(), report.seconds["round"]
        if self._begun is None:
            self._begun = (now - took, report.round - 1)
        since, before = self._begun
        return round((self._rounds - report.round) * (now - since) / (report.round - before))


class EncodeProgress:
    """The same for encoding: `show` each step of each feature; without a console nothing is shown."""

    def __init__(self, console: Console | None) -> None:
        self._console, self._last_line = console, 0.0
        self._began: dict[str, tuple[float, TaskID | None]] = {}
        columns = (
            TextColumn("{task.fields[feature]}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        live = console is not None and console.is_terminal
        self._bar = Bar(*columns, console=console, transient=True) if live else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, feature: str, step: Step) -> float:
        """One step more; contents encoded a second so far."""
        now, done = time.monotonic(), step.encoded + step.by_others + step.refused
        if feature not in self._began:
            task = self._bar.add_task("", total=step.missing, feature=feature) if self._bar else None
            self._began[feature] = (now, task)
        began, task = self._began[feature]
        rate = step.encoded / (now - began) if now > began else 0.0
        if self._bar and task is not None:
            self._bar.update(task, completed=done, description=f"{rate:.1f} items/s")
        elif self._console is not None and (now - self._last_line >= LOG_EVERY_S or done == step.missing):
            self._last_line = now
            left = f"{(step.missing - done) / rate:.0f} s left" if rate else ""
            self._console.print(
                f"{feature}  {done:,}/{step.missing:,}  {rate:.1f} items/s  {left}".rstrip(),
                soft_wrap=True,
                highlight=False,
            )
        return rate


def say(console: Console, text: str) -> None:
    """Plain text: never broken, never read as markup (paths have brackets)."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class Stop:
    """What SIGINT and SIGTERM do: at once, or, within `later`, once `check` is reached, which leaves time for a
    checkpoint. A second signal, or GRACE_S, makes it at once."""

    def __init__(self) -> None:
        self._asked = self._wait = False

    def signal(self, signum: int, frame: Any) -> None:
        """The handler."""
        at_once = self._asked or not self._wait
        self._asked = True
        if at_once:
            raise Terminated
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    @property
    def asked(self) -> bool:
        """Whether there was a signal."""
        return self._asked

    @contextmanager
    def later(self) -> Iterator[None]:
        """What goes on in here is finished first."""
        self._wait = True
        try:
            yield
        finally:
            self._wait = False

    def check(self) -> None:
        """Raises `StoppedBetweenRounds` if it was asked for meanwhile."""
        if self._asked:
            raise StoppedBetweenRounds


@contextmanager
def signals_raise() -> Iterator[Stop]:
    """SIGINT and SIGTERM become `Terminated`, so that the run is closed whichever it was."""
    stop = Stop()
    try:
        old = {n: signal.signal(n, stop.signal) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    except ValueError:  # not the main thread: nobody sends it signals
        yield stop
        return
    try:
        with signals_heard():
            yield stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def signals_heard() -> Iterator[None]:
    """Around Ray: its compiled code makes a `SystemError` of what a signal's handler raised within it."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__ or error.__context__, Terminated):
            raise Terminated from error
        raise


T = TypeVar("T")


def one_by_one(each: Iterator[T], stop: Stop) -> Iterator[T]:
    """`each`, interrupted only between two of them: what is done with one is finished, too."""
    with stop.later():
        for found in each:
            yield found
            stop.check()
        stop.check()
