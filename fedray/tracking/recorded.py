"""A finished run as it was recorded: in a `--summary` file here, in MLflow by `reader`. No MLflow needed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedray.errors import FileFormatError
from fedray.evaluation import users
from fedray.evaluation.users import Users

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Recorded:
    """What a comparison needs of a run.

    params: as `records.params` spells them, wherever the run was recorded. control: control -> test metrics. users:
    empty where none were kept. called: every name it goes by (ids, names, its family, its file). begun: when, to tell
    an older run from a newer one.
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


def read_summary(file: Path) -> list[Recorded]:
    """The run, or each seed's run of a family, that `fedray train --summary` wrote with its users beside it."""
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        family = "runs" in summary
        runs = [_of_summary(run, file, family) for run in (summary["runs"] if family else [summary])]
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


def _of_summary(run: Mapping[str, Any], file: Path, family: bool) -> Recorded:
    about = run["about"]
    kept = users.beside(file, about["seed"] if family else None)
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
        users.read(kept) if kept.is_file() else {},
        frozenset({run["run_id"], about["name"]}),
        begun=int(file.stat().st_mtime * 1000),
    )
