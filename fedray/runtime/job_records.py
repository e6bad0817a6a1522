"""What a submitted job is, wherever it runs: its id, its state, what a script is told. Pure.

A *run* is what is trained; each time it is submitted it gets an *attempt*, whose job is called `<run id>-a<attempt>`.
"""

import difflib
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from fedray.errors import JobDoneError, JobError, JobRunningError, NoSuchJobError

State = Literal["pending", "running", "succeeded", "failed", "resumable", "stopped"]
OVER = ("succeeded", "failed", "resumable", "stopped")
RESUMABLE, STOPPED = 75, 130
STOP_GRACE_S = 60
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ATTEMPT = re.compile(r"(?P<run>.+)-a(?P<attempt>[1-9]\d*)")


@dataclass(frozen=True)
class JobRecord:
    """One attempt. Times are seconds since 1970; `exit_code` is the training's own, where it is known."""

    submission_id: str
    state: State
    exit_code: int | None = None
    submitted: float | None = None
    ended: float | None = None
    message: str = ""

    @property
    def run_id(self) -> str:
        """Of the run; of a job that somebody submitted under another kind of name, that name."""
        return split(self.submission_id)[0]

    @property
    def attempt(self) -> int:
        """1, 2, ...; 0 where the name does not say."""
        return split(self.submission_id)[1]

    @property
    def over(self) -> bool:
        """Whether it will never run again."""
        return self.state in OVER


@dataclass(frozen=True)
class Request:
    """What is asked of a backend: a command, the folder it needs, and the environment it gets."""

    submission_id: str
    command: Sequence[str]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    modules: Sequence[Path] = ()


class Backend(Protocol):
    """Where jobs run: a cluster, or this machine; `where` says which."""

    where: str

    def jobs(self) -> list[JobRecord]:
        """Every job there is."""

    def job(self, submission_id: str) -> JobRecord:
        """One job as it is now."""

    def submit(self, request: Request) -> None:
        """Start it and return; `JobRunningError` if somebody else took its name just now."""

    def log(self, submission_id: str) -> str:
        """All it has printed so far."""

    def follow(self, submission_id: str, emit: Callable[[str], None]) -> None:
        """All it has printed and will print, until it ends."""

    def stop(self, submission_id: str) -> bool:
        """Ask it to end, with `STOP_GRACE_S` to do so; False if it was over already."""


def split(submission_id: str) -> tuple[str, int]:
    """`("fcf-1a2b3c4d", 2)` of `fcf-1a2b3c4d-a2`; attempt 0 for a name without one."""
    found = _ATTEMPT.fullmatch(submission_id)
    return (found["run"], int(found["attempt"])) if found else (submission_id, 0)


def new_run_id(name: str) -> str:
    """`<name>-<8 hex>`."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def checked_run_id(run_id: str) -> str:
    """The run id, if it may be one."""
    if not RUN_ID.fullmatch(run_id) or _ATTEMPT.fullmatch(run_id):
        raise JobError(
            f"--run-id {run_id!r}",
            "up to 128 letters, digits and ._- that start with a letter or digit and do not end like an attempt (-a1)",
        )
    return run_id


def next_attempt(run_id: str, jobs: Sequence[JobRecord]) -> str:
    """The submission id of the run's next attempt; refused while one goes on, and after one that succeeded."""
    last = last_attempt(run_id, jobs)
    if last is None:
        return f"{run_id}-a1"
    if not last.over:
        raise JobRunningError(
            f"{last.submission_id} is {last.state}",
            "a run whose last attempt is over",
            f"`fedray logs {run_id} --follow` shows it, `fedray stop {run_id} --wait` ends it.",
        )
    if last.state == "succeeded":
        raise JobDoneError(f"{last.submission_id} succeeded", "a run that is not done", "Take another --run-id.")
    return f"{run_id}-a{last.attempt + 1}"


def last_attempt(run_id: str, jobs: Sequence[JobRecord]) -> JobRecord | None:
    """Of a run, or None if there was none."""
    return max((j for j in jobs if j.run_id == run_id and j.attempt), key=lambda j: j.attempt, default=None)


def find(name: str, jobs: Sequence[JobRecord], where: str) -> JobRecord:
    """The job of that submission id, or the last attempt of that run."""
    exact = next((j for j in jobs if j.submission_id == name), None)
    if found := exact or last_attempt(name, jobs):
        return found
    known = sorted({j.run_id for j in jobs})
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    mend = f"Did you mean {near[0]!r}?" if near else "`fedray list` shows them all."
    raise NoSuchJobError(f"no run or job {name!r} {where}", "a run id or submission id", mend)


def state_of(exit_code: int) -> State:
    """Of a process that ended by itself."""
    return {0: "succeeded", RESUMABLE: "resumable", STOPPED: "stopped"}.get(exit_code, "failed")  # type: ignore[return-value]


def status_code(job: JobRecord) -> int:
    """For `fedray status`: 0 while all is well, 1 failed, 75 resumable, 130 stopped."""
    return {"failed": 1, "resumable": RESUMABLE, "stopped": STOPPED}.get(job.state, 0)


def own_code(job: JobRecord) -> int:
    """For `fedray submit --wait`: the job's own, as far as it is known; one that a signal ended as shells say it."""
    if job.state != "failed" or job.exit_code is None:
        return status_code(job)
    return job.exit_code if job.exit_code > 0 else 128 - job.exit_code
