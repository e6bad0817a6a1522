"""Runs read back from MLflow: by id, unique prefix of an id, name, family or experiment."""

import difflib
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from fedray.errors import AmbiguousRunError, NoSuchRunError
from fedray.evaluation import users
from fedray.evaluation.users import Users
from fedray.tracking import store
from fedray.tracking.courses import Course, needed
from fedray.tracking.recorded import Recorded
from fedray.tracking.redact import redact

PAGE = 1000
PARENT, STAGE = "mlflow.parentRunId", "fedray.stage"
SPLITS = ("train", "val", "test", "control")
_PREFIX = re.compile(r"[0-9a-f]{4,32}")


def runs_called(uri: str, name: str) -> list[Recorded]:
    """The runs of that name, finished or not, oldest first.

    An experiment stands for all its training runs, a family for its seeds' runs, a run name for every run so named.
    Encode runs have nothing to compare and are passed over. Raises `NoSuchRunError`, `AmbiguousRunError` for a prefix
    of several ids, and `TrackingError`.
    """
    path = store.sqlite_path(uri)
    if path is not None and not path.is_file():  # connecting would make it
        raise NoSuchRunError("there is no such store", "the store the runs are in", "Set --tracking.", redact(uri))
    client = store.connect(store.absolute(uri))
    with store.answering(uri):
        found = _find(client, uri, name)
        parents = {tag for run in found if (tag := run.data.tags.get(PARENT))}
        names = {parent: client.get_run(parent).info.run_name for parent in parents}
        return [_recorded(client, run, {name, names.get(run.data.tags.get(PARENT, ""), "")}) for run in found]


def courses(uri: str, run_ids: Sequence[str], metric: str) -> dict[str, Course]:
    """How those of the runs that the store has went, as far as a report by `val/<metric>` reads it."""
    path = store.sqlite_path(uri)
    if path is not None and not path.is_file():
        return {}
    client = store.connect(store.absolute(uri))
    with store.answering(uri):
        every = [e.experiment_id for e in client.search_experiments()]
        listed = ", ".join(f"'{run_id}'" for run_id in run_ids if _PREFIX.fullmatch(run_id))
        found = _search(client, every, f"attributes.run_id IN ({listed})") if listed else []
        return {run.info.run_id: _course(client, run, metric) for run in found}


def _course(client: MlflowClient, run: Run, metric: str) -> Course:
    names = [name for name in run.data.metrics if needed(name, metric)]
    return {name: {p.step: p.value for p in client.get_metric_history(run.info.run_id, name)} for name in names}


def _find(client: MlflowClient, uri: str, name: str) -> list[Run]:
    places = {e.name: e.experiment_id for e in client.search_experiments()}
    if name in places:
        there = _without_encoding(_search(client, [places[name]], ""), name)
        return [run for run in there if run.data.tags.get(STAGE) == "train"]
    every = list(places.values())
    found = _without_encoding(_by_name(client, every, name) or _by_id(client, every, name), name)
    if not found:
        near = difflib.get_close_matches(name, [*places, *_run_names(client, every)], n=3, cutoff=0.5)
        mend = f"The nearest are {', '.join(near)}." if near else ""
        expected = "a run's id or name, a family, an experiment or a --summary file"
        raise NoSuchRunError(f"nothing is called {name!r}", expected, mend, redact(uri))
    return [run for parent in found for run in _seeds_of(client, parent)]


def _without_encoding(found: list[Run], name: str) -> list[Run]:
    """The others; who named nothing but encode runs is told so."""
    kept = [run for run in found if not _encodes(run)]
    if found and not kept:
        mend = "Encode runs have no test metrics."
        raise NoSuchRunError(f"{name!r} is of `fedray encode` alone", "training runs", mend)
    return kept


def _encodes(run: Run) -> bool:
    return bool(run.data.tags.get(STAGE) == "encode")


def _by_name(client: MlflowClient, experiments: list[str], name: str) -> list[Run]:
    # A filter has no escapes: a run with a double quote in its name is found by its id.
    return [] if '"' in name else _search(client, experiments, f'attributes.run_name = "{name}"')


def _by_id(client: MlflowClient, experiments: list[str], prefix: str) -> list[Run]:
    if not _PREFIX.fullmatch(prefix):
        return []
    found = _search(client, experiments, f"attributes.run_id LIKE '{prefix}%'")
    if len(found) > 1:
        fits = ", ".join(sorted(run.info.run_id for run in found)[:5])
        raise AmbiguousRunError(f"{prefix!r} fits {len(found)} runs ({fits})", "one run", "Write more of the id.")
    return found


def _seeds_of(client: MlflowClient, run: Run) -> list[Run]:
    """A family's runs; any other run is itself."""
    if run.data.tags.get(STAGE) != "family":
        return [run]
    return _search(client, [run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'")


def _search(client: MlflowClient, experiments: list[str], condition: str) -> list[Run]:
    found: list[Run] = []
    token: str | None = ""
    while token is not None:
        page = client.search_runs(experiments, condition, max_results=PAGE, page_token=token or None)
        found += page
        token = page.token or None
    return sorted(found, key=lambda run: run.info.start_time)


def _run_names(client: MlflowClient, experiments: list[str]) -> Iterable[str]:
    """Of the newest runs, for a hint."""
    return {run.info.run_name for run in client.search_runs(experiments, max_results=PAGE) if not _encodes(run)}


def _recorded(client: MlflowClient, run: Run, called: set[str]) -> Recorded:
    tags, metrics, info = run.data.tags, run.data.metrics, run.info
    control: dict[str, dict[str, float]] = {}
    for name in metrics:
        if (parts := name.split("/", 2))[0] == "control" and len(parts) == 3:
            control.setdefault(parts[1], {})[parts[2]] = metrics[name]
    called = called | {info.run_id, info.run_name, tags.get(PARENT, ""), run.data.params.get("name", "")}
    return Recorded(
        info.run_id,
        run.data.params.get("seed", ""),
        tags.get("fedray.method", ""),
        tags.get("fedray.data", ""),
        tags.get("fedray.data_fingerprint", ""),
        tags.get("fedray.protocol", ""),
        tags.get("fedray.protocol_note", ""),
        run.data.params,
        {name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")},
        control,
        _users(client, info.run_id) if info.status == "FINISHED" else {},
        frozenset(called - {""}),
        info.status,
        info.start_time,
        {name: value for name, value in metrics.items() if name.split("/", 1)[0] not in SPLITS},
    )


def _users(client: MlflowClient, run_id: str) -> Users:
    if users.FILE not in {f.path for f in client.list_artifacts(run_id)}:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        return users.read(Path(client.download_artifacts(run_id, users.FILE, folder)))
