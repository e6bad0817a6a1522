"""`fedray submit | status | logs | stop | list`: a training as a job, on a Ray cluster or on this machine, alike.

What is for scripts goes to stdout (a run id, a log, JSON), what is for people about it to stderr.
"""

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from fedray.config import RunConfig, load_config
from fedray.errors import ClusterError, JobError
from fedray.runtime import job_records as records
from fedray.runtime import shipping
from fedray.runtime.job_records import Backend, JobRecord, Request
from fedray.status_line import RoundStatus, TrialStatus, clock, last_round, last_trial
from fedray.tracking.redact import redact

POLL_S = 0.5
ENDING_S = records.STOP_GRACE_S + 30.0
"""After so long a job that was asked to stop, or whose log has ended, must be over."""


@dataclass(frozen=True)
class Place:
    """Where jobs are: this machine, or the cluster at `address`, or the one of the environment."""

    address: str = ""
    local: bool = False

    def flag(self) -> str:
        """How the other commands say it."""
        return " --local" if self.local else f" --address {redact(self.address)}" if self.address else ""

    def backend(self, working_dir: Path | None = None) -> Backend:
        """Reached, or a named error within seconds."""
        if self.local and self.address:
            raise JobError("--local with --address", "one of them")
        if self.local:
            from fedray.runtime.local_jobs import LocalJobs

            return LocalJobs(working_dir=working_dir)
        from fedray.runtime.jobs import RayJobs, cluster_address

        return RayJobs(cluster_address(self.address, os.environ))


@dataclass(frozen=True)
class Submission:
    """What `fedray submit` is asked."""

    job: Path
    sets: Sequence[str] = ()
    seeds: str = ""
    run_id: str = ""
    working_dir: Path | None = None
    env: Sequence[str] = ()
    ship: bool = False


def submit(asked: Submission, place: Place, wait: bool) -> int:
    """Check everything here, send it, print the run id; or follow it and return its exit code."""
    job = read_job(asked)
    config = job.config
    run_id = records.checked_run_id(asked.run_id) if asked.run_id else records.new_run_id(config.name)
    env = shipping.job_env(asked.env, os.environ, () if place.local else shipping.FORWARDED)
    shipping.check_folder(asked.working_dir)
    if not place.local:
        for remark in preflight(config, asked.working_dir, env):
            typer.secho(remark, err=True, fg="yellow")
    there = place.backend(asked.working_dir)
    submission_id = records.next_attempt(run_id, there.jobs())
    with tempfile.TemporaryDirectory(prefix="fedray-") as folder:
        shipping.write_folder(Path(folder), job, run_id, None if place.local else asked.working_dir)
        command = shipping.command(job, run_id, asked.seeds)
        modules = shipping.own_package() if asked.ship and not place.local else ()
        there.submit(Request(submission_id, command, Path(folder), env, modules))
    _note(f"{submission_id} submitted {there.where}, with {', '.join(sorted(env))} in its environment")
    if wait:
        return follow(there, submission_id, place)
    _note(f"fedray logs {run_id} --follow{place.flag()}")
    typer.echo(run_id)
    return 0


def read_job(asked: Submission) -> shipping.Job:
    """The job file or sweep file, checked and resolved."""
    if not is_sweep(asked.job):
        return shipping.training(load_config(asked.job, list(asked.sets)))
    if asked.seeds:
        raise JobError("--seeds with a sweep", "one of them", "Set refit.seeds.")
    from fedray.search.report import sweep_yaml
    from fedray.search.sweep import load_sweep

    sweep = load_sweep(asked.job, asked.sets)
    name = sweep.config.name
    config = sweep.job.model_copy(update={"name": name})
    return shipping.Job(config, f"tune_configs/{name}.yaml", sweep_yaml(sweep), "tune")


def is_sweep(file: Path) -> bool:
    """Whether the file has a space to search."""
    return file.is_file() and bool(re.search(r"^space\s*:", file.read_text(encoding="utf-8", errors="replace"), re.M))


def preflight(config: RunConfig, working_dir: Path | None, env: dict[str, str]) -> Iterator[str]:
    """Remarks on what a cluster will make of this job; `NotShippableError` for what cannot work there."""
    if working_dir is not None:
        yield from shipping.check_size(working_dir)
    shipping.check_paths(config, working_dir, env)
    if away := shipping.goes_away(config):
        yield f"{', '.join(away)}: in the job's own folder, which Ray removes; name a server, or shared storage"


def follow(there: Backend, submission_id: str, place: Place) -> int:
    """Its log to the end, then its own exit code. Ctrl-C leaves the job alone."""
    try:
        there.follow(submission_id, _emit)
        job = until_over(there, submission_id)
    except KeyboardInterrupt:
        _note(f"{submission_id} goes on; `fedray stop {records.split(submission_id)[0]}{place.flag()}` stops it")
        return records.STOPPED
    _note(_end(job))
    return records.own_code(job)


def logs(name: str, place: Place, following: bool) -> int:
    """What the job printed; with `following` also what it will print."""
    there = place.backend()
    job = records.find(name, there.jobs(), there.where)
    if following:
        return follow(there, job.submission_id, place)
    _emit(there.log(job.submission_id))
    return 0


def stop(name: str, place: Place, wait: bool) -> int:
    """Ask the job to commit and end; one that is over already is no error."""
    there = place.backend()
    job = records.find(name, there.jobs(), there.where)
    if not there.stop(job.submission_id):
        _note(_end(there.job(job.submission_id)))
        return 0
    _note(f"{job.submission_id} was asked to stop; it has {records.STOP_GRACE_S} s to commit and end")
    if wait:
        _note(_end(until_over(there, job.submission_id)))
    return 0


def until_over(there: Backend, submission_id: str, patience_s: float = ENDING_S) -> JobRecord:
    """The job once it is over."""
    until = time.monotonic() + patience_s
    while not (job := there.job(submission_id)).over:
        if time.monotonic() > until:
            raise ClusterError(
                f"{submission_id} is still {job.state} after {patience_s:.0f} s", "it to be over", "Look at its log."
            )
        time.sleep(POLL_S)
    return job


def status(name: str, place: Place, as_json: bool) -> int:
    """Where the job is; the exit code says whether it is well, failed, resumable or stopped."""
    there = place.backend()
    job = records.find(name, there.jobs(), there.where)
    log = there.log(job.submission_id)
    reached, swept = last_round(log), last_trial(log)
    if as_json:
        found = {"progress": _finite(asdict(reached)) if reached else None, "sweep": swept and swept._asdict()}
        typer.echo(json.dumps({**as_dict(job), **found}, indent=2))
    else:
        for title, text in describe(job, reached, swept):
            typer.echo(f"{title:<12}{text}")
    return records.status_code(job)


def describe(
    job: JobRecord, reached: RoundStatus | None, swept: TrialStatus | None = None
) -> Iterator[tuple[str, str]]:
    """The lines of `fedray status`."""
    yield "run", job.run_id
    yield "attempt", f"{job.attempt}  ({job.submission_id})"
    yield "state", job.state + (f" for {clock(time.time() - job.submitted)}" if job.submitted and not job.over else "")
    if job.state in ("failed", "resumable", "stopped"):
        why = f"{job.message.rstrip('.')}; " if job.message else ""
        yield "", f"{why}`fedray submit JOB --run-id {job.run_id}` goes on with it"
    if swept:
        yield "trials", f"{swept.ended:,} over" + (f", best {swept.best} by trial {swept.trial}" if swept.best else "")
        if reached is None:
            return
    if reached is None:
        yield "round", "none yet" if not job.over else "none"
        return
    left = "" if job.over else f"  {clock(reached.left_s)} left"
    yield "round", f"{reached.round}/{reached.rounds}  {reached.seconds:.2f} s a round{left}"
    yield "loss", f"{reached.loss:.4f}"
    if reached.metric:
        yield reached.metric, f"{reached.value:.4f} (best {reached.best:.4f})"
    yield "clients", f"{reached.clients_ok:,} ok, {reached.dropped:,} dropped, {reached.rejected:,} rejected"
    yield "restarts", f"{reached.restarts:,}"
    if reached.abandoned:
        yield "abandoned", f"{reached.abandoned:,} rounds, with too few clients left"


def list_jobs(place: Place, as_json: bool) -> int:
    """Every job, the newest first."""
    there = place.backend()
    jobs = sorted(there.jobs(), key=lambda j: j.submitted or 0.0, reverse=True)
    if as_json:
        typer.echo(json.dumps([as_dict(j) for j in jobs], indent=2))
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("run", "attempt", "state", "exit code", "submitted", "took"):
        table.add_column(title, overflow="fold")
    for j in jobs:
        code = "" if j.exit_code is None else str(j.exit_code)
        table.add_row(j.run_id, str(j.attempt or ""), j.state, code, _date(j.submitted), _took(j))
    Console(width=None if os.isatty(1) else 160).print(table)
    return 0


def as_dict(job: JobRecord) -> dict[str, Any]:
    """A job for scripts: stable keys."""
    return {"run_id": job.run_id, "attempt": job.attempt, **asdict(job)}


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def _date(at: float | None) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S") if at else ""


def _took(job: JobRecord) -> str:
    end = job.ended if job.over else time.time()
    return clock(end - job.submitted) if end and job.submitted else ""


def _end(job: JobRecord) -> str:
    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    return f"{job.submission_id} {job.state}{code}"


def _emit(text: str) -> None:
    typer.echo(text, nl=False)


def _note(text: str) -> None:
    typer.secho(text, err=True)
