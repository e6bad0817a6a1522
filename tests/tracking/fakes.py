"""Runs made up for the trackers: settings, data, rounds, an end."""

from fedray.config import make_config
from fedray.tracking.tracker import RunEnd, RunStart
from fedray.types import RoundReport

DATASET = {"name": "ml100k", "fingerprint": "3f2a91c0d1e2", "users": 943, "items": 1682, "interactions": 100_000}
CONTROLS = {"control/popularity/ndcg_at_10": 0.02, "control/ease/ndcg_at_10": 0.05}


def config(seed=0, **tracking):
    """PFedRec, as a job file says it."""
    return make_config({"name": "pfedrec", "plugins": {"dualper": {}}, "seed": seed, "tracking": tracking})


def begin(seed=0, parent=None, tags=None, **tracking):
    settings = config(seed, **tracking)
    return RunStart(settings, settings.method_name(), DATASET, tags or {}, parent, "2 actors, 0.4 GB")


def report(r, **metrics):
    """Round r: 2 MB down and 1 MB up, and every kind of metric."""
    curve = {"train/loss": 1 / r, "val/ndcg_at_10": 0.04 * (1 - 1 / r), "val/hr_at_10": 0.1 * (1 - 1 / r)}
    quantiles = {f"val/ndcg_at_10_p{p}": p / 1000 for p in (10, 50, 90)}
    seconds = {"train": 0.2, "evaluate": 0.1}
    return RoundReport(r, {**curve, **quantiles, **metrics}, seconds, 2_000_000, 1_000_000, 940, 2, 1)


def end(status="FINISHED", **metrics):
    texts = {"summary.json": "{}", "table.md": "| metric | run |\n|---|---|\n| ndcg_at_10 | 0.0400 |"}
    files = {"users.parquet": b"PAR1\x00 not text"}
    metrics = {"test/ndcg_at_10": 0.04, **CONTROLS, **metrics}
    return RunEnd(status, metrics, {"fedray.flag.x": "odd"}, texts, files=files)
