"""A finished run as it was recorded: in a `--summary` file here, in MLflow by `reader`. No MLflow needed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedray.errors import FileFormatError
from fedray.evaluation import users
from fedray.evaluation.users import Users
from fedray.tracking.courses import DOWN, UP
from fedray.tracking.records import MB

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Recorded:
    """What a comparison needs of a run.

    params: as `records.params` spells them, wherever the run was recorded. control: control -> test metrics. users:
    empty where none were kept. called: every name it goes by (ids, names, its family, its file). begun: when, to tell
    an older run from a newer one. other: the end's metrics that are of no split, as MLflow has them (`time/total_s`).
    """

    run_id: str
    seed: str
    method: str
    data: str
    data_fingerprint: str
    protocol: str
    note: str
    params: Mapping[str, str]
    test: Metrics
    control: Mapping[str, Metrics] = field(default_factory=dict)
    users: Users = field(default_factory=dict)
    called: frozenset[str] = frozenset()
    status: str = "FINISHED"
    begun: int = 0
    other: Metrics = field(default_factory=dict)


def read_summary(file: Path) -> list[Recorded]:
    """The run, or each seed's run of a family, that `fedray train --summary` wrote with its users beside it."""
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        family = "runs" in summary
        runs = [_in_file(run, file, family) for run in (summary["runs"] if family else [summary])]
    except (ValueError, KeyError, TypeError) as error:
        mend = "Files of `fedray evaluate` and of fedray before `compare` do not say what was run."
        raise FileFormatError(
            f"not a summary of a run: {type(error).__name__}: {error}",
            "what --summary of `fedray train` wrote",
            mend,
            str(file),
        ) from error
    called = {str(file), file.name, file.stem, str(summary["run_id"])}
    return [replace(run, called=run.called | called) for run in runs]


def _in_file(run: Mapping[str, Any], file: Path, family: bool) -> Recorded:
    kept = users.beside(file, run["about"]["seed"] if family else None)
    found = of_summary(run, users.read(kept) if kept.is_file() else {})
    return replace(found, begun=int(file.stat().st_mtime * 1000))


def of_summary(run: Mapping[str, Any], found: Users) -> Recorded:
    """The run of that summary and these users."""
    about = run["about"]
    return Recorded(
        run["run_id"],
        str(about["seed"]),
        about["method"],
        about["data"],
        about["data_fingerprint"],
        about["protocol"],
        about["protocol_note"],
        about["params"],
        run["test"],
        run["control"],
        found,
        frozenset({run["run_id"], about["name"]}),
        other=_other(run),
    )


def _other(run: Mapping[str, Any]) -> Metrics:
    """What of it there is: summaries of older versions have less."""
    found = {"best_round": run.get("best_round"), "time/total_s": run.get("seconds", {}).get("total")}
    for way, name in (("bytes_down", DOWN), ("bytes_up", UP)):
        found[name] = run["comm"][way] / MB if way in run.get("comm", {}) else None
    return {name: float(value) for name, value in found.items() if value is not None}
