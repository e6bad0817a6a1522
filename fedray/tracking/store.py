"""The MLflow store: reaching it, telling "away" from "refused", and sending records to it.

Nothing in here waits for minutes, as MLflow's own defaults do (120 s a request, 7 retries; 100 s of retries
for a database that is not there): whoever calls decides about trying again.
"""

import base64
import fcntl
import logging
import os
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

# ruff: noqa: E402 - MLflow reads the settings above when it is imported
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fedray.errors import TrackingError
from fedray.tracking.redact import redact
from fedray.tracking.spool import Record

METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100
START_PATIENCE_S = 4.0
CONNECT_TIMEOUT_S = 5.0
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
USE_JSONL = "or run with --set tracking.backend=jsonl"

# The store answered, but did not judge the record: credentials that ran out, a proxy before a dead server,
# a rate limit. Worth another try, as is every 5xx but "not implemented".
AWAY_CODES = {
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "PERMISSION_DENIED",
    "ENDPOINT_NOT_FOUND",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "CANCELLED",
}

T = TypeVar("T")


def absolute(uri: str) -> str:
    """A SQLite URI with the whole path (the writer and the reader may start in other folders)."""
    path = sqlite_path(uri)
    return f"sqlite:///{path}" if path else uri


def sqlite_path(uri: str) -> Path | None:
    """The file of `sqlite:///...`, else None."""
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(name).resolve() if uri.startswith("sqlite:///") and name not in ("", ":memory:") else None


def connect(uri: str) -> MlflowClient:
    """A client of the store at `uri`, a new database made where there was none.

    Raises `TrackingError` within seconds if it cannot be reached or is no store.
    """
    _hush()
    with answering(uri):
        _check_reachable(uri)
        with _alone(uri):
            return MlflowClient(uri)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn the store's errors into a `TrackingError` that names `uri`, without its password."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, ImportError, OSError) as error:
        away = is_away(error) or isinstance(error, OSError)
        raise TrackingError(
            redact(" ".join(f"{type(error).__name__}: {error}".split()))[:400],
            "an MLflow store that answers" if away else "a request the store accepts",
            f"{'Start the server' if away else 'Mend tracking.uri'}, {USE_JSONL}.",
            redact(uri),
        ) from None  # the cause's text may hold the password


def patiently(call: Callable[[], T], patience_s: float = START_PATIENCE_S) -> T:
    """`call()`, again while the store is away, for `patience_s`: it may be starting just now."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return call()
        except MlflowException as error:
            if not is_away(error) or time.monotonic() > until:
                raise
        time.sleep(0.5)


def is_away(error: Exception) -> bool:
    """Whether the same request may succeed later, as opposed to having been refused."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return error.error_code in AWAY_CODES or (status >= 500 and error.error_code != "NOT_IMPLEMENTED")
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in (401, 403, 408, 429)
    return isinstance(error, requests.RequestException | DBAPIError | ConnectionError | TimeoutError)


def metrics_record(values: Mapping[str, float], step: int) -> Record:
    """The values at `step`, stamped now: the stamp travels with them, so that sending twice is harmless."""
    return {"kind": "metrics", "time": now_ms(), "step": step, "values": dict(values)}


def tags_record(values: Mapping[str, str]) -> Record:
    """Tags to set."""
    return {"kind": "tags", "values": dict(values)}


def file_record(name: str, content: str | bytes) -> Record:
    """An artifact; `name` may have folders."""
    raw = content.encode() if isinstance(content, str) else content
    return {"kind": "file", "name": name, "base64": base64.b64encode(raw).decode()}


def end_record(status: str, time_ms: int | None = None) -> Record:
    """The end of the run, now or then."""
    return {"kind": "end", "status": status, "time": now_ms() if time_ms is None else time_ms}


def send(client: MlflowClient, run_id: str, records: Sequence[Record]) -> None:
    """Send records in order; neighbouring metrics in one request. Raises what MLflow raises."""
    for kind, group in groupby(records, key=lambda record: str(record["kind"])):
        _SENDERS[kind](client, run_id, list(group))


def sender(client: MlflowClient, run_id: str) -> Callable[[Sequence[Record]], None]:
    """`send` for one run, as a `Spool` wants it."""
    return partial(send, client, run_id)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Params, 100 a request."""
    every = [Param(k, v) for k, v in params.items()]
    for i in range(0, len(every), PARAMS_A_BATCH):
        client.log_batch(run_id, params=every[i : i + PARAMS_A_BATCH], synchronous=True)


def now_ms() -> int:
    """Milliseconds since 1970, MLflow's clock."""
    return time.time_ns() // 1_000_000


def _send_metrics(client: MlflowClient, run_id: str, records: Sequence[Record]) -> None:
    points = [Metric(k, v, r["time"], r["step"]) for r in records for k, v in r["values"].items()]
    for i in range(0, len(points), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=points[i : i + METRICS_A_BATCH], synchronous=True)


def _send_tags(client: MlflowClient, run_id: str, records: Sequence[Record]) -> None:
    tags = [RunTag(k, v) for r in records for k, v in r["values"].items()]
    for i in range(0, len(tags), PARAMS_A_BATCH):
        client.log_batch(run_id, tags=tags[i : i + PARAMS_A_BATCH], synchronous=True)


def _send_files(client: MlflowClient, run_id: str, records: Sequence[Record]) -> None:
    for record in records:
        name = Path(record["name"])
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / name.name
            local.write_bytes(base64.b64decode(record["base64"]))
            client.log_artifact(run_id, str(local), None if name.parent == Path() else str(name.parent))


def _send_end(client: MlflowClient, run_id: str, records: Sequence[Record]) -> None:
    client.set_terminated(run_id, records[-1]["status"], records[-1]["time"])


_SENDERS: dict[str, Any] = {
    "metrics": _send_metrics,
    "tags": _send_tags,
    "file": _send_files,
    "end": _send_end,
}


def _check_reachable(uri: str) -> None:
    """Fail now where MLflow would try for 100 seconds."""
    if path := sqlite_path(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=CONNECT_TIMEOUT_S)) as database:
            database.execute("pragma schema_version")
        return
    parts = urlsplit(uri)
    port = DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or port), CONNECT_TIMEOUT_S).close()


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time makes the tables of a new database file: MLflow's own start is not safe against two."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _hush() -> None:
    """MLflow tells of each table it makes and of each time it finds the database locked; we do that."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
