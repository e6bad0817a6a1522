"""A run in MLflow that goes on: found again by fedray's own run id, and up to which round it was recorded."""

from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from fedray.tracking.spool import read

RUN_ID = "fedray.run_id"


def found(client: MlflowClient, experiment_id: str, run_id: str) -> Any:
    """The last run of this experiment with that tag; None where there is none."""
    runs = client.search_runs([experiment_id], f"tags.`{RUN_ID}` = '{run_id}'", max_results=1)
    return runs[0] if runs else None


def recorded(client: MlflowClient, run_id: str, spool: Path, metric: str = "train/loss") -> int:
    """The last round whose metrics are in the store, or wait in the spool that the dead process left."""
    rounds = [point.step for point in client.get_metric_history(run_id, metric)]
    waiting = read(spool)[1] if spool.is_file() else []
    rounds += [r["step"] for r in waiting if r["kind"] == "metrics" and metric in r["values"]]
    return max(rounds, default=0)
