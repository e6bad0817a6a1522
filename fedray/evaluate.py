"""Score a saved federation: `fedray evaluate FOLDER`."""

from pathlib import Path
from typing import Any

from rich.console import Console

from fedray.errors import DataError, UnsupportedError
from fedray.evaluation import slices
from fedray.evaluation.table import end_table
from fedray.federated import clients
from fedray.federated.executor import SerialExecutor
from fedray.job import measured_controls, prepare
from fedray.models_io import load_model
from fedray.progress import say
from fedray.types import Broadcast, Split

ALLOWED = ("data.path", "evaluation.k", "evaluation.controls", "evaluation.slices")


def evaluate_model(folder: Path, sets: list[str], split: Split, console: Console) -> dict[str, Any]:
    """Metrics of the saved clients on their data, under the protocol they were trained for.

    `sets` may name another place of the data and other cut-offs; anything that would be another model, other data or
    another protocol is an `UnsupportedError`. Raises `DataError` where the data are not those of the training.
    """
    for setting in sets:
        if not setting.startswith(ALLOWED):
            raise UnsupportedError(f"--set {setting} with a saved model", f"one of {', '.join(ALLOWED)}")
    config, manifest, params, files = load_model(folder, sets)
    job = prepare(config, console)
    if job.dataset.fingerprint != manifest["data"]:
        raise DataError(
            f"the data's fingerprint is {job.dataset.fingerprint}",
            f"{manifest['data']}, that of the data the model was trained on",
            "Point data.path at the same data.",
            str(folder),
        )
    host = clients.load(clients.make_host(config, job.method, job.data), files)
    executor = SerialExecutor([host])
    broadcast = Broadcast(manifest["round"], params)
    if split == "test":
        sums, users = executor.per_client(broadcast)
        found = {**sums.means(), **slices.of_run(users, job.data, config.evaluation.slices)}
    else:
        found = executor.evaluate(broadcast, (split,), "best")[0][split].means()
    control = {name: splits[split] for name, splits in measured_controls(job).items()}
    say(console, f"protocol {job.rules.name}: {job.rules.note}")
    console.print(end_table(found, control))
    if len(job.rules.select_on) > 1:
        say(console, f"the model is the best by {job.rules.lead} alone; the run's own table is a mean over rounds")
    rules = {"protocol": job.rules.name, "protocol_note": job.rules.note}
    return {split: found, "control": control, "round": manifest["round"], **rules}
