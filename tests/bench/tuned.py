"""Stacks of a backbone and plug-ins, tuned on validation alone: what the tables of `content` and `groups` run.

A backbone's settings are those of its job, or, where it has none, chosen as a plug-in's are, among `2 x BUDGET` random
ones. A plug-in starts from the job of what it stands on, with BUDGET random settings of its own. They are screened with
one seed; the FINALISTS best (where runs are long: 2) and, for a plug-in, `OFF` (it changes nothing) are run in full
with three seeds, and the best mean wins: one seed moves NDCG@10 by more than most settings do. All of it on validation;
the test set is not scored before all is chosen.
Finished trials and runs are kept in .fedray and not made again.
"""

import json
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import yaml

from fedray.compare import compare
from fedray.config import load_config, make_config
from fedray.job import Prepared, prepare
from fedray.yamls import laid
from tests.bench.quality import DIVERGED, cell, differs, tested_text
from tests.bench.results import KEPT as RESULTS
from tests.bench.results import ROOT, rewrite
from tests.bench.spaces import BUDGET, EVERY, ROUNDS, SLOW, Row, space
from tests.bench.trials import KEPT, TRIED, best_of, finalists, value_of

TEXT = {"name": "transformers", "model": "minilm", "fields": ["title", "genres", "plot_long"]}
DATA: dict[str, dict[str, Any]] = {
    "ml100k": {"source": "folder", "name": "ml100k", "path": "ml-100k"},
    "ml100k10": {"source": "folder", "name": "ml100k10", "path": "ml-100k", "last": 10},
    "ku": {"source": "folder", "name": "ku", "path": "ku", "split": "given"},
}
ENCODERS = {"ml100k": {"text": TEXT}, "ml100k10": {"text": TEXT}}
LIKE = {"ml100k10": "ml100k"}
"""Rounds as those of another set."""
SCREENED = 30
"""Rounds of a trial where runs are long (on a backbone whose rounds are dear: times SLOW); elsewhere as a run has."""
CONTENT: dict[str, list[Any]] = {
    "operator_lr": [0.0, 0.001, 0.01, 0.1, 1.0],
    "gain": [0.01, 0.03, 0.1, 0.3],
    "projection": ["random", "principal", "whitened"],
    "rows": ["fixed", "moving"],
}
OWN: dict[str, dict[str, list[Any]]] = {
    "mlp": {**CONTENT, "residual": [True, False]},
    "fedvlr": {
        **CONTENT,
        "views": [["sum"], ["id", "sum"], ["sum", "mlp", "gate"]],
        "router_lr_scale": [0.1, 1.0],
        "weights": ["client", "item"],
    },
    "gfmfr": {
        "groups": [2, 5, 10, 20],
        "weight": [0.01, 0.03, 0.1, 0.3],
        "schedule": ["cosine", "constant"],
        "fusion": ["mlp", "sum", "gate"],
        "gain": [0.03, 0.1, 0.3],
    },
}
OFF: dict[str, dict[str, Any]] = {
    "mlp": {"operator_lr": 0.0, "gain": 0.0},
    "fedvlr": {"operator_lr": 0.0, "gain": 0.0, "views": ["sum"]},
    "gfmfr": {"weight": 0.0},
}
"""A plug-in switched off: what it does where it is of no use (views: rows at `OWN_ROWS`)."""
OWN_ROWS = {"fedncf": "fixed", "gpfedrec": "fixed"}
"""These add the ID row themselves, and move it; on others (`moving`) it moves as a view."""
REDUCED = {("gfmfr", "fedncf"): {"reduce": "projection"}}
"""Its score function is 2,700 numbers, and ten starts of k-means on these cost more than all else of a round; on KU's
204 clients, which are few enough for the spectral method, they cost nothing."""
METRICS = ("hr_at_10", "ndcg_at_10", "hr_at_50", "ndcg_at_50")
QUIET = ("tracking.backend=none", "runtime.executor=serial", "evaluation.local_only=false", "evaluation.ablation=false")
BESIDE = ("evaluation.local_only", "evaluation.ablation")
"""What is measured beside a run, and changes no number of it."""


class Stack(NamedTuple):
    """A backbone (`fcf`, `fcf_dualper`) and plug-ins on it, the last one first: ``, `fedvlr`, `gfmfr_fedvlr`."""

    backbone: str
    plugins: str
    data: str

    @property
    def job(self) -> str:
        """`fedvlr_fcf_ml100k_clean`; a backbone alone keeps the name it has."""
        return "_".join(filter(None, (self.plugins, self.backbone, self.data, "clean")))

    @property
    def under(self) -> "Stack":
        """What the last plug-in stands on."""
        return self._replace(plugins="_".join(self.plugins.split("_")[1:]))

    @property
    def own(self) -> str:
        """The last plug-in."""
        return self.plugins.split("_")[0]

    @property
    def dear(self) -> bool:
        """GPFedRec on more clients than KU has: half the budget."""
        return self.backbone in SLOW and self.data != "ku"

    @property
    def long(self) -> bool:
        """Screened at fewer rounds, and with fewer finalists."""
        return self.dear or self.data == "ml100k" or "_" in self.plugins


def prepared(data: str) -> Prepared:
    """The data of a table, read and encoded once."""
    encoders = {"encoders": ENCODERS[data]} if data in ENCODERS else {}
    return prepare(make_config({**bare("fcf", data), **encoders, "runtime": {"executor": "serial"}}))


def bare(backbone: str, data: str) -> dict[str, Any]:
    """A backbone's job without settings."""
    like, slow = LIKE.get(data, data), SLOW.get(backbone, 1)
    name, *plugins = backbone.split("_")
    return {
        "data": DATA[data],
        "backbone": {"name": name, "dim": 32},
        "plugins": {p: {} for p in plugins},
        "train": {"rounds": int(ROUNDS[like] * slow)},
        "evaluation": {"protocol": "clean", "every": EVERY[like]},
    }


def searched(
    stack: Stack, raw: dict[str, Any], axes: dict[str, list[Any]], n: int, off: dict[str, Any], there: Prepared
) -> dict[str, Any]:
    """`raw` with the best of n random settings of these axes, or `off`; see the module."""
    file, rng = KEPT / f"{stack.job}.json", np.random.default_rng(zlib.crc32(stack.job.encode()))
    kept = json.loads(file.read_text()) if file.is_file() else []
    screen = int(SCREENED * SLOW.get(stack.backbone, 1)) if stack.long else 0
    draws = [{k: v[int(rng.integers(len(v)))] for k, v in axes.items()} for _ in range(n)]
    for chosen in draws[len([t for t in kept if "off" not in t]) :]:
        begun = time.perf_counter()
        value = value_of(laid(raw, chosen), there, screen)
        kept.append({"value": value, "chosen": chosen, "seconds": time.perf_counter() - begun})
        file.write_text(json.dumps(kept, indent=1))
    if off and not any("off" in t for t in kept):
        kept.append({"value": 1.0, "chosen": off, "off": True})
    for trial in finalists(kept, stack.long):
        if "full" not in trial:
            known = seen(stack, trial)
            trial["full"] = known + [value_of(laid(raw, trial["chosen"]), there, seed=s) for s in TRIED[len(known) :]]
            file.write_text(json.dumps(kept, indent=1))
    best = best_of(kept, stack.long)
    assert best is not None
    print(f"{stack.job}: {np.mean(best['full']):.4f} {best['chosen']}", flush=True)
    return laid(raw, best["chosen"])


def seen(stack: Stack, trial: dict[str, Any]) -> list[float]:
    """What a full run of the first seeds would give, where it has been made: as a trial of whole length, or, for
    `gfmfr` with weight 0, as what it stands on (tests/methods/test_gfmfr.py: equal to the bit)."""
    if "off" not in trial:
        return [] if stack.long else [trial["value"]]
    under = stack.under.job
    if stack.own != "gfmfr" or not has_run(under, under):
        return []
    file = RESULTS / f"{under}.json"
    return [r["validation"]["ndcg_at_10"] for r in json.loads(file.read_text())["runs"]][: len(TRIED)]


def settled(stack: Stack, there: Prepared) -> dict[str, Any]:
    """The job of a stack: read where there is one, else searched and written. RuntimeError where it stands on other
    settings than the job of what it stands on now has."""
    file = ROOT / "jobs" / f"{stack.job}.yaml"
    if file.is_file():
        made = yaml.safe_load(file.read_text())
        if stack.plugins and stripped(made, stack.own) != stripped(settled(stack.under, there), stack.own):
            raise RuntimeError(f"{file.name} was tuned on other settings than {stack.under.job}.yaml has: remove it")
        return made
    n = (BUDGET if stack.plugins else 2 * BUDGET) // (2 if stack.dear else 1)
    if stack.plugins:
        own, raw = stack.own, settled(stack.under, there)
        fixed = REDUCED.get((own, stack.backbone), {}) if stack.data != "ku" else {}
        raw = {**raw, "plugins": {**raw.get("plugins", {}), own: fixed}}
        raw |= {"encoders": ENCODERS[stack.data]} if stack.data in ENCODERS else {}
        raw["backbone"].pop("item_bias", None)
        still = OFF[own] | ({"rows": OWN_ROWS.get(stack.backbone, "moving")} if "rows" in OWN[own] else {})
        axes, off = ({f"plugins.{own}.{k}": v for k, v in part.items()} for part in (OWN[own], still))
    else:
        name, _, plugin = stack.backbone.partition("_")
        raw, axes, off = bare(stack.backbone, stack.data), space(Row(name, plugin)), {}
    made = searched(stack, raw, axes, n, off, there)
    head = f"# Settings chosen on validation NDCG@10 among {n} (tests/bench/tuned.py).\n"
    file.write_text(head + yaml.safe_dump(made, sort_keys=False, default_flow_style=None, width=110))
    return made


def stripped(raw: dict[str, Any], plugin: str) -> dict[str, Any]:
    """A job without a plug-in, and without what comes and goes with one."""
    plugins = {k: v for k, v in (raw.get("plugins") or {}).items() if k != plugin}
    backbone = {k: v for k, v in raw["backbone"].items() if k != "item_bias"}
    return {k: v for k, v in raw.items() if k != "encoders"} | {"plugins": plugins, "backbone": backbone}


def row(stack: Stack, there: Prepared) -> None:
    """Settings and 5 seeds of a stack."""
    settled(stack, there)
    while not run(stack.job, stack.job) and demote(stack.job):
        settled(stack, there)


def run(name: str, job: str, *sets: str) -> bool:
    """5 seeds of a job, unless they are there with these settings; False where one of them diverged."""
    file = RESULTS / f"{name}.json"
    if has_run(name, job, *sets):
        return True
    settings = [part for s in (*QUIET, *sets) for part in ("--set", s)]
    command = [sys.executable, "-m", "fedray.cli", "train", str(ROOT / "jobs" / f"{job}.yaml"), *settings]
    done = subprocess.run(
        [*command, "--seeds", "0..4", "--summary", str(file)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode and not any(e in done.stderr for e in DIVERGED):
        raise RuntimeError(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}")
    print(name, "diverged" * bool(done.returncode), flush=True)
    return not done.returncode


def has_run(name: str, job: str, *sets: str) -> bool:
    """Whether there are 5 seeds of a job with these settings."""
    file = RESULTS / f"{name}.json"
    config = load_config(ROOT / "jobs" / f"{job}.yaml", [*QUIET, *sets])
    return file.is_file() and not differs(json.loads(file.read_text()), config, BESIDE)


def demote(name: str) -> bool:
    """The settings of this job diverged under another seed: the next best take their place. False where there are
    none."""
    file = KEPT / f"{name}.json"
    kept = json.loads(file.read_text()) if file.is_file() else []
    tried = [t for t in kept if "full" in t]
    if not tried:
        raise RuntimeError(f"{name} diverges, and there are no other settings that were run in full")
    best = max(tried, key=lambda t: float(np.mean(t["full"])))
    best |= {"diverged": best["value"], "value": 0.0, "full": [0.0]}
    file.write_text(json.dumps(kept, indent=1))
    if not any(np.mean(t["full"]) > 0 for t in tried):
        return False
    (ROOT / "jobs" / f"{name}.yaml").unlink()
    return True


def table(families: list[list[str]]) -> str:
    """Each family's first row, and its others tested against it; what is not there is left out."""
    head = ["row", "HR@10", "NDCG@10", "HR@50", "NDCG@50", "NDCG@10 against its backbone"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for names in families:
        there = [n for n in names if (RESULTS / f"{n}.json").is_file()]
        if len(there) < 2 or there[0] != names[0]:
            continue
        files = [str(RESULTS / f"{n}.json") for n in there]
        found = compare(files, "", files[0], METRICS)
        for i, name in enumerate(there):
            cells = [cell([line for line in found.lines if line.metric == m][i]) for m in METRICS]
            tested = [line for line in found.lines if line.metric == "ndcg_at_10"][i]
            lines.append(f"| `{name}` | {' | '.join(cells)} | {tested_text(tested)} |")
    return "\n".join(lines)


def asked(args: list[str], backbones: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(data, backbones) of a command line `[data ...] [--only BACKBONE ...]`."""
    at = args.index("--only") if "--only" in args else len(args)
    for folder in (KEPT, RESULTS):
        folder.mkdir(parents=True, exist_ok=True)
    only = args[at + 1 :] or list(backbones)
    return [a for a in args[:at] if a in DATA] or list(DATA), [b for b in backbones if b in only]


def written(section: str, families_of: Callable[[str], list[list[str]]], text: str) -> str:
    """The README's text with this section's tables, of those data of which all runs are there."""
    for data in DATA:
        families = families_of(data)
        if all((RESULTS / f"{n}.json").is_file() for names in families for n in names):
            text = rewrite(text, f"{section}-{data}", table(families))
    return text
