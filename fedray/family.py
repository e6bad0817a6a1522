"""Several seeds of one job as a family: a run each, under one parent run with their means and deviations."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from fedray.config import RunConfig
from fedray.data.dataset import describe
from fedray.errors import Terminated
from fedray.evaluation.table import number
from fedray.evaluation.users import Users
from fedray.federated.method import Method
from fedray.job import Prepared, Result, placed, prepare, shown, train
from fedray.methods import build
from fedray.progress import say, signals_raise
from fedray.runtime.checkpoint import NEW, Go
from fedray.tracking.tracker import make_tracker


@dataclass(frozen=True)
class Family:
    """The end of several seeds' runs: the summary with means and standard deviations, and each seed's users."""

    summary: Mapping[str, Any]
    users: Mapping[int, Users]


def train_family(config: RunConfig, seeds: Sequence[int], console: Console, go: Go = NEW) -> Family:
    """One run per seed under one parent run. A family that goes on does so with each seed, also with those that were
    done: these are only scored again."""
    job = prepare(config, console)
    tracker = make_tracker(config.tracking)
    family = tracker.start_family(config, seeds, describe(job.dataset), go.run_id, go.resume)
    try:
        with signals_raise():
            found = _each_seed(job, seeds, family, console, go)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | Terminated | SystemExit)
        tracker.finish_family(family, {}, "", "KILLED" if stopped else "FAILED")
        raise
    summary = family_summary(family, seeds, found)
    table = family_table(summary, shown(config, job.rules))
    tracker.finish_family(family, family_metrics(summary, shown(config, job.rules)), table)
    say(console, table)
    say(console, tracker.where())
    return Family(summary, {seed: r.outcome.users for seed, r in zip(seeds, found, strict=True)})


def _each_seed(job: Prepared, seeds: Sequence[int], family: str, console: Console, go: Go) -> list[Result]:
    found = []
    with placed(job):
        for seed in seeds:
            console.rule(f"seed {seed}")
            config = job.config.with_seed(seed)
            own = replace(job, config=config, method=build_for(config, job))
            found.append(train(config, console, family, job=own, go=go.of_seed(seed)))
    return found


def build_for(config: RunConfig, job: Prepared) -> Method:
    """The method under another seed's configuration."""
    return build(config, job.dataset.interactions.n_items, job.dataset.features)


def family_summary(family: str, seeds: Sequence[int], found: Sequence[Result]) -> dict[str, Any]:
    """Means over seeds under the keys of one run's summary, `std` beside `test`, and each seed's own in `runs`."""
    each = [r.summary() for r in found]
    test = [r["test"] for r in each]
    return {
        "run_id": family,
        "protocol": each[0]["protocol"],
        "protocol_note": each[0]["protocol_note"],
        "seeds": list(seeds),
        "test": mean_of(test),
        "std": {k: statistics.stdev(t[k] for t in test) if len(test) > 1 else 0.0 for k in test[0]},
        "validation": mean_of([r["validation"] for r in each]),
        "control": {
            name: mean_of([r["control"][name] for r in each])
            for name in each[0]["control"]
            if all(name in r["control"] for r in each)  # local-only may have diverged under one seed
        },
        "seconds": {"total": sum(r["seconds"]["total"] for r in each)},
        "comm": {k: sum(r["comm"][k] for r in each) for k in ("bytes_down", "bytes_up")},
        "flags": {k: v for r in each for k, v in r["flags"].items()},
        "runs": each,
    }


def mean_of(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Key by key."""
    return {k: statistics.fmean(p[k] for p in parts) for k in parts[0]}


def wanted(names: Iterable[str], ks: Sequence[int]) -> list[str]:
    """HR and NDCG at the cut-offs of the table."""
    return [n for n in names if n.endswith(tuple(f"{kind}_at_{k}" for kind in ("hr", "ndcg") for k in ks))]


def family_metrics(summary: Mapping[str, Any], ks: Sequence[int]) -> dict[str, float]:
    """What a parent run shows: `mean/test/ndcg_at_10`, `std/test/...`."""
    parts = (("mean", summary["test"]), ("std", summary["std"]))
    return {f"{s}/test/{k}": found[k] for s, found in parts for k in wanted(found, ks)}


def family_table(summary: Mapping[str, Any], ks: Sequence[int]) -> str:
    """Markdown: mean and standard deviation over seeds, beside the controls."""
    control = summary["control"]
    head = ["test", "mean", "std", *control]
    rows = [
        [number(summary["test"][k]), number(summary["std"][k]), *(number(control[c].get(k)) for c in control)]
        for k in wanted(summary["test"], ks)
    ]
    lines = [f"| {k} | {' | '.join(r)} |" for k, r in zip(wanted(summary["test"], ks), rows, strict=True)]
    seeds = ", ".join(map(str, summary["seeds"]))
    rules = f"protocol `{summary['protocol']}`: {summary['protocol_note']}"
    return "\n".join([f"seeds {seeds}; {rules}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines])
