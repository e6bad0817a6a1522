"""A training job from configuration to table: what `fedray train` and `python jobs/train.py` both do.

The entrypoint's process loads the data, computes the controls, owns every actor, tracks and reports.
"""

import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fedray.config import RunConfig
from fedray.data.dataset import client_data, describe, load
from fedray.data.features import shuffled
from fedray.data.negatives import shortlists
from fedray.data.protocols import Protocol, rules_of
from fedray.embeddings.report import FeatureReport
from fedray.errors import ConfigError, StoppedBetweenRounds, Terminated, UnsupportedError
from fedray.evaluation import ablation, groups, slices, users
from fedray.evaluation.ablation import Gain
from fedray.evaluation.controls import chance_flag, constant_scores, controls
from fedray.evaluation.table import ablation_markdown, ablation_table, end_markdown, end_table
from fedray.federated.method import Method
from fedray.federated.rounds import Outcome
from fedray.federation import Federation, federation
from fedray.methods import build
from fedray.models_io import save_model
from fedray.progress import EncodeProgress, Progress, Stop, one_by_one, say, signals_heard, signals_raise
from fedray.runtime import plan as planning
from fedray.runtime import session
from fedray.runtime.checkpoint import NEW, Checkpoints, Go, opened
from fedray.runtime.encoding import Pools, no_pools, pools
from fedray.runtime.features import with_features
from fedray.runtime.plan import Plan, Resources
from fedray.segments import widest_plan
from fedray.tracking.records import params
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
    features: tuple[FeatureReport, ...] = ()


@dataclass(frozen=True)
class Result:
    """The end of a run; `summary()` is its JSON form."""

    run_id: str
    outcome: Outcome
    control: Mapping[str, Mapping[str, float]]
    references: Mapping[str, float]
    seconds: Mapping[str, float]
    flags: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    gains: Mapping[str, Gain] = field(default_factory=dict)
    reports: Sequence[RoundReport] = field(default=(), repr=False)

    def summary(self) -> dict[str, Any]:
        """For scripts: stable keys."""
        return {
            "run_id": self.run_id,
            "protocol": self.about.get("protocol", ""),
            "protocol_note": self.about.get("protocol_note", ""),
            "best_round": self.outcome.best_round,
            "selected_rounds": dict(self.outcome.rounds),
            "test": dict(self.outcome.test),
            "validation": dict(self.outcome.validation),
            "control": {k: dict(v) for k, v in self.control.items()},
            "ablation": {k: dict(v.test) for k, v in self.outcome.ablation.items()},
            "content_gain": {k: g._asdict() for k, g in self.gains.items()},
            "seconds": dict(self.seconds),
            "comm": {"bytes_down": self.outcome.bytes_down, "bytes_up": self.outcome.bytes_up},
            "flags": dict(self.flags),
            "about": dict(self.about),
        }


def prepare(config: RunConfig, console: Console | None = None, open_pools: Pools = pools) -> Prepared:
    """Data read, checked and split; features encoded where the store lacks them; the method made.

    Raises `ConfigError`, `DataError` and what encoding raises.
    """
    rules = rules_of(config.evaluation)
    known = rules.metrics(config.evaluation.k)
    if missing := ", ".join(m for m in rules.select_on if m not in known):
        raise UnsupportedError(
            f"evaluation.k is {list(config.evaluation.k)} and protocol {rules.name} selects on {missing}",
            f"the K of {missing} among evaluation.k, and its ranking among {', '.join(rules.rankings)}",
        )
    with EncodeProgress(console) as progress:
        dataset, reports = with_features(config, load(config.data, rules), progress.show, open_pools)
    if config.data.shuffle_features and dataset.features:
        dataset = replace(dataset, features=shuffled(dataset.features, config.data.seed))
    if console is not None:
        for report in reports:
            say(console, report.line())
    method = build(config, dataset.interactions.n_items, dataset.features)
    return Prepared(config, rules, dataset, client_data(dataset), method, reports)


def dry_run(config: RunConfig, console: Console) -> Plan:
    """Print the plan, and refuse it if it does not fit; start nothing."""
    plan = local_plan(prepare(config, console, no_pools), console)
    if address := session.remote_address(config):
        say(console, f"this is the plan for this machine; the run itself will ask the cluster at {address}")
    return plan


def local_plan(job: Prepared, console: Console | None) -> Plan:
    """The plan on this machine: printed, then refused if it does not fit."""
    return checked_plan(job, session.local_resources(), console)


def checked_plan(job: Prepared, there: Resources, console: Console | None) -> Plan:
    """The plan on these resources: printed where there is a console, then refused if it does not fit."""
    plan = widest_plan(job.config, job.method, job.data, job.dataset.features, there)
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
    go: Go = NEW,
) -> Result:
    """One run, tracked, from data to end table. Whatever happens, no actor stays and the run gets its status."""
    begun = time.perf_counter()
    with signals_raise(), ExitStack() as stack:
        job = job or prepare(config, console)
        plan = stack.enter_context(placed(job, console))
        stop = stack.enter_context(signals_raise())  # again: ray.init sets a SIGTERM handler of its own
        checkpoints = opened(config, job.dataset.contents, plan.device, go)
        tracker = make_tracker(config.tracking)
        made, text = job.dataset.features, planning.render(plan, config)
        tags = {"fedray.features_fingerprint": made.fingerprint} if made else {}
        about_run = config, config.method_name(), describe(job.dataset), tags, parent, text
        own_id = checkpoints.identity.run_id if checkpoints else go.run_id
        run_id = tracker.start(RunStart(*about_run, run_id=own_id, resume=go.resume))
        end = RunEnd("KILLED")
        try:
            with signals_heard():
                result = _tracked(job, plan, tracker, run_id, console, save, begun, checkpoints, go, stop)
            end = run_end(result, job, "FINISHED")
            if checkpoints and not go.run_id:
                checkpoints.clear()
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
    checkpoints: Checkpoints | None,
    go: Go,
    stop: Stop,
) -> Result:
    config = job.config
    if store_goes_away(config):
        text = "tracking.uri is a file in this job's own folder, which Ray removes: set it to a server"
        console.print(text, style="yellow", markup=False)
    with console.status("controls: popularity, central EASE (kept for the next run on these data)"):
        control = measured_controls(job)
    reports: list[RoundReport] = []
    with (
        federation(config, job.method, job.data, job.dataset.features, plan, checkpoints) as clients,
        Progress(console, config, control) as progress,
        resumable(console, checkpoints, clients, go),
    ):
        for report in clients.resume() if go.resume else ():
            tracker.log_round(report)
            progress.recall(report)
            reports.append(report)
        if reports:
            say(console, f"goes on after round {reports[-1].round} of {config.train.rounds}")
        for report in one_by_one(clients.rounds(), stop):
            tracker.log_round(report)
            progress.show(report)
            reports.append(report)
        outcome = clients.finish()
        if save is not None:
            save_model(save, config, job.dataset.fingerprint, clients.save)
    return conclude(job, run_id, outcome, control, reports, time.perf_counter() - begun)


@contextmanager
def resumable(console: Console, checkpoints: Checkpoints | None, clients: Federation, go: Go) -> Iterator[None]:
    """However the run breaks off: a checkpoint where that is possible, and how to go on."""
    try:
        yield
    except (Exception, Terminated) as error:
        if checkpoints and isinstance(error, StoppedBetweenRounds):
            clients.commit()
        if checkpoints and not isinstance(error, ConfigError) and (last := checkpoints.last_round()):
            say(console, f"to go on after round {last}, add: {go.how(checkpoints.identity.run_id)}")
        raise


def show_end(console: Console, result: Result, ks: list[int], where: str) -> None:
    """The table under the rules it was made by, what does not look right, and where the run is."""
    control, rules = {k: dict(v) for k, v in result.control.items()}, result.about
    say(console, f"protocol {rules['protocol']}: {rules['protocol_note']}")
    console.print(end_table(dict(result.outcome.test), control, ks=ks))
    if parts := result.outcome.ablation:
        say(console, "\nthe same model without a part:")
        console.print(ablation_table(dict(result.outcome.test), {k: a.test for k, a in parts.items()}, ks))
    for flag, text in result.flags.items():
        console.print(f"{flag}: {text}", style="yellow", markup=False, soft_wrap=True)
    say(console, where)


def shown(config: RunConfig, rules: Protocol) -> list[int]:
    """The cut-offs worth a line on a terminal: the selecting ones and the largest."""
    return sorted({*(int(m.rsplit("_", 1)[1]) for m in rules.select_on), max(config.evaluation.k)})


def store_goes_away(config: RunConfig) -> bool:
    """Whether this is a submitted job that records its run in the unpacked package, which Ray throws away."""
    file = config.tracking.uri.removeprefix("sqlite:///")
    relative = "://" not in file and not file.startswith("/")
    here = folder_here()
    return (here is None or "_ray_pkg_" in str(here)) and config.tracking.backend != "none" and relative


def folder_here() -> Path | None:
    """The working directory; None where it is gone: nodes of one machine that share Ray's folder unpack a job's package
    over each other."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def measured_controls(job: Prepared) -> Controls:
    """random, popularity, constant, content_<feature>, ease: per split; cached by data, features and protocol."""
    if not job.config.evaluation.controls:
        return {}
    shortlist = shortlists(job.config.data.seed, job.data, job.rules)
    cache = CACHE if (here := folder_here()) and os.access(here, os.W_OK) else None
    asked = job.config.evaluation
    return controls(job.dataset, job.data, job.rules, asked.k, shortlist, cache, asked.slices)


def conclude(
    job: Prepared,
    run_id: str,
    outcome: Outcome,
    control: Controls,
    reports: Sequence[RoundReport],
    seconds: float,
) -> Result:
    """Metrics beside their controls, and what does not look right."""
    names, metric = job.config.evaluation.slices, ablation.metric_of(outcome.users, job.rules.lead)
    parts = ablation.with_slices(outcome.ablation, job.data, names)
    gained = ablation.gains(outcome.users, parts, metric, job.data, names)
    test = {**outcome.test, **slices.of_run(outcome.users, job.data, names)}
    outcome = replace(outcome, test=test, ablation=parts)
    alone = outcome.local_only
    tests = {name: dict(found["test"]) for name, found in control.items()}
    tests |= {"local_only": dict(alone["test"])} if alone else {}
    stages = sorted({k for r in reports for k in r.seconds})
    took = {k: statistics.median(r.seconds.get(k, 0.0) for r in reports) for k in stages}
    timing = {"total": seconds, "rounds": float(len(reports)), **{f"{k}_median": v for k, v in took.items()}}
    valid = {name: found["valid"] for name, found in control.items()}
    valid |= {"local_only": dict(alone["valid"])} if alone else {}
    references = {name: found[job.rules.lead] for name, found in valid.items()}
    flags = flags_of(job, outcome, tests)
    return Result(run_id, outcome, tests, references, timing, flags, about(job), gained, tuple(reports))


def about(job: Prepared) -> dict[str, Any]:
    """What was run, as `fedray compare` asks for it; in MLflow these are tags and params."""
    config = job.config
    return {
        "name": config.name,
        "seed": config.seed,
        "method": config.method_name(),
        "data": job.dataset.name,
        "data_fingerprint": job.dataset.fingerprint,
        "protocol": job.rules.name,
        "protocol_note": job.rules.note,
        "params": params(config, config.method_name()),
    }


def flags_of(job: Prepared, outcome: Outcome, tests: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Tags that warn: the test set was looked at, held-out items leak, or scores do not differ."""
    flags, name = dict[str, str](), job.rules.lead
    if job.rules.select_split == "test":
        flags["fedray.flag.selected_on_test"] = f"the round was chosen on the test set ({job.rules.name}): not held out"
    if outcome.local_only_diverged:
        flags["fedray.flag.local_only_diverged"] = f"no local-only control: {outcome.local_only_diverged}"
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
    read_by = ablation.metric_of(outcome.users, job.rules.lead)
    metrics = {f"test/{k}": v for k, v in outcome.test.items()}
    metrics |= {f"val/best_{k}": v for k, v in outcome.validation.items()}
    metrics |= {f"control/{c}/{k}": v for c, found in result.control.items() for k, v in found.items()}
    metrics |= ablation.metrics(outcome.ablation, result.gains, read_by)
    metrics |= {"best_round": float(outcome.best_round), "time/total_s": result.seconds["total"]}
    parts = {k: a.test for k, a in outcome.ablation.items()}
    texts = {
        "summary.json": json.dumps(result.summary(), indent=2, default=str),
        "table.md": end_markdown(
            dict(outcome.test),
            {k: dict(v) for k, v in result.control.items()},
            title=f"protocol `{job.rules.name}`: {job.rules.note}",
        )
        + (f"\n{ablation_markdown(dict(outcome.test), parts)}" if parts else ""),
        **group_texts(outcome, job),
    }
    tags = {"fedray.protocol_note": job.rules.note, **result.flags}
    files = {users.FILE: users.to_parquet(outcome.users), **pictures(result, job, read_by)}
    return RunEnd(status, metrics, tags, texts, result.references, files)


def group_texts(outcome: Outcome, job: Prepared) -> dict[str, str]:
    """What each group likes, by title, where there are groups."""
    if outcome.groups is None:
        return {}
    found = groups.liked(outcome.groups.preference, outcome.groups.group)
    title = f"{job.config.method_name()}, {job.dataset.name}: groups of clients at round {outcome.best_round}"
    return {"groups.md": groups.markdown(found, groups.names_of(job.dataset.items), title)}


def pictures(result: Result, job: Prepared, metric: str) -> dict[str, bytes]:
    """The report, and what there is to draw of the clients, of the parts of the item rows and of groups."""
    if job.config.tracking.backend == "none":
        return {}
    from fedray.report import FILE, run_report  # matplotlib takes a while to import
    from fedray.tracking import group_portraits, portraits

    title = f"{job.config.method_name()}, {job.dataset.name}, seed {job.config.seed}"
    found = portraits.drawn(result.reports, result.outcome, result.gains, metric, title)
    names = groups.names_of(job.dataset.items)
    found |= group_portraits.drawn(result.reports, result.outcome, names, metric, title)
    return found | {FILE: run_report(result.summary(), result.outcome.users, result.reports).encode()}
