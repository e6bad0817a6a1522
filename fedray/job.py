"""A training job from configuration to table: what `fedray train` and `python jobs/train.py` both do.

The entrypoint's process loads the data, computes the controls, owns every actor, tracks and reports.
"""

import json
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
from fedray.errors import FedrayError, Terminated, UnsupportedError
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
    seconds: Mapping[str, float]
    flags: Mapping[str, str] = field(default_factory=dict)
    where: str = ""

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
    """Print the plan; start nothing."""
    job = prepare(config)
    there = session.local_resources()
    plan = planning.make_plan(config, job.method, job.data, there)
    console.print(planning.render(plan, config))
    planning.check(plan, config, there)
    return plan


def train(
    config: RunConfig, console: Console, parent: str | None = None, save: Path | None = None,
    job: Prepared | None = None,
) -> Result:  # fmt: skip
    """One run, tracked, from data to end table. Whatever happens, no actor stays and the run gets its status."""
    begun = time.perf_counter()
    job = job or prepare(config)
    namespace = f"fedray-{config.name}-s{config.seed}"
    with ExitStack() as stack:
        there = stack.enter_context(_resources(config, namespace))
        stack.enter_context(_signals_raise())  # after ray.init, which sets a SIGTERM handler of its own
        plan = planning.make_plan(config, job.method, job.data, there)
        planning.check(plan, config, _memory(config, there))
        tracker = make_tracker(config.tracking)
        start = RunStart(config, config.method_name(), describe(job.dataset), {}, parent, planning.render(plan, config))
        run_id = tracker.start(start)
        try:
            return _tracked(job, plan, tracker, run_id, console, save, begun)
        except (KeyboardInterrupt, Terminated):
            tracker.finish(RunEnd("KILLED"))
            raise
        except BaseException as error:
            tracker.finish(RunEnd("FAILED", tags={"fedray.error": f"{type(error).__name__}: {error}"[:500]}))
            raise


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
    console.print(planning.render(plan, config))
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
    result = conclude(job, run_id, outcome, control, reports, time.perf_counter() - begun)
    tracker.finish(run_end(result, job, "FINISHED"))
    console.print(
        end_table(dict(outcome.test), {k: dict(v) for k, v in result.control.items()}, ks=shown(config, job.rules))
    )
    for flag, text in result.flags.items():
        console.print(f"[yellow]{flag}: {text}[/yellow]")
    console.print(tracker.where())
    return Result(**{**vars(result), "where": tracker.where()})


def shown(config: RunConfig, rules: Protocol) -> list[int]:
    """The cut-offs worth a line on a terminal: the selecting one and the largest."""
    return sorted({int(rules.select_on.rsplit("_", 1)[1]), max(config.evaluation.k)})


def measured_controls(job: Prepared) -> Controls:
    """random, popularity, constant, ease: per split; cached by data and protocol."""
    if not job.config.evaluation.controls:
        return {}
    sampled = "sampled99" in job.rules.rankings
    shortlist = candidates(job.config.data.seed, job.data) if sampled else {}
    return controls(job.dataset, job.data, job.rules, job.config.evaluation.k, shortlist, CACHE)


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


def _resources(config: RunConfig, namespace: str) -> AbstractContextManager[Resources]:
    if config.runtime.executor == "serial":
        return nullcontext(session.local_resources())
    return session.connected(config, namespace)


def _memory(config: RunConfig, there: Resources) -> Resources:
    """A local cluster reports what Ray set aside; what counts is what the machine has free."""
    if config.runtime.executor == "ray" and session.is_remote(config):
        return there
    return Resources(there.cpus, there.gpus, session.local_resources().memory_bytes)


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
    return Result(run_id, outcome, tests, timing, flags_of(job, outcome, tests))


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
    return RunEnd(status, metrics, {"fedray.protocol_note": job.rules.note, **result.flags}, texts)


def train_family(config: RunConfig, seeds: Sequence[int], console: Console) -> dict[str, Any]:
    """One run per seed under one parent run; returns the summary with means and standard deviations."""
    job = prepare(config)
    tracker = make_tracker(config.tracking)
    family = tracker.start_family(config, seeds, describe(job.dataset))
    found: list[Result] = []
    with _resources(config, f"fedray-{config.name}"):
        for seed in seeds:
            console.rule(f"seed {seed}")
            one = config.with_seed(seed)
            mine = Prepared(one, job.rules, job.dataset, job.data, build_for(one, job))
            found.append(train(one, console, parent=family, job=mine))
    summary = family_summary(family, seeds, found)
    flat = {f"{s}/test/{k}": v for s in ("mean", "std") for k, v in summary[s].items()}
    tracker.finish_family(family, flat, family_table(summary))
    console.print(family_table(summary))
    console.print(tracker.where())
    return summary


def build_for(config: RunConfig, job: Prepared) -> Method:
    """The method under another seed's configuration."""
    return build(config, job.dataset.interactions.n_items, job.dataset.features)


def family_summary(family: str, seeds: Sequence[int], found: Sequence[Result]) -> dict[str, Any]:
    """Means and sample standard deviations over seeds, beside each seed's own summary."""
    names = list(found[0].outcome.test)
    values = {k: [r.outcome.test[k] for r in found] for k in names}
    mean = {k: statistics.fmean(v) for k, v in values.items()}
    std = {k: statistics.stdev(v) if len(v) > 1 else 0.0 for k, v in values.items()}
    each = [r.summary() for r in found]
    control = each[0]["control"]
    return {
        "run_id": family, "seeds": list(seeds), "test": mean, "mean": mean, "std": std, "runs": each,
        "control": control,
        "validation": {k: statistics.fmean(r["validation"][k] for r in each) for k in each[0]["validation"]},
        "seconds": {"total": sum(r["seconds"]["total"] for r in each)},
        "comm": {k: sum(r["comm"][k] for r in each) for k in ("bytes_down", "bytes_up")},
    }  # fmt: skip


def family_table(summary: Mapping[str, Any]) -> str:
    """Markdown: mean and standard deviation over seeds."""
    rows = [f"| {k} | {v:.4f} | {summary['std'][k]:.4f} |" for k, v in summary["mean"].items()]
    seeds = ", ".join(map(str, summary["seeds"]))
    return "\n".join([f"seeds {seeds}", "", "| metric | mean | std |", "|---|---|---|", *rows])


@contextmanager
def _signals_raise() -> Iterator[None]:
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


def write_summary(file: Path, summary: Mapping[str, Any]) -> None:
    """The summary as JSON, written aside and renamed."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(file.name + ".part")
        aside.write_text(json.dumps(summary, indent=2, default=str), encoding="utf-8")
        aside.rename(file)
    except OSError as error:
        raise FedrayError(f"cannot write the summary: {error.strerror}", "a writable path", "", str(file)) from error
