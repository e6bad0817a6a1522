"""`make bench-quality`: rerun the published matrix over seeds and rewrite the README's results between its markers.

    python -m tests.bench.quality [--workers N] [--only PATTERN] [--write]

Every job ends in .fedray/results as a summary with its users' metrics; one that is there, with the settings its job
has now, is not run again, so an interrupted call goes on where it stopped. --only runs the jobs of a pattern; --write
makes the tables from what is there, running nothing. A job that the memory plan refuses is kept with the plan's words.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from fedray.compare import compare
from fedray.config import RunConfig, load_config
from fedray.evaluation.comparison import Line, p_text
from fedray.tracking.records import params
from tests.bench.results import KEPT, ROOT, rewrite
from tests.bench.spaces import DATA, ROWS, Row
from tests.bench.tune import demote

PUBLISHED = {  # job -> HR@10 / NDCG@10 as its paper has them
    "fedmf_ml100k_paper": "0.6515 / 0.3938",
    "fedncf_ml100k_paper": "0.6062 / 0.3325",
    "fedncf_dualper_ml100k_paper": "0.6882 / 0.3933",
    "pfedrec_ml100k_paper": "0.7162 / 0.4344",
    "pfedrec_ml1m_paper": "0.7326 / 0.4436",
    "pfedrec_amazon_paper": "0.6008 / 0.3912",
    "pfedrec_amazon_paper_tuned": "0.6008 / 0.3912",
}
NOISE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
NOISE_PAPER = ("71.62 / 43.44", "71.45 / 43.36", "71.26 / 43.30", "71.13 / 43.22", "70.84 / 43.14", "70.88 / 43.21")
EXTRA = {"ml100k": ["best_ml100k_clean", "pfedrec_ml100k_clean"], "amazon": ["pfedrec_amazon_clean"], "ku": []}
METRICS = ("hr_at_10", "ndcg_at_10", "hr_at_50", "ndcg_at_50", "sampled99_hr_at_10", "sampled99_ndcg_at_10")
CONTROLS = ("random", "popularity", "local_only", "ease")
QUIET = ("tracking.backend=none", "runtime.executor=serial")
REFUSED, DIVERGED = "MemoryPlanError", ("NonFiniteLossError", "AggregateOverflowError")


def file_of(name: str) -> Path:
    """Where a job's summary is kept."""
    return KEPT / f"{name}.json"


def noise_name(scale: float) -> str:
    """Of PFedRec on ML-100K with this Laplace scale."""
    return f"pfedrec_ml100k_paper_laplace_{scale:g}"


def todo() -> list[tuple[str, str, str, list[str]]]:
    """(kept under, job, seeds, settings) of the whole matrix, cheapest kinds first."""
    clean = [n for d in DATA for n in (*EXTRA[d], *(row.job(d) for row in ROWS))]
    noisy = [(noise_name(s), "pfedrec_ml100k_paper", "0..2", [f"plugins.laplace_ldp.scale={s}"]) for s in NOISE]
    return [
        *((n, n, "0..4", []) for n in clean),
        *((n, n, "0..2", []) for n in PUBLISHED),
        *((*n[:3], [*n[3], "evaluation.every=2", "evaluation.local_only=false"]) for n in noisy),
    ]


def differs(kept: dict[str, Any], config: RunConfig, beside: Sequence[str] = ()) -> bool:
    """Whether a kept result does not say that it had these settings, but for those `beside`. One younger than the
    result counts where the job itself gives it: else it would be its default."""
    before = kept.get("runs", [kept])[0].get("about", {}).get("params", {})
    given = _dotted(config.model_dump(exclude_unset=True))
    now = {k: v for k, v in params(config, config.method_name()).items() if k in before or k in given}
    return not before or _counting(before, beside) != _counting(now, beside)


def _dotted(node: Any, prefix: str = "") -> set[str]:
    if not isinstance(node, dict):
        return {prefix}
    return {k for name, child in node.items() for k in _dotted(child, f"{prefix}.{name}" if prefix else name)}


def _counting(settings: dict[str, str], beside: Sequence[str]) -> dict[str, str]:
    """Where things run changes no number, and the seeds are the family's."""
    other = ("runtime.", "encoding.")
    return {k: v for k, v in settings.items() if k not in ("name", "seed", *beside) and not k.startswith(other)}


def run(name: str, job: str, seeds: str, sets: list[str]) -> None:
    """One family of runs, unless it is there with these settings."""
    file, source = file_of(name), ROOT / "jobs" / f"{job}.yaml"
    if not source.is_file():
        return
    config = load_config(source, [*QUIET, *sets])
    if file.is_file() and not differs(json.loads(file.read_text()), config):
        return
    settings = [part for s in (*QUIET, *sets) for part in ("--set", s)]
    command = [sys.executable, "-m", "fedray.cli", "train", str(source), *settings, "--seeds", seeds]
    done = subprocess.run([*command, "--summary", str(file)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 3 and REFUSED in done.stderr:
        about = {"params": params(config, config.method_name())}
        file.write_text(json.dumps({"refused": done.stderr.strip(), "about": about}))
    elif done.returncode == 1 and any(e in done.stderr for e in DIVERGED) and demote(name):
        print(name, "diverged; next best settings", flush=True)
        run(name, job, seeds, sets)
        return
    elif done.returncode:
        raise RuntimeError(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}")
    print(name, flush=True)


def published_table() -> str:
    """What the papers report beside what comes out here, with the controls under the same rules."""
    head = ["job", "HR@10 / NDCG@10", "published", "random", "popularity", "local-only", "EASE (central)"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for job, paper in PUBLISHED.items():
        if file_of(job).is_file():
            found = json.loads(file_of(job).read_text())
            mine = " / ".join(f"{found['test'][k]:.4f} ± {found['std'][k]:.4f}" for k in METRICS[:2])
            cells = [_control(found["control"], c) for c in CONTROLS]
            lines.append(f"| `{job}` | {mine} | {paper} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _control(control: dict, name: str) -> str:
    return " / ".join(f"{control[name][k]:.3f}" for k in METRICS[:2]) if name in control else ""


def noise_table() -> str:
    """PFedRec on ML-100K under Laplace noise of each scale."""
    lines = ["| Laplace scale | HR@10 / NDCG@10 | published |", "|---|---|---|"]
    for scale, paper in zip(NOISE, NOISE_PAPER, strict=True):
        if file_of(noise_name(scale)).is_file():  # scale 0: the plug-in without noise
            found = json.loads(file_of(noise_name(scale)).read_text())
            mine = " / ".join(f"{found['test'][k]:.4f} ± {found['std'][k]:.4f}" for k in METRICS[:2])
            lines.append(f"| {scale:g} | {mine} | {paper} |")
    return "\n".join(lines)


def clean_table(data: str) -> str:
    """All rows of one data set, the controls, and tests against FCF as it is."""
    names = [n for n in (*EXTRA[data], *(row.job(data) for row in ROWS)) if file_of(n).is_file()]
    kept = {n: json.loads(file_of(n).read_text()) for n in names}
    there = [n for n in names if "refused" not in kept[n]]
    base = Row("fcf", "").job(data)
    found = compare([str(file_of(n)) for n in there], "", str(file_of(base)), METRICS, controls=True)
    by_metric = {m: [line for line in found.lines if line.metric == m] for m in METRICS}
    head = ["row", "HR@10", "NDCG@10", "HR@50", "NDCG@50", "99: HR@10", "99: NDCG@10", "NDCG@10 against FCF"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    alone = [f"local-only, `{n}`" for n in there if "local_only" in kept[n]["control"]]
    central = [line.row for line in by_metric[METRICS[0]][len(there) :]][: -len(alone) or None]
    order = [*there, *central, *alone]
    for i, name in enumerate(order):
        cells = [cell(by_metric[m][i]) for m in METRICS]
        lines.append(f"| {_label(name)} | {' | '.join(cells)} | {tested_text(by_metric['ndcg_at_10'][i])} |")
    lines += [f"| {_label(n)} | refused by the memory plan |" + " |" * 6 for n in names if "refused" in kept[n]]
    return "\n".join(lines)


def _label(name: str) -> str:
    return f"`{name}`" if name.endswith("_clean") else name


def cell(line: Line) -> str:
    """Mean and, where there are several seeds, deviation."""
    return f"{line.mean:.4f}" + (f" ± {line.std:.4f}" if line.std == line.std else "")


def tested_text(line: Line) -> str:
    """The difference to the baseline and its two p-values."""
    if line.difference is None or line.holm is None:
        return ""
    return f"{line.difference.mean:+.4f}, p {p_text(line.holm[0])} / {p_text(line.holm[1])}"


def write() -> None:
    """The README's tables, of which everything is there; the others stay as they are."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    parts = {"results": (list(PUBLISHED), published_table), "noise": ([noise_name(s) for s in NOISE], noise_table)}
    for data in DATA:
        rows = [*EXTRA[data], *(row.job(data) for row in ROWS)]
        parts[f"clean-{data}"] = (rows, partial(clean_table, data))
    for section, (names, made) in parts.items():
        if all(file_of(n).is_file() for n in names):
            text = rewrite(text, section, made())
    readme.write_text(text)


def main(args: list[str]) -> None:
    """Run what is missing, then write."""
    KEPT.mkdir(parents=True, exist_ok=True)
    workers = int(args[args.index("--workers") + 1]) if "--workers" in args else max(1, (os.cpu_count() or 2) // 2)
    only = args[args.index("--only") + 1] if "--only" in args else "*"
    if "--write" not in args:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda job: run(*job), [job for job in todo() if fnmatch(job[0], only)]))
    write()


if __name__ == "__main__":
    main(sys.argv[1:])
