"""Choose each row's settings on validation and write them as `jobs/<row>_<data>_clean.yaml`.

    python -m tests.bench.tune [data ...] [--only ROW ...]      rows as fcf, fcf_dualper, ...

Random search with a fixed seed per row: the budget of `spaces`, each run in full, on validation NDCG@10 (full ranking)
of seed 0; the four best again under two more seeds, and the best mean wins. The test set is not scored. (Fewer rounds
favour high rates: on KU, FCF with a quarter of the rate that looks best after 30 is far better after 100.) Finished
trials are kept in .fedray/tune and not run again. Where the best settings diverge under another seed, `quality` takes
the next best.
"""

import json
import sys
import time
import zlib
from typing import Any

import numpy as np
import yaml

from fedray.config import make_config
from fedray.errors import FedrayError
from fedray.job import Prepared, checked_plan, prepare
from fedray.methods import build
from fedray.runtime import session
from fedray.yamls import laid
from tests.bench.results import ROOT
from tests.bench.spaces import BUDGET, DATA, ROWS, TRIALS, Row, base, space
from tests.bench.trials import KEPT, TRIED, best_of, finalists, value_of


def draws(row: Row, data: str) -> list[dict[str, Any]]:
    """The settings to try: the same at every call."""
    rng = np.random.default_rng(zlib.crc32(row.job(data).encode()))
    axes = space(row)
    return [{k: v[int(rng.integers(len(v)))] for k, v in axes.items()} for _ in range(TRIALS.get(row, BUDGET))]


def search(row: Row, data: str, prepared: Prepared) -> dict[str, Any] | None:
    """The best settings; None where the memory plan refuses the row."""
    file = KEPT / f"{row.job(data)}.json"
    kept = json.loads(file.read_text()) if file.is_file() else []
    config = make_config({**base(row, data), "runtime": {"executor": "serial"}})
    job = Prepared(config, prepared.rules, prepared.dataset, prepared.data, build(config, prepared.data.n_items))
    try:
        checked_plan(job, session.local_resources(), None)
    except FedrayError as error:
        print(f"{row.job(data)}: {type(error).__name__}: {error}", flush=True)
        return None
    for chosen in draws(row, data)[len(kept) :]:
        begun = time.perf_counter()
        value = value_of(laid(base(row, data), chosen), prepared)
        kept.append({"value": value, "chosen": chosen, "seconds": time.perf_counter() - begun})
        file.write_text(json.dumps(kept, indent=1))
    for trial in finalists(kept, few=False):
        if "full" not in trial:
            more = [value_of(laid(base(row, data), trial["chosen"]), prepared, seed=s) for s in TRIED[1:]]
            trial["full"] = [trial["value"], *more]
            file.write_text(json.dumps(kept, indent=1))
    best = best_of(kept)
    assert best is not None
    return best["chosen"]


def demote(job: str) -> bool:
    """The settings of this job diverged over all its rounds or under another seed: the next best take their place.
    False where there are none."""
    file = KEPT / f"{job}.json"
    if not file.is_file():
        return False
    kept = json.loads(file.read_text())
    if not (best := best_of(kept)):
        return False
    best |= {"diverged_later": best["value"], "value": 0.0}
    file.write_text(json.dumps(kept, indent=1))
    row, data = next((row, d) for d in DATA for row in ROWS if row.job(d) == job)
    if following := best_of(kept):
        write_job(row, data, following["chosen"])
    return following is not None


def write_job(row: Row, data: str, chosen: dict[str, Any] | None) -> None:
    """The job file; its first line says how the settings came."""
    n = TRIALS.get(row, BUDGET)
    head = f"# Settings chosen on validation NDCG@10 among {n} (python -m tests.bench.tune {data}).\n"
    head = head if chosen else "# The memory plan refused it on the machine of the search: default settings.\n"
    body = yaml.safe_dump(laid(base(row, data), chosen or {}), sort_keys=False, default_flow_style=None, width=110)
    (ROOT / "jobs" / f"{row.job(data)}.yaml").write_text(head + body)


def main(args: list[str]) -> None:
    """All rows of the data sets named (default: all)."""
    cut = args.index("--only") if "--only" in args else len(args)
    names, only = args[:cut] or list(DATA), args[cut + 1 :]
    KEPT.mkdir(parents=True, exist_ok=True)
    for data in names:
        prepared = prepare(make_config(base(ROWS[0], data)))
        for row in ROWS:
            if only and "_".join(filter(None, row)) not in only:
                continue
            chosen = search(row, data, prepared)
            write_job(row, data, chosen)
            print(f"{row.job(data)}: {chosen}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
