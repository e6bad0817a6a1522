"""What a sweep leaves: a line a trial, the best settings as a job file, tables and pictures. Pure functions."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any

import yaml

from fedray.evaluation.significance import compared
from fedray.evaluation.users import Users
from fedray.search.records import TrialRecord, best_of
from fedray.search.space import current
from fedray.search.sweep import Sweep
from fedray.tracking.tracker import RunEnd

TOP = 10


def trial_line(record: TrialRecord, best: TrialRecord | None, metric: str, ended: int) -> str:
    """`trial 7  pruned at round 20  ndcg_at_10 0.0412 (best 0.0522 by trial 3)  backbone.lr=0.1`"""
    how = {"finished": "done", "pruned": "broken off", "failed": "FAILED"}[record.state]
    value = "" if record.value is None else f"  {metric} {record.value:.4f}"
    front = f" (best {best.value:.4f} by trial {best.number})" if best is not None and best.value is not None else ""
    error = f"  {record.error}" if record.error else ""
    head = f"trial {record.number}  {how} at round {record.rounds}{value}{front}  {record.seconds:.1f} s"
    return f"{ended:>4}  {head}  {settings_text(record.settings)}{error}"


def settings_text(settings: Mapping[str, Any]) -> str:
    """`backbone.lr=0.1234 plugins.fedvlr.views=[id, sum]`"""
    return "  ".join(f"{key}={value_text(value)}" for key, value in settings.items())


def value_text(value: Any) -> str:
    """As in YAML, numbers with four digits."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {value_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def job_yaml(sweep: Sweep, record: TrialRecord, run_id: str) -> str:
    """The best trial's job, as a file for `fedray train`: the base with the settings in it."""
    raw = {**sweep.raw(record.settings), "name": f"{sweep.config.name}_best"}
    head = f"# trial {record.number} of sweep {run_id}: validation {record.value:.4f} at round {record.best}\n"
    return head + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def sweep_yaml(sweep: Sweep) -> str:
    """The resolved sweep: this text alone repeats it."""
    space = {
        a.key: {a.kind: list(a.values), **({"when": {k: list(v) for k, v in a.when.items()}} if a.when else {})}
        for a in sweep.space
    }
    body = {**sweep.config.model_dump(mode="json"), "base": dict(sweep.base), "space": space}
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True)


def sweep_end(
    sweep: Sweep, run_id: str, trials: Sequence[TrialRecord], metric: str, wall_s: float, at_once: int
) -> RunEnd:
    """What the sweep's own run keeps."""
    best = best_of(trials)
    assert best is not None and best.value is not None
    tags = {f"best.{key}": value_text(value) for key, value in best.settings.items()}
    texts = {
        "sweep.md": sweep_markdown(sweep, trials, metric),
        "best.yaml": job_yaml(sweep, best, run_id),
        "trials.csv": trials_csv(sweep, trials, metric),
        "config/sweep.yaml": sweep_yaml(sweep),
    }
    metrics = {f"best/{metric}": best.value, "best/trial": float(best.number), "best/round": float(best.best)}
    metrics |= {f"sweep/{k}": v for k, v in costs(trials, wall_s, at_once).items()}
    return RunEnd(
        "FINISHED",
        metrics,
        {"fedray.best_trial": str(best.number), **tags},
        texts,
        {},
        with_pictures().drawn(sweep, trials, metric),
    )


def with_pictures() -> ModuleType:
    """`pictures`: matplotlib takes a while to import."""
    from fedray.search import pictures

    return pictures


def listed(sweep: Sweep) -> str:
    """The trials that are known before the first: all of a grid, and of a random search with a number of trials."""
    known = sweep.sequence()
    lines = [f"trial {n}  {settings_text(s)}\n" for n, s in enumerate(known)]
    asked = "" if known else f"{sweep.config.search.name} chooses as it goes\n"
    return "".join(lines) + asked


def summary(sweep: Sweep, run_id: str, trials: Sequence[TrialRecord], metric: str) -> dict[str, Any]:
    """For scripts: stable keys."""
    best = best_of(trials)
    assert best is not None
    return {
        "run_id": run_id,
        "metric": metric,
        "best": {"trial": best.number, "value": best.value, "round": best.best, "settings": best.settings},
        "trials": [asdict(r) for r in trials],
    }


def costs(trials: Sequence[TrialRecord], wall_s: float, at_once: int) -> dict[str, float]:
    """Counts, seconds, and what is lost between trials: overhead = wall time x trials at once / their seconds - 1."""
    seconds = sum(r.seconds for r in trials)
    counts = {state: float(sum(r.state == state for r in trials)) for state in ("finished", "pruned", "failed")}
    return {
        "trials": float(len(trials)),
        **counts,
        "rounds": float(sum(max(0, r.rounds - r.begun) for r in trials)),
        "wall_s": wall_s,
        "trial_s": seconds,
        "overhead": wall_s * at_once / seconds - 1 if seconds else 0.0,
        "trials_per_hour": 3600 * len(trials) / wall_s if wall_s else 0.0,
    }


def ranked(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The best first, of equal ones those that went furthest; those without a value last."""
    return sorted(trials, key=lambda r: (-(r.value if r.value is not None else float("-inf")), -r.rounds, r.number))


def sweep_markdown(sweep: Sweep, trials: Sequence[TrialRecord], metric: str) -> str:
    """The best trials and their settings."""
    keys = [a.key for a in sweep.space]
    head = ["trial", f"validation {metric}", "round", "state", *keys]
    rows = [
        [str(r.number), "" if r.value is None else f"{r.value:.4f}", str(r.best), r.state]
        + [value_text(now[k]) if k in now else "" for k in keys]
        for r, now in ((r, current(r.settings)) for r in ranked(trials)[:TOP])
    ]
    search, count = sweep.config.search, {s: sum(r.state == s for r in trials) for s in ("pruned", "failed")}
    how = f"{count['pruned']} broken off by {sweep.config.scheduler.name}, {count['failed']} failed"
    if sweep.config.scheduler.name == "pbt":
        how = (
            f"{count['failed']} failed; a population: settings are those at a trial's end, `best.yaml` has their course"
        )
    about = (
        f"{len(trials)} trials by {search.name} (seed {search.seed}), {how}. Selected on validation; the test set was "
        "scored of no trial. The best settings are the artifact `best.yaml`: a job for `fedray train`."
    )
    lines = ["| " + " | ".join(c.replace("|", "/") for c in row) + " |" for row in [head, *rows]]
    return "\n".join([about, "", lines[0], "|" + "---|" * len(head), *lines[1:], ""])


def trials_csv(sweep: Sweep, trials: Sequence[TrialRecord], metric: str) -> str:
    """One line a trial."""
    keys, out = [a.key for a in sweep.space], io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "state", metric, "best_round", "rounds", "seconds", *keys, "error"])
    for r in trials:
        value = "" if r.value is None else repr(r.value)
        now = current(r.settings)
        cells = [value_text(now[k]) if k in now else "" for k in keys]
        writer.writerow([r.number, r.state, value, r.best, r.rounds, f"{r.seconds:.3f}", *cells, r.error])
    return out.getvalue()


def end_text(sweep: Sweep, trials: Sequence[TrialRecord], metric: str, costs_: Mapping[str, float]) -> str:
    """The end of a sweep, for the terminal."""
    best = best_of(trials)
    assert best is not None
    counts = ", ".join(f"{costs_[k]:.0f} {name}" for k, name in (("pruned", "broken off"), ("failed", "failed")))
    top = [
        f"{r.number:>6}  {r.value:.4f}  {settings_text(r.settings)}" for r in ranked(trials)[:5] if r.value is not None
    ]
    return "\n".join(
        [
            f"\n{len(trials)} trials ({counts}) in {costs_['wall_s']:.0f} s: {costs_['trials_per_hour']:.0f} an hour, "
            f"overhead {100 * costs_['overhead']:.1f} %",
            f" trial  validation {metric}",
            *top,
        ]
    )


def refit_text(ends: Mapping[str, Mapping[str, Any]], users: Mapping[str, Mapping[int, Users]], metric: str) -> str:
    """Base and best over seeds, on validation and on test, tested over users."""
    base, best = ends["base"], ends["best"]
    seeds = len(base["seeds"])
    rows = [
        f"| {split} {metric} | {base[split][metric]:.4f} | {best[split][metric]:.4f} |"
        for split in ("validation", "test")
    ]
    found = compared(list(users["best"].values()), list(users["base"].values()), [metric])[metric]
    return "\n".join(
        [
            f"\n| {seeds} seeds | base | best |",
            "|---|---|---|",
            *rows,
            f"\ntest, best less base: {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}], "
            f"p {found.p_bootstrap:.2g} (bootstrap), {found.p_wilcoxon:.2g} (Wilcoxon), {found.users:,} users",
        ]
    )
