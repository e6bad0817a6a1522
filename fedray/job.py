"""A training job from configuration to table: what `fedray train` and `python jobs/train.py` both do.

The entrypoint's process loads the data, computes the controls, owns every actor, tracks and reports.
"""

import json
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fedray.config import RunConfig
from fedray.data.dataset import client_data, describe, load
from fedray.data.negatives import candidates
from fedray.data.protocols import Protocol, protocol
from fedray.errors import ConfigError, FedrayError, Terminated, UnsupportedError
from fedray.evaluation.controls import chance_flag, constant_scores, controls
from fedray.evaluation.table import end_markdown, end_table
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.federated.method import Method
from fedray.federated.rounds import Outcome
from fedray.methods import build
from fedray.models_io import save_model
from fedray.progress import Progress
from fedray.runtime import plan as planning
from fedray.runtime import session
from fedray.runtime.executor import get
from fedray.runtime.plan import Plan, Resources
from fedray.tracking.tracker import RunEnd, RunStart, Status, Tracker, make_tracker
from fedray.types import ClientData, Dataset, RoundReport

CACHE = Path(".fedray/cache")
Controls = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Prepared:
    """Everything of a job that does not depend on where it runs."""

    config: RunConfig
    rules: Protocol
    dataset: Dataset
    data: ClientData
    method: Method


@dataclass(frozen=True)
class Result:
    """The end of a run; `summary()` is its JSON form."""

    run_id: str
    outcome: Outcome
    control: Mapping[str, Mapping[str, float]]
    references: Mapping[str, float]
    seconds: Mapping[str, float]
    flags: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """For scripts: stable keys."""
        return {
            "run_id": self.run_id,
            "best_round": self.outcome.best_round,
            "test": dict(self.outcome.test),
            "validation": dict(self.outcome.validation),
            "control": {k: dict(v) for k, v in self.control.items()},
            "seconds": dict(self.seconds),
            "comm": {"bytes_down": self.outcome.bytes_down, "bytes_up": self.outcome.bytes_up},
            "flags": dict(self.flags),
        }


def prepare(config: RunConfig) -> Prepared:
    """Data read, checked and split; the method made. Raises `ConfigError` and `DataError`."""
    rules = protocol(config.evaluation.protocol)
    if int(rules.select_on.rsplit("_", 1)[1]) not in config.evaluation.k:
        raise UnsupportedError(
            f"evaluation.k is {list(config.evaluation.k)} and protocol {rules.name} selects on {rules.select_on}",
            f"the K of {rules.select_on} among evaluation.k",
        )
    dataset = load(config.data, rules)
    method = build(config, dataset.interactions.n_items, dataset.features)
    return Prepared(config, rules, dataset, client_data(dataset), method)


def dry_run(config: RunConfig, console: Console) -> Plan:
    """Print the plan, and refuse it if it does not fit; start nothing."""
    plan = local_plan(prepare(config), console)
    if address := session.remote_address(config):
        say(console, f"this is the plan for this machine; the run itself will ask the cluster at {address}")
    return plan


def local_plan(job: Prepared, console: Console | None) -> Plan:
    """The plan on this machine: printed, then refused if it does not fit."""
    return checked_plan(job, session.local_resources(), console)


def checked_plan(job: Prepared, there: Resources, console: Console | None) -> Plan:
    """The plan on these resources: printed where there is a console, then refused if it does not fit."""
    plan = planning.make_plan(job.config, job.method, job.data, there)
    if console is not None:
        say(console, planning.render(plan, job.config))
    planning.check(plan, job.config, there)
    return plan


def train(
    config: RunConfig,
    console: Console,
    parent: str | None = None,
    save: Path | None = None,
    job: Prepared | None = None,
) -> Result:
    """One run, tracked, from data to end table. Whatever happens, no actor stays and the run gets its status."""
    begun = time.perf_counter()
    with signals_raise(), ExitStack() as stack:
        job = job or prepare(config)
        plan = stack.enter_context(placed(job, console))
        stack.enter_context(signals_raise())  # again: ray.init sets a SIGTERM handler of its own
        tracker = make_tracker(config.tracking)
        start = RunStart(config, config.method_name(), describe(job.dataset), {}, parent, planning.render(plan, config))
        run_id = tracker.start(start)
        end = RunEnd("KILLED")
        try:
            result = _tracked(job, plan, tracker, run_id, console, save, begun)
            end = run_end(result, job, "FINISHED")
        except (KeyboardInterrupt, Terminated, SystemExit):
            raise
        except BaseException as error:
            end = RunEnd("FAILED", tags={"fedray.error": f"{type(error).__name__}: {error}"[:500]})
            raise
        finally:
            tracker.finish(end)
    show_end(console, result, shown(config, job.rules), tracker.where())
    return result


@contextmanager
def placed(job: Prepared, console: Console | None = None) -> Iterator[Plan]:
    """The plan, printed and checked; and Ray, if the plan wants it. A local Ray starts only after that."""
    config, namespace = job.config, f"fedray-{job.config.name}-s{job.config.seed}"
    if config.runtime.executor == "serial":
        yield local_plan(job, console)
    elif session.remote_address(config):
        session.probe(config)
        with session.connected(config, namespace, session.local_resources()):
            yield checked_plan(job, session.resources(), console)
    else:
        plan = local_plan(job, console)
        with session.connected(config, namespace, session.local_resources()):
            yield plan


def _tracked(
    job: Prepared,
    plan: Plan,
    tracker: Tracker,
    run_id: str,
    console: Console,
    save: Path | None,
    begun: float,
) -> Result:
    config = job.config
    if store_goes_away(config):
        text = "tracking.uri is a file in this job's own folder, which Ray removes: set it to a server"
        console.print(text, style="yellow", markup=False)
    with console.status("controls: popularity, central EASE (kept for the next run on these data)"):
        control = measured_controls(job)
    reports: list[RoundReport] = []
    with _federation(job, plan) as federation, Progress(console, config, control) as progress:
        for report in federation.rounds():
            tracker.log_round(report)
            progress.show(report)
            reports.append(report)
        outcome = federation.finish()
        if save is not None:
            save_model(save, config, job.dataset.fingerprint, federation.save)
    return conclude(job, run_id, outcome, control, reports, time.perf_counter() - begun)


def show_end(console: Console, result: Result, ks: list[int], where: str) -> None:
    """The table, what does not look right, and where the run is."""
    console.print(end_table(dict(result.outcome.test), {k: dict(v) for k, v in result.control.items()}, ks=ks))
    for flag, text in result.flags.items():
        console.print(f"{flag}: {text}", style="yellow", markup=False, soft_wrap=True)
    say(console, where)


def say(console: Console, text: str) -> None:
    """Plain text: never broken, never read as markup (paths have brackets)."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def shown(config: RunConfig, rules: Protocol) -> list[int]:
    """The cut-offs worth a line on a terminal: the selecting one and the largest."""
    return sorted({int(rules.select_on.rsplit("_", 1)[1]), max(config.evaluation.k)})


def store_goes_away(config: RunConfig) -> bool:
    """Whether this is a submitted job that records its run in the unpacked package, which Ray throws away."""
    file = config.tracking.uri.removeprefix("sqlite:///")
    relative = "://" not in file and not file.startswith("/")
    return "_ray_pkg_" in str(Path.cwd()) and config.tracking.backend != "none" and relative


def measured_controls(job: Prepared) -> Controls:
    """random, popularity, constant, ease: per split; cached by data and protocol."""
    if not job.config.evaluation.controls:
        return {}
    sampled = "sampled99" in job.rules.rankings
    shortlist = candidates(job.config.data.seed, job.data) if sampled else {}
    cache = CACHE if os.access(Path.cwd(), os.W_OK) else None
    return controls(job.dataset, job.data, job.rules, job.config.evaluation.k, shortlist, cache)


@dataclass(frozen=True)
class Federation:
    """A run as the job sees it, wherever its clients live."""

    rounds: Callable[[], Iterator[RoundReport]]
    finish: Callable[[], Outcome]
    save: Callable[[str], Any]


def _federation(job: Prepared, plan: Plan) -> AbstractContextManager[Federation]:
    return nullcontext(_serial(job, plan)) if plan.executor == "serial" else _on_ray(job, plan)


def _serial(job: Prepared, plan: Plan) -> Federation:
    executor = SerialExecutor([make_host(job.config, job.method, job.data, plan.device)])
    run = rounds.start(job.config, job.method)

    def each() -> Iterator[RoundReport]:
        nonlocal run
        while not rounds.finished(run):
            run, report = rounds.step(run, executor)
            yield report

    def save(folder: str) -> Any:
        assert run.best is not None
        return run.best.broadcast.params, run.best.round, executor.save(folder)

    return Federation(each, lambda: rounds.finish(run, executor), save)


@contextmanager
def _on_ray(job: Prepared, plan: Plan) -> Iterator[Federation]:
    with session.crew(job.config, plan, job.data, job.dataset.features) as crew:

        def each() -> Iterator[RoundReport]:
            last = False
            while not last:
                report, last = get(crew.driver.step.remote())
                yield report

        yield Federation(
            each,
            lambda: get(crew.driver.finish.remote()),
            lambda folder: get(crew.driver.save.remote(folder)),
        )


def conclude(
    job: Prepared,
    run_id: str,
    outcome: Outcome,
    control: Controls,
    reports: Sequence[RoundReport],
    seconds: float,
) -> Result:
    """Metrics beside their controls, and what does not look right."""
    tests = {name: found["test"] for name, found in control.items()}
    if outcome.local_only:
        tests["local_only"] = dict(outcome.local_only["test"])
    stages = sorted({k for r in reports for k in r.seconds})
    took = {k: statistics.median(r.seconds.get(k, 0.0) for r in reports) for k in stages}
    timing = {"total": seconds, "rounds": float(len(reports)), **{f"{k}_median": v for k, v in took.items()}}
    alone = {"local_only": outcome.local_only["valid"]} if outcome.local_only else {}
    valid = {**{name: found["valid"] for name, found in control.items()}, **alone}
    references = {name: found[job.rules.select_on] for name, found in valid.items()}
    return Result(run_id, outcome, tests, references, timing, flags_of(job, outcome, tests))


def flags_of(job: Prepared, outcome: Outcome, tests: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Tags that warn: held-out items leak, or scores do not differ."""
    flags: dict[str, str] = {}
    name = job.rules.select_on
    if "local_only" in tests and "random" in tests:
        alone, chance = tests["local_only"], tests["random"]
        if chance_flag(alone, chance, outcome.local_only_errors, name):
            flags["fedray.flag.local_only_above_chance"] = (
                f"with federation off {name} is {alone[name]:.4f}, chance is {chance[name]:.4f}: "
                f"the protocol ({job.rules.name}) leaks held-out items, or the method uses content"
            )
    if constant_scores(outcome.test["score_std"]):
        flags["fedray.flag.constant_scores"] = "all items score the same: the ranking is decided by ties"
    return flags


def run_end(result: Result, job: Prepared, status: Status) -> RunEnd:
    """What the tracker keeps of the end."""
    outcome = result.outcome
    metrics = {f"test/{k}": v for k, v in outcome.test.items()}
    metrics |= {f"val/best_{k}": v for k, v in outcome.validation.items()}
    metrics |= {f"control/{c}/{k}": v for c, found in result.control.items() for k, v in found.items()}
    metrics |= {"best_round": float(outcome.best_round), "time/total_s": result.seconds["total"]}
    texts = {
        "summary.json": json.dumps(result.summary(), indent=2, default=str),
        "table.md": end_markdown(dict(outcome.test), {k: dict(v) for k, v in result.control.items()}),
    }
    tags = {"fedray.protocol_note": job.rules.note, **result.flags}
    return RunEnd(status, metrics, tags, texts, result.references)


@contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM become `Terminated`, so that the run is closed whichever it was."""

    def stop(signum: int, frame: Any) -> None:
        raise Terminated

    try:
        old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: nobody sends it signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def check_outputs(summary: Path | None, save: Path | None) -> None:
    """Refuse, before any training, paths that could not be written after it."""
    if summary is not None and (summary.is_dir() or not _can_hold(summary.parent)):
        raise ConfigError(f"--summary {summary}", "a file in a writable folder")
    if save is not None and not _can_hold(save):
        raise ConfigError(f"--save {save}", "a writable folder, or one that can be made")


def _can_hold(folder: Path) -> bool:
    """Whether files can be written into `folder`, made if need be."""
    here = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return here.is_dir() and os.access(here, os.W_OK)


def write_summary(file: Path, summary: Mapping[str, Any]) -> None:
    """The summary as JSON, written aside and renamed."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(file.name + ".part")
        aside.write_text(json.dumps(summary, indent=2, default=str), encoding="utf-8")
        aside.rename(file)
    except OSError as error:
        raise FedrayError(f"cannot write the summary: {error.strerror}", "a writable path", "", str(file)) from error
