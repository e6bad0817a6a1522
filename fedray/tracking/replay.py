"""What a dead process or a dead store left in the spool, sent to MLflow."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fedray.errors import FedrayWarning, TrackingError
from fedray.tracking import store
from fedray.tracking.mlflow import PATIENCE_S
from fedray.tracking.redact import redact
from fedray.tracking.spool import Record, Spool, leftovers, read


def replay(spool_dir: Path, uri: str, patience_s: float = PATIENCE_S) -> int:
    """Send what earlier processes left in `spool_dir` to the store at `uri`; the number of records it took.

    Runs of processes that still live are left alone, as are runs this store does not know (a warning names
    the store they were started in). A run without an end becomes FAILED: its process died. Raises
    `TrackingError` if the store does not answer; nothing is lost then.
    """
    client = store.connect(store.absolute(uri))
    return sum(_replay_one(client, path, uri, patience_s) for path in leftovers(spool_dir))


def _replay_one(client: MlflowClient, path: Path, uri: str, patience_s: float) -> int:
    try:
        head, waiting = read(path)
        died_ms = int(path.stat().st_mtime * 1000)  # before the new spool writes
    except FileNotFoundError:  # its process just brought everything home
        return 0
    if "run" not in head:
        return 0
    with store.answering(uri):
        known = store.patiently(lambda: _knows(client, head["run"]))
    if not known:
        text = f"{path}: its run is not in {redact(uri)} but in {head['uri']}"
        warnings.warn(text, FedrayWarning, stacklevel=3)
        return 0
    try:
        spool = Spool(path, head, store.sender(client, head["run"]), store.is_away)
    except BlockingIOError:  # its process lives and sends it itself
        return 0
    with store.answering(uri):
        for record in _missing_end(client, head["run"], waiting, died_ms):
            spool.put(record)
    whole = spool.close(patience_s)
    for notice in spool.notices():
        warnings.warn(redact(f"MLflow at {uri}: {notice}"), FedrayWarning, stacklevel=3)
    if not whole:
        raise TrackingError(f"{spool.waiting} records of {path} were not taken", where=redact(uri))
    return spool.sent


def _missing_end(client: MlflowClient, run_id: str, waiting: Sequence[Record], died_ms: int) -> list[Record]:
    ended = any(record["kind"] == "end" for record in waiting)
    if ended or client.get_run(run_id).info.status != "RUNNING":
        return []
    return [store.tags_record({"fedray.ended_by": "sync"}), store.end_record("FAILED", died_ms)]


def _knows(client: MlflowClient, run_id: str) -> bool:
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True
