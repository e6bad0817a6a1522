"""Score a saved federation: `fedray evaluate FOLDER`."""

from pathlib import Path
from typing import Any

from rich.console import Console

from fedray.errors import DataError
from fedray.evaluation.table import end_table
from fedray.federated import clients
from fedray.federated.executor import SerialExecutor
from fedray.job import measured_controls, prepare
from fedray.models_io import load_model
from fedray.types import Broadcast, Split


def evaluate_model(folder: Path, sets: list[str], split: Split, console: Console) -> dict[str, Any]:
    """Metrics of the saved clients on their data, under the saved protocol or the one that `sets` names.

    Raises `DataError` where the data are not those the model was trained on.
    """
    config, manifest, params, files = load_model(folder, sets)
    job = prepare(config)
    if job.dataset.fingerprint != manifest["data"]:
        raise DataError(
            f"the data's fingerprint is {job.dataset.fingerprint}",
            f"{manifest['data']}, that of the data the model was trained on",
            "Point data.path at the same data, and keep data.* and the protocol's item order.",
            str(folder),
        )
    host = clients.load(clients.make_host(config, job.method, job.data), files)
    executor = SerialExecutor([host])
    sums, _ = executor.evaluate(Broadcast(manifest["round"], params), (split,), "best")
    found = sums[split].means()
    control = {name: splits[split] for name, splits in measured_controls(job).items()}
    console.print(end_table(found, control))
    return {split: found, "control": control, "round": manifest["round"]}
