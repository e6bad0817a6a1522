"""Each client's test metrics at the end of a run: the user is the unit of all statistics.

Columns of equal length: `client`, dense ids in ascending order, and one column per metric. Only hr and ndcg (of every
ranking) are kept, to stay small. Clients without a test item are left out, as they are from the mean, so the mean of a
column is the reported metric. There is no external id and no interaction; what a value tells is how high a client's
test items came, never which items these are. Where a method has traits (the weights of a client's router), they are
columns, too, with a slash in their names; NaN where a client has no training item. Where it makes groups of clients,
`group` is each one's at the selected round, -1 where it has none.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow
from jaxtyping import Int
from pyarrow import parquet

from fedray.errors import FileFormatError, MissingColumnError
from fedray.evaluation.metrics import ByClient

FILE = "users.parquet"
Users = Mapping[str, np.ndarray]
GROUP = "group"
NO_TRAITS: Users = MappingProxyType({})
_KEPT = re.compile(r"(\w+_)?(hr|ndcg)_at_\d+")


def users_of(client: Int[np.ndarray, " clients"], found: ByClient, traits: Users = NO_TRAITS) -> Users:
    """The columns of these clients; every kept metric counts the same clients, those with a test item."""
    kept = {name: pair for name, pair in found.items() if _KEPT.fullmatch(name)}
    counted = next(iter(kept.values()))[1] > 0
    columns = {"client": client, **{name: values for name, (values, _) in kept.items()}, **traits}
    return {name: values[counted] for name, values in columns.items()}


def with_group(users: Users, group: Int[np.ndarray, " N"]) -> Users:
    """With the column `group`, from the groups by client id; an id beyond their end has none."""
    return {**users, GROUP: np.append(group, -1)[np.minimum(users["client"], len(group))]}


def merged(parts: Iterable[Users]) -> Users:
    """All clients of the parts, by id: the same however the clients are packed."""
    there = [p for p in parts if len(p["client"])]
    if not there:
        return {"client": np.zeros(0, np.int64)}
    order = np.argsort(np.concatenate([p["client"] for p in there]))
    return {name: np.concatenate([p[name] for p in there])[order] for name in there[0]}


def copied(users: Users) -> Users:
    """In memory of their own."""
    return {k: v.copy() for k, v in users.items()}


def metrics_in(users: Users) -> list[str]:
    """The names of the metrics."""
    return [name for name in users if _KEPT.fullmatch(name)]


def traits_in(users: Users) -> list[str]:
    """The names of the traits."""
    return [name for name in users if "/" in name]


def beside(summary: Path, seed: int | None = None) -> Path:
    """Where the users of a `--summary` file are: `end.users.parquet`, of a family `end.seed0.users.parquet`."""
    return summary.with_name(f"{summary.stem}.{FILE}" if seed is None else f"{summary.stem}.seed{seed}.{FILE}")


def to_parquet(users: Users) -> bytes:
    """The file's content."""
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(dict(users)), out, compression="zstd")
    return out.getvalue()


def read(file: Path, needed: Sequence[str] = ("client",)) -> Users:
    """What `to_parquet` wrote. `FileFormatError` or `MissingColumnError` for anything else."""
    try:
        table = parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise FileFormatError(f"not readable as parquet: {error}", "users of a fedray run", "", str(file)) from error
    if missing := [name for name in needed if name not in table.column_names]:
        raise MissingColumnError(f"no column {', '.join(missing)}", "users of a fedray run", "", str(file))
    return {name: table.column(name).to_numpy() for name in table.column_names}
