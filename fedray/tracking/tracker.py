"""What a tracker is, and the two that need no library: none at all and one JSON file a run.

A tracker sees settings, the name and size of the data, and one `RoundReport` a round; never an interaction. Runs are
of two stages: training, and encoding items, which has no rounds but steps of its own (`log_metrics`).
"""

import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from fedray.config import RunConfig, TrackingConfig, flatten
from fedray.errors import TrackingError
from fedray.types import RoundReport

Status = Literal["FINISHED", "FAILED", "KILLED"]
Stage = Literal["train", "encode"]
JSONL_FOLDER = ".fedray/runs"
ENCODE_SECTIONS = ("data", "encoders", "encoding")


@dataclass(frozen=True)
class RunStart:
    """What is known before the first round.

    method: of a training run; nothing is made of it in an encode run.
    dataset: `name` and `fingerprint`, and sizes such as `users`, `items`, `interactions`.
    parent_id: of the family (`Tracker.start_family`) this run is a seed of.
    plan: the resource plan as text.
    run_id: fedray's own, by which a run that goes on (`resume`) is found again; rounds that are recorded already are
    not recorded twice. bare: no plots are drawn at the end (of a sweep's trial, of which there may be hundreds).
    """

    config: RunConfig
    method: str
    dataset: Mapping[str, Any]
    extra_tags: Mapping[str, str] = field(default_factory=dict)
    parent_id: str | None = None
    plan: str = ""
    stage: Stage = "train"
    run_id: str = ""
    resume: bool = False
    bare: bool = False


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    metrics: named as they are to appear (`test/ndcg_at_10`, `control/popularity/ndcg_at_10`); logged once,
    at the last step. references: control -> its validation value of the selecting metric, drawn
    beside the curves. texts: file name -> content, for small reports such as `table.md`; files: the same
    for what is not text. Names may have folders (`figures/contact_sheet_image.png`).
    """

    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    references: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


class Tracker(Protocol):
    """Where a run is recorded. One run at a time; `start` may follow `finish`."""

    def start(self, start: RunStart) -> str:
        """Open a run; its id. `TrackingError` if the store refuses or does not answer."""
        ...

    def log_round(self, report: RoundReport) -> None:
        """Record one round. Returns at once: never waits for a network or a database."""
        ...

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics that belong to no round, named as they are to appear. Returns at once, too."""
        ...

    def finish(self, end: RunEnd) -> None:
        """Close the run. May wait for the store a bounded time, and never raises because it is away."""
        ...

    def start_family(
        self,
        config: RunConfig,
        seeds: Sequence[int],
        dataset: Mapping[str, Any],
        run_id: str = "",
        resume: bool = False,
    ) -> str:
        """Open the parent of several seeds' runs; its id, for `RunStart.parent_id`. The rest: see `RunStart`."""
        ...

    def finish_family(
        self, family_id: str, metrics: Mapping[str, float], table: str, status: Status = "FINISHED"
    ) -> None:
        """Close a parent; `metrics` are named `mean/test/ndcg_at_10`, `std/test/ndcg_at_10`.

        A family that broke off is closed with its status and whatever there is, even nothing.
        """
        ...

    def where(self) -> str:
        """Where the last run is and how to look at it, for the end of a run."""
        ...


def make_tracker(config: TrackingConfig) -> Tracker:
    """The tracker `config.backend` names. MLflow is imported here and not before: it takes 1.4 s."""
    if config.backend == "none":
        return NullTracker()
    if config.backend == "jsonl":
        # The default uri is MLflow's; a user who only changed the backend wants the default folder.
        return JsonlTracker(Path(JSONL_FOLDER if "://" in config.uri else config.uri))
    from fedray.tracking.mlflow import MlflowTracker

    return MlflowTracker(config.uri, Path(config.spool))


class NullTracker:
    """Records nothing."""

    def start(self, start: RunStart) -> str:
        """An id all the same: checkpoints and summaries carry one."""
        return uuid.uuid4().hex

    def log_round(self, report: RoundReport) -> None:
        """Nothing."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def finish(self, end: RunEnd) -> None:
        """Nothing."""

    def start_family(
        self,
        config: RunConfig,
        seeds: Sequence[int],
        dataset: Mapping[str, Any],
        run_id: str = "",
        resume: bool = False,
    ) -> str:
        """An id."""
        return uuid.uuid4().hex

    def finish_family(
        self, family_id: str, metrics: Mapping[str, float], table: str, status: Status = "FINISHED"
    ) -> None:
        """Nothing."""

    def where(self) -> str:
        """That there is nothing."""
        return "not tracked (tracking.backend=none)"


class JsonlTracker:
    """`<folder>/<run id>.jsonl`: one JSON object a line, `event` is start, round, metrics or end; files lie beside."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._file: IO[str] | None = None
        self._last: Path | None = None
        self._recorded = 0

    def start(self, start: RunStart) -> str:
        """Make the file and write the start line; `TrackingError` if that cannot be done."""
        if self._file is not None:
            raise TrackingError("a run is open already", "finish() before the next start()")
        run_id = start.run_id or uuid.uuid4().hex
        self._last = self._folder / f"{run_id}.jsonl"
        if start.resume:
            _without_torn_end(self._last)
        self._recorded = _recorded(self._last) if start.resume else 0
        self._file = _new_file(self._last, "a" if start.run_id else "x")
        self._write(
            event="start",
            stage=start.stage,
            run_id=run_id,
            parent_id=start.parent_id,
            method=start.method if start.stage == "train" else "",
            dataset=dict(start.dataset),
            tags=dict(start.extra_tags),
            params=settings(start.config, start.stage),
            plan=start.plan,
        )
        return run_id

    def log_round(self, report: RoundReport) -> None:
        """One line, unless there is one."""
        if report.round > self._recorded:
            self._write(event="round", **{k: _plain(v) for k, v in vars(report).items()})

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line."""
        self._write(event="metrics", step=step, metrics=_plain(metrics))

    def finish(self, end: RunEnd) -> None:
        """The end line and the files (`<run id>.users.parquet`; folders in a name become dots), on disk on return."""
        self._write(event="end", **{k: _plain(v) for k, v in {**vars(end), "files": list(end.files)}.items()})
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
        for name, content in end.files.items():
            assert self._last is not None
            self._last.with_name(f"{self._last.stem}.{name.replace('/', '.')}").write_bytes(content)

    def start_family(
        self,
        config: RunConfig,
        seeds: Sequence[int],
        dataset: Mapping[str, Any],
        run_id: str = "",
        resume: bool = False,
    ) -> str:
        """A file of its own with one family line."""
        family_id = run_id or uuid.uuid4().hex
        body = {"event": "family", "run_id": family_id, "seeds": list(seeds), "dataset": dict(dataset)}
        with _new_file(self._folder / f"{family_id}.jsonl", "a" if resume else "x") as file:
            file.write(_line({**body, "params": settings(config)}))
        return family_id

    def finish_family(
        self, family_id: str, metrics: Mapping[str, float], table: str, status: Status = "FINISHED"
    ) -> None:
        """One more line in the family's file."""
        with (self._folder / f"{family_id}.jsonl").open("a", encoding="utf-8") as file:
            file.write(_line({"event": "end", "status": status, "metrics": _plain(metrics), "table": table}))

    def where(self) -> str:
        """The file."""
        return f"run recorded in {self._last or self._folder}"

    def _write(self, **fields: Any) -> None:
        if self._file is None:
            raise TrackingError("no run is open", "start() before logging and finish()")
        self._file.write(_line(fields))
        self._file.flush()


def settings(config: RunConfig, stage: Stage = "train") -> dict[str, Any]:
    """Flat settings that this stage has a use for; where they are tracked is none, and may hold a password."""
    flat = {k: v for k, v in flatten(config).items() if not k.startswith("tracking.")}
    return flat if stage == "train" else {k: v for k, v in flat.items() if k.partition(".")[0] in ENCODE_SECTIONS}


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, default=str) + "\n"


def _recorded(path: Path) -> int:
    """The last round in the file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rounds = [json.loads(line)["round"] for line in lines if '"event": "round"' in line]
    return max(rounds, default=0)


def _without_torn_end(path: Path) -> None:
    """A line that a death cut short goes, before others are put behind it."""
    whole = path.read_bytes() if path.is_file() else b""
    if not whole.endswith(b"\n") and whole:
        os.truncate(path, whole.rfind(b"\n") + 1)


def _new_file(path: Path, mode: str = "x") -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open(mode, encoding="utf-8")
    except OSError as error:
        raise TrackingError(
            f"cannot write there: {error.strerror}", "a folder", "Set tracking.uri.", str(path)
        ) from error
