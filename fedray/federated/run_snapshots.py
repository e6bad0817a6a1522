"""The server's part of a run between two rounds as named arrays and plain JSON, for a checkpoint.

What follows from the rest is left out (broadcasts are made from states again), and of states that are one object, as
that of the best round and the last may be, one copy is written. Reading gives the same bits back.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedray.config import RunConfig
from fedray.federated.client_snapshots import distinct, places, under
from fedray.federated.method import Method, Uploads
from fedray.federated.rounds import Best, Run, broadcast_of
from fedray.types import Arrays, ServerState


class Snapshot(NamedTuple):
    """The server's part. body: whatever is no array."""

    arrays: Arrays
    body: Mapping[str, Any]


def of_run(run: Run) -> Snapshot:
    """All that the next round reads."""
    states = distinct([run.state, *(b.state for b in run.kept.values())])
    arrays, scalars = Arrays(), []
    for i, state in enumerate(states):
        arrays |= {f"{i}/params/{k}": v for k, v in state.params.items()}
        arrays |= {f"{i}/extra/{k}": np.asarray(v) for k, v in state.extra.items() if _is_array(v)}
        scalars.append({k: v for k, v in state.extra.items() if not _is_array(v)})
    if run.targets is not None:
        arrays |= {"targets/client": run.targets.client}
        arrays |= {f"targets/tables/{k}": v for k, v in run.targets.tables.items()}
    body = {
        "states": [{"round": s.round, "extra": x} for s, x in zip(states, scalars, strict=True)],
        "kept": [
            {"metric": m, "round": b.round, "value": b.value, "validation": dict(b.validation), "state": at}
            for (m, b), at in zip(run.kept.items(), places([b.state for b in run.kept.values()], states))
        ],
        "since_best": run.since_best,
        "total_bytes": list(run.total_bytes),
    }
    return Snapshot({k: np.asarray(v, order="C") for k, v in arrays.items()}, body)


def run_of(config: RunConfig, method: Method, snapshot: Snapshot) -> Run:
    """The run that was written."""
    arrays, body = snapshot
    states = [
        ServerState(s["round"], under(arrays, f"{i}/params/"), under(arrays, f"{i}/extra/") | s["extra"])
        for i, s in enumerate(body["states"])
    ]
    down = [broadcast_of(method, s) for s in states]
    kept = {
        b["metric"]: Best(b["round"], b["value"], down[b["state"]], b["validation"], states[b["state"]])
        for b in body["kept"]
    }
    tables = under(arrays, "targets/tables/")
    targets = Uploads(arrays["targets/client"], tables) if "targets/client" in arrays else None
    sent, received = body["total_bytes"]
    return Run(config, method, states[0], down[0], kept, body["since_best"], (sent, received), targets)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)
