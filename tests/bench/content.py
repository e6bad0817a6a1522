"""Does content help? Each backbone against itself with `mlp` and with `fedvlr`, tuned on validation alone.

    python -m tests.bench.content [data ...] [--only BACKBONE ...] [--write]

A backbone's settings are those of its job, or, where it has none, chosen as a plug-in's are, among `2 x BUDGET` random
ones. A plug-in starts from its backbone's settings and has BUDGET random ones of its own. They are screened with one
seed; the FINALISTS best (where runs are long: 2) and, for a plug-in, `OFF` (no content at all) are run in full
with three seeds, and the best mean wins: one seed moves NDCG@10 by more than most settings do. All of it on validation;
the test set is not scored before all is chosen. Then 5 seeds of each, and `fedvlr` once more with the features shuffled
between items: what is left of its gain is not due to content.
Finished trials and runs are kept in .fedray and not made again; --write makes the README's tables from what is there.
"""

import json
import subprocess
import sys
import time
import zlib
from typing import Any

import numpy as np
import yaml

from fedray.compare import compare
from fedray.config import make_config
from fedray.errors import FedrayError
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.job import Prepared, prepare
from fedray.methods import build
from tests.bench.quality import DIVERGED, cell, tested_text
from tests.bench.results import KEPT as RESULTS
from tests.bench.results import ROOT, rewrite
from tests.bench.spaces import BACKBONES, BUDGET, EVERY, ROUNDS, SLOW, Row, space
from tests.bench.tune import KEPT, laid

TEXT = {"name": "transformers", "model": "minilm", "fields": ["title", "genres", "plot_long"]}
DATA: dict[str, dict[str, Any]] = {
    "ml100k": {"source": "folder", "name": "ml100k", "path": "ml-100k"},
    "ml100k10": {"source": "folder", "name": "ml100k10", "path": "ml-100k", "last": 10},
    "ku": {"source": "folder", "name": "ku", "path": "ku", "split": "given"},
}
ENCODERS = {"ml100k": {"text": TEXT}, "ml100k10": {"text": TEXT}}
LIKE = {"ml100k10": "ml100k"}
"""Rounds as those of another set."""
SCREENED = {"ml100k": 30}
"""Rounds of a trial; those of the run where not given (on a backbone whose rounds are dear: 30, times SLOW)."""
FINALISTS, FEWER, TRIED = 4, 2, (0, 1, 2)
PLUGINS = ("mlp", "fedvlr")
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
}
OFF: dict[str, dict[str, Any]] = {
    "mlp": {"operator_lr": 0.0, "gain": 0.0},
    "fedvlr": {"operator_lr": 0.0, "gain": 0.0, "views": ["sum"]},
}
"""Content switched off: what a plug-in does where content is of no use, its rows at `OWN_ROWS`."""
OWN_ROWS = {"fedncf": "fixed", "gpfedrec": "fixed"}
"""These add the ID row themselves, and move it; on others (`moving`) it moves as a view."""
METRICS = ("hr_at_10", "ndcg_at_10", "hr_at_50", "ndcg_at_50")
QUIET = ("tracking.backend=none", "runtime.executor=serial", "evaluation.local_only=false", "evaluation.ablation=false")


def job_name(backbone: str, plugin: str, data: str) -> str:
    """`fedvlr_fcf_ml100k_clean`; a backbone alone keeps the name it has."""
    return "_".join(filter(None, (plugin, backbone, data, "clean")))


def bare(backbone: str, data: str) -> dict[str, Any]:
    """A backbone's job without settings."""
    like, slow = LIKE.get(data, data), SLOW.get(backbone, 1)
    return {
        "data": DATA[data],
        "backbone": {"name": backbone, "dim": 32},
        "train": {"rounds": int(ROUNDS[like] * slow)},
        "evaluation": {"protocol": "clean", "every": EVERY[like]},
    }


def value_of(raw: dict[str, Any], backbone: str, there: Prepared, screen: int | None = None, seed: int = 0) -> float:
    """Best validation NDCG@10, within the screening rounds if given; 0 where training breaks off."""
    more: dict[str, Any] = {"evaluation.controls": False, "runtime": {"executor": "serial"}, "seed": seed}
    if screen:
        more["train.rounds"] = int(screen * SLOW.get(backbone, 1))
    try:
        config = make_config(laid(raw, more))
        method = build(config, there.data.n_items, there.dataset.features)
        executor, run = SerialExecutor([make_host(config, method, there.data)]), rounds.start(config, method)
        while not rounds.finished(run):
            run, _ = rounds.step(run, executor)
    except FedrayError as error:
        print(f"{type(error).__name__}: {error}"[:160], flush=True)
        return 0.0
    assert run.best is not None
    return run.best.value


def searched(
    name: str, raw: dict[str, Any], axes: dict[str, list[Any]], n: int, off: dict[str, Any], *where: Any
) -> dict[str, Any]:
    """`raw` with the best of n random settings of these axes, or `off`; see the module."""
    file, rng = KEPT / f"{name}.json", np.random.default_rng(zlib.crc32(name.encode()))
    kept = json.loads(file.read_text()) if file.is_file() else []
    draws = [{k: v[int(rng.integers(len(v)))] for k, v in axes.items()} for _ in range(n)]
    data, backbone, there = where
    for chosen in draws[len([t for t in kept if "off" not in t]) :]:
        begun = time.perf_counter()
        value = value_of(laid(raw, chosen), backbone, there, SCREENED.get(data, 30 if dear(backbone, data) else None))
        kept.append({"value": value, "chosen": chosen, "seconds": time.perf_counter() - begun})
        file.write_text(json.dumps(kept, indent=1))
    if off and not any("off" in t for t in kept):
        kept.append({"value": 1.0, "chosen": off, "off": True})
    few = data == "ml100k" or dear(backbone, data)
    for trial in finalists(kept, few):
        if "full" not in trial:
            trial["full"] = [value_of(laid(raw, trial["chosen"]), backbone, there, seed=s) for s in TRIED]
            file.write_text(json.dumps(kept, indent=1))
    best = max(finalists(kept, few), key=lambda t: float(np.mean(t["full"])))
    print(f"{name}: {np.mean(best['full']):.4f} {best['chosen']}", flush=True)
    return laid(raw, best["chosen"])


def dear(backbone: str, data: str) -> bool:
    """GPFedRec on more clients than KU has: half the budget, and fewer finalists."""
    return backbone in SLOW and data != "ku"


def finalists(kept: list[dict[str, Any]], few: bool) -> list[dict[str, Any]]:
    """The settings that screened best and did not diverge since, and, where there is one, that without content."""
    drawn = [t for t in kept if "off" not in t and t["value"] > 0]
    return [t for t in kept if "off" in t] + sorted(drawn, key=lambda t: -t["value"])[: FEWER if few else FINALISTS]


def settled(backbone: str, plugin: str, data: str, there: Prepared) -> dict[str, Any]:
    """The job of a row: read where there is one, else searched and written."""
    file = ROOT / "jobs" / f"{job_name(backbone, plugin, data)}.yaml"
    if file.is_file():
        return yaml.safe_load(file.read_text())
    if plugin:
        raw = settled(backbone, "", data, there)
        raw = {**raw, "plugins": {plugin: {}}, **({"encoders": ENCODERS[data]} if data in ENCODERS else {})}
        raw["backbone"].pop("item_bias", None)
        still = {**OFF[plugin], "rows": OWN_ROWS.get(backbone, "moving")}
        axes, off = ({f"plugins.{plugin}.{k}": v for k, v in part.items()} for part in (OWN[plugin], still))
        n = BUDGET // 2 if dear(backbone, data) else BUDGET
    else:
        raw, axes, off, n = (
            bare(backbone, data),
            space(Row(backbone, "")),
            {},
            BUDGET if dear(backbone, data) else 2 * BUDGET,
        )
    made = searched(file.stem, raw, axes, n, off, data, backbone, there)
    head = f"# Settings chosen on validation NDCG@10 among {n} (python -m tests.bench.content {data}).\n"
    body = yaml.safe_dump(made, sort_keys=False, default_flow_style=None, width=110)
    file.write_text(head + body)
    return made


def run(name: str, job: str, *sets: str) -> bool:
    """5 seeds of a job, unless they are there; False where one of them diverged."""
    file = RESULTS / f"{name}.json"
    if file.is_file():
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


def demote(name: str) -> bool:
    """The settings of this job diverged under another seed: the next best take their place. False where there are
    none."""
    file = KEPT / f"{name}.json"
    kept = json.loads(file.read_text())
    tried = [t for t in kept if "full" in t]
    best = max(tried, key=lambda t: float(np.mean(t["full"])))
    best |= {"diverged": best["value"], "value": 0.0, "full": [0.0]}
    file.write_text(json.dumps(kept, indent=1))
    if not any(np.mean(t["full"]) > 0 for t in tried):
        return False
    (ROOT / "jobs" / f"{name}.yaml").unlink()
    return True


def table(data: str) -> str:
    """Each backbone, and its plug-ins tested against it."""
    head = ["row", "HR@10", "NDCG@10", "HR@50", "NDCG@50", "NDCG@10 against its backbone"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for backbone in BACKBONES:
        names = [job_name(backbone, p, data) for p in ("", *PLUGINS)] + [shuffled(backbone, data)]
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


def shuffled(backbone: str, data: str) -> str:
    """What the run with other items' features is kept under."""
    return job_name(backbone, "fedvlr", data) + "_shuffled"


def write() -> None:
    """The README's tables from what is there."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for data in DATA:
        if f"<!-- content-{data} -->" in text:
            text = rewrite(text, f"content-{data}", table(data))
    readme.write_text(text)


def main(args: list[str]) -> None:
    """Search, run and write what is missing."""
    only = args[args.index("--only") + 1 :] if "--only" in args else BACKBONES
    names = [a for a in args[: args.index("--only") if "--only" in args else None] if a in DATA] or list(DATA)
    for folder in (KEPT, RESULTS):
        folder.mkdir(parents=True, exist_ok=True)
    for data in names if "--write" not in args else ():
        encoders = {"encoders": ENCODERS[data]} if data in ENCODERS else {}
        there = prepare(make_config({**bare("fcf", data), **encoders, "runtime": {"executor": "serial"}}))
        for backbone in [b for b in BACKBONES if b in only]:
            for name, plugin in [(job_name(backbone, p, data), p) for p in ("", *PLUGINS)]:
                settled(backbone, plugin, data, there)
                while not run(name, name) and demote(name):
                    settled(backbone, plugin, data, there)
            run(shuffled(backbone, data), job_name(backbone, "fedvlr", data), "data.shuffle_features=true")
    write()


if __name__ == "__main__":
    main(sys.argv[1:])
