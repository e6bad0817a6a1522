"""Runs in MLflow, by `MlflowClient` alone: no active run, no global tracking URI.

`start` talks to the store and fails at once if it refuses or is away. From then on everything goes through a
`Spool`: `log_round` never waits, a dead store costs nothing, and MLflow keeps one point for each (name,
timestamp, step, value), so that what is sent twice is there once. `tracking.replay` sends what a dead process or
a dead store left behind.
"""

import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException

from fedray.config import RunConfig, to_yaml
from fedray.errors import FedrayWarning, TrackingError
from fedray.tracking import records, resumed, store
from fedray.tracking.provenance import provenance
from fedray.tracking.redact import redact
from fedray.tracking.spool import Record, Spool
from fedray.tracking.tracker import RunEnd, RunStart, Status
from fedray.types import RoundReport

PATIENCE_S = 30.0
KILLED_PATIENCE_S = 1.5  # who kills a job gives it about three seconds


@dataclass
class _Run:
    """The open run: where its records go, and what its end needs."""

    start: RunStart
    spool: Spool
    traffic: records.Traffic = records.Traffic()
    reports: list[RoundReport] = field(default_factory=list)
    last_step: int = 0
    not_finite: int = 0
    recorded: int = 0
    ended: bool = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step <= self.recorded:  # by the process that this one takes over from
            self.last_step = max(self.last_step, step)
            return
        kept, skipped = records.finite(metrics)
        self.last_step = max(self.last_step, step)  # MLflow shows the value of the highest step: the end's must win
        self.not_finite += skipped
        self.spool.put(store.metrics_record(kept, step))


class MlflowTracker:
    """Runs and families of runs in the store at `uri`, one experiment per data and protocol.

    `spool` is the folder where points wait while the store is away; `patience_s` bounds how long `finish`
    waits for a store that takes nothing.
    """

    def __init__(self, uri: str, spool: Path, patience_s: float = PATIENCE_S) -> None:
        self._uri, self._shown_uri = store.absolute(uri), redact(store.absolute(uri))
        self._folder, self._patience_s = spool.resolve(), patience_s
        self._client: MlflowClient | None = None
        self._run: _Run | None = None
        self._families: dict[str, tuple[Spool, str]] = {}
        self._place, self._waiting = "", ""

    def start(self, start: RunStart) -> str:
        """Open the run and log all that is known before the first round; its id.

        `TrackingError` if the store refuses, or does not answer within some 15 s.
        """
        if self._run is not None:
            raise TrackingError("a run is open already", "finish() before the next start()")
        if start.resume and (run := self._again(start)) is not None:
            return run
        run_id = self._create(records.run_name(start), start)
        with self._failing(run_id), store.answering(self._uri):
            self._fill(run_id, start)
            self._run = _Run(start, self._spool(run_id))
        return run_id

    def _there(self, start: RunStart) -> Any:
        """The run to go on with, running; one that had ended well stays as it is. None where there is none."""
        with store.answering(self._uri):
            client = self._connected()
            experiment_id = store.patiently(lambda: self._experiment_id(client, start))
            run = resumed.found(client, experiment_id, start.run_id)
            if run is not None and run.info.status != "FINISHED":
                client.update_run(run.info.run_id, status="RUNNING")
        if run is not None:
            self._place, self._waiting = f"#/experiments/{experiment_id}/runs/{run.info.run_id}", ""
        return run

    def _again(self, start: RunStart) -> str | None:
        run = self._there(start)
        if run is None:
            return None
        run_id, ended = str(run.info.run_id), run.info.status == "FINISHED"
        with store.answering(self._uri):
            recorded = resumed.recorded(self._connected(), run_id, self._folder / f"{run_id}.jsonl")
        self._run = _Run(start, self._spool(run_id), recorded=recorded, ended=ended)
        return run_id

    def log_round(self, report: RoundReport) -> None:
        """Queue one round's metrics: under a millisecond, whatever the store does."""
        run = self._open_run()
        run.traffic = run.traffic.plus(report)
        run.reports.append(report)
        run.log(report.round, records.round_metrics(report, run.traffic))
        self._warn(run.spool)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue metrics of no round, as `log_round` does."""
        run = self._open_run()
        run.log(step, metrics)
        self._warn(run.spool)

    def finish(self, end: RunEnd) -> None:
        """End the run; waits for the store at most `patience_s` without progress, then leaves the spool."""
        run = self._open_run()
        self._run = None
        killed = end.status == "KILLED"
        try:
            for record in [] if run.ended else _last_records(run, end):
                run.spool.put(record)
            for name, image in ({} if killed or run.ended or run.start.bare else _figures(run, end)).items():
                run.spool.put(store.file_record(f"figures/{name}", image))
        finally:
            self._close(run.spool, KILLED_PATIENCE_S if killed else self._patience_s)

    def start_family(
        self,
        config: RunConfig,
        seeds: Sequence[int],
        dataset: Mapping[str, Any],
        run_id: str = "",
        resume: bool = False,
    ) -> str:
        """Open the parent run of several seeds; its id."""
        method = config.method_name()
        tags = {"fedray.stage": "family", "fedray.seeds": _listed(seeds)}
        as_run = RunStart(config, method, dataset, tags, run_id=run_id, resume=resume)
        if resume and (there := self._there(as_run)) is not None:
            self._families[there.info.run_id] = (self._spool(there.info.run_id), self._place)
            return str(there.info.run_id)
        run_id = self._create(records.family_name(config, seeds), as_run)
        with self._failing(run_id), store.answering(self._uri):
            params = records.params(config, method) | {"seed": _listed(seeds)}
            store.log_params(self._connected(), run_id, params)
            self._log_dataset(run_id, as_run)
            self._families[run_id] = (self._spool(run_id), self._place)
        return run_id

    def finish_family(
        self, family_id: str, metrics: Mapping[str, float], table: str, status: Status = "FINISHED"
    ) -> None:
        """End a parent run with its means and spreads; the table is an artifact and the description."""
        spool, self._place = self._families.pop(family_id)
        kept, _ = records.finite(metrics)
        spool.put(store.metrics_record(kept, 0))
        spool.put(store.tags_record(records.clean_tags({"mlflow.note.content": table})))
        spool.put(store.end_record(status))
        if table:
            spool.put(store.file_record("table.md", table))
        self._close(spool, self._patience_s)

    def run_url(self) -> str:
        """The last run's page: below the server's address, or where `fedray ui` serves by default."""
        base = self._shown_uri if self._shown_uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{base.rstrip('/')}/{self._place}"

    def where(self) -> str:
        """The store, the last run's page, and what still waits to be sent."""
        if self._shown_uri.startswith("http"):
            head = f"MLflow: {self.run_url()}"
        else:
            head = (
                f"MLflow: {self._shown_uri}\n"
                f"open it with: {_fedray_command()} ui --uri {self._shown_uri}\n"
                f"then look at: {self.run_url()}"
            )
        return f"{head}\n{self._waiting}" if self._waiting else head

    def _create(self, name: str, start: RunStart) -> str:
        with store.answering(self._uri):
            client = self._connected()
            experiment_id = store.patiently(lambda: self._experiment_id(client, start))
            run = client.create_run(experiment_id, tags=provenance() | records.tags(start), run_name=name)
        self._place = f"#/experiments/{experiment_id}/runs/{run.info.run_id}"
        self._waiting = ""
        return str(run.info.run_id)

    @contextmanager
    def _failing(self, run_id: str) -> Iterator[None]:
        """A run that could not be opened whole must not look as if it were running."""
        try:
            yield
        except BaseException:  # Ctrl-C included
            with suppress(MlflowException):
                self._connected().set_terminated(run_id, "FAILED")
            raise

    def _experiment_id(self, client: MlflowClient, start: RunStart) -> str:
        name = records.experiment_name(start.config, str(start.dataset.get("name", "data")), start.stage)
        return _get_or_create(client, name, self._artifact_location(), records.experiment_tags(start))

    def _artifact_location(self) -> str | None:
        """Beside a database file; a server knows its own."""
        path = store.sqlite_path(self._uri)
        return str(path.parent / "mlartifacts") if path else None

    def _fill(self, run_id: str, start: RunStart) -> None:
        client = self._connected()
        store.log_params(client, run_id, records.run_params(start))
        self._log_dataset(run_id, start)
        files = {"config/resolved.yaml": redact(to_yaml(start.config)), "plan.txt": start.plan}
        store.send(client, run_id, [store.file_record(k, v) for k, v in files.items() if v])

    def _log_dataset(self, run_id: str, start: RunStart) -> None:
        dataset = start.dataset
        data = Dataset(
            name=str(dataset.get("name", "data")),
            digest=records.digest(str(dataset.get("fingerprint", ""))),
            source_type="fedray",
            source=json.dumps({"fingerprint": str(dataset.get("fingerprint", ""))}),
            schema=json.dumps({"mlflow_colspec": _COLUMNS}),
            profile=json.dumps(
                {
                    "num_rows": dataset.get("interactions"),
                    **{k: v for k, v in dataset.items() if _is_number(v)},
                }
            ),
        )
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", start.stage)])]
        self._connected().log_inputs(run_id, inputs)

    def _connected(self) -> MlflowClient:
        if self._client is None:
            self._client = store.connect(self._uri)
        return self._client

    def _spool(self, run_id: str) -> Spool:
        head = {"run": run_id, "uri": self._shown_uri}
        try:
            path = self._folder / f"{run_id}.jsonl"
            return Spool(path, head, store.sender(self._connected(), run_id), store.is_away)
        except OSError as error:
            raise TrackingError(
                f"cannot write there: {error.strerror}", "a folder", "Set tracking.spool.", str(self._folder)
            ) from error

    def _open_run(self) -> _Run:
        if self._run is None:
            raise TrackingError("no run is open", "start() before logging and finish()")
        return self._run

    def _close(self, spool: Spool, patience_s: float) -> None:
        if not spool.close(patience_s):
            self._waiting = (
                f"{spool.waiting} records wait in {spool.path}: the store does not answer. "
                "Send them later with: fedray sync"
            )
        self._warn(spool)

    def _warn(self, spool: Spool) -> None:
        for notice in spool.notices():
            text = redact(f"MLflow at {self._shown_uri}: {notice}")
            warnings.warn(text, FedrayWarning, stacklevel=3)


def _get_or_create(client: MlflowClient, name: str, location: str | None, tags: Mapping[str, str]) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, location, dict(tags)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} was deleted",
            "an experiment in use",
            f"`mlflow experiments restore -x {found.experiment_id}`, or set tracking.experiment.",
        )
    for key, value in tags.items():
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def _last_records(run: _Run, end: RunEnd) -> list[Record]:
    metrics, skipped = records.finite(end.metrics)
    counts = {
        "fedray.points_not_finite": run.not_finite + skipped,
        "fedray.points_dropped": run.spool.dropped,
        "fedray.points_refused": run.spool.refused,
    }
    note = "\n\n".join([records.run_note(run.start), *(t for k, t in end.texts.items() if k.endswith(".md"))])
    tags = {**end.tags, **{k: str(n) for k, n in counts.items() if n}, "mlflow.note.content": note}
    return [
        store.metrics_record(metrics, run.last_step),
        store.tags_record(records.clean_tags(tags)),
        store.end_record(end.status),
        # After the end: an artifact store that is away must not leave the run open.
        *(store.file_record(name, redact(text)) for name, text in end.texts.items()),
        *(store.file_record(name, content) for name, content in end.files.items()),
    ]


def _figures(run: _Run, end: RunEnd) -> dict[str, bytes]:
    if not run.reports:
        return {}
    from fedray.tracking import figures

    metric = records.primary_metric(run.start.config).split("/", 1)[1]
    title = f"{run.start.method}, {run.start.dataset.get('name', '')}, seed {run.start.config.seed}"
    drawn = {"curves.png": figures.curves(run.reports, metric, end.references, title)}
    spread = figures.quantiles({**run.reports[-1].metrics, **end.metrics}, f"Quality per client: {title}")
    if spread is not None:
        drawn["quantiles.png"] = spread
    return {name: figures.png(figure) for name, figure in drawn.items()}


def _fedray_command() -> str:
    """`fedray`, or its path where the environment was not activated."""
    beside = Path(sys.executable).with_name("fedray")
    if shutil.which("fedray") or not beside.exists():
        return "fedray"
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)


def _listed(seeds: Sequence[int]) -> str:
    return ",".join(map(str, seeds))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_COLUMNS = [{"name": name, "type": "long", "required": name != "time"} for name in ("user", "item", "time")]
