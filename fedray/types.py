"""The types that cross module borders. All are frozen and checked once, where they are made.

Names: a *client* (federated) is one *user* (data); ids here are dense (0..n-1), the ids of the user's own
files are kept in `Interactions.user_ids` and `item_ids`. Axes: clients C, items M, rows R, dimensions d.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

Params = dict[str, torch.Tensor]
Arrays = dict[str, np.ndarray]

Split = Literal["valid", "test"]
TRAIN, VALID, TEST = 0, 1, 2
MISSING_TIME = np.iinfo(np.int64).min


class Ragged(NamedTuple):
    """Rows of unequal length: row i is `values[ptr[i]:ptr[i + 1]]`."""

    ptr: Int[np.ndarray, " rows_plus_1"]
    values: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, row: np.ndarray, values: np.ndarray, n_rows: int) -> "Ragged":
        """Group `values` by `row`; each row's values ascending."""
        order = np.lexsort((values, row))
        counts = np.bincount(row, minlength=n_rows)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), values[order].astype(np.int64))

    def lengths(self) -> Int[np.ndarray, " rows"]:
        """Values per row."""
        return np.diff(self.ptr)

    def row(self, i: int) -> Int[np.ndarray, " n_i"]:
        """Row i."""
        return self.values[self.ptr[i] : self.ptr[i + 1]]

    def take(self, rows: Int[np.ndarray, " k"]) -> "Ragged":
        """Rows `rows`, in that order."""
        ptr = np.concatenate([[0], np.cumsum(self.lengths()[rows])]).astype(np.int64)
        return Ragged(ptr, self.values[flat_index(self.ptr, rows)])


def flat_index(ptr: Int[np.ndarray, " n"], rows: Int[np.ndarray, " k"]) -> Int[np.ndarray, " total"]:
    """Positions in the flat values of the given rows, in order."""
    lengths = np.diff(ptr)[rows]
    starts = np.repeat(ptr[rows] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return starts + np.arange(int(lengths.sum()), dtype=np.int64)


def _no_items() -> Int[np.ndarray, " 0"]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Interactions:
    """The whole table with dense ids, validated; one row per (user, item) pair, in file order.

    `time` is `MISSING_TIME` where the file has none. `split` holds TRAIN, VALID, TEST labels where the
    source gave them, else None. `user_ids[u]` and `item_ids[i]` are the ids of the files.
    """

    user: Int[np.ndarray, " n"]
    item: Int[np.ndarray, " n"]
    time: Int[np.ndarray, " n"]
    split: Int[np.ndarray, " n"] | None
    user_ids: np.ndarray
    item_ids: np.ndarray

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items, those without interactions included."""
        return len(self.item_ids)


@dataclass(frozen=True)
class ItemFeatures:
    """Frozen encoder output, row = dense item id. `present[m][i]` is False where item i has no m."""

    tables: Mapping[str, Float[np.ndarray, "items d_m"]]
    present: Mapping[str, Bool[np.ndarray, " items"]]
    fingerprint: str

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called, sorted."""
        return tuple(sorted(self.tables))


@dataclass(frozen=True)
class FeatureNames:
    """All that a client knows of the items' features: what they are called. The content is the server's."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class ClientData:
    """The private part of C clients, columnar: `train.row(c)` are client c's training items, ascending.

    A `ClientActor` holds one of these and nothing of anybody else. `client[c]` is the dense user id. `cold` are items
    of the catalogue, the same for everybody, that are not there yet while training goes on: nobody's training or
    validation item, and never a negative.
    """

    client: Int[np.ndarray, " clients"]
    train: Ragged
    valid: Ragged
    test: Ragged
    n_items: int
    cold: Int[np.ndarray, " cold"] = field(default_factory=_no_items)

    def take(self, rows: Int[np.ndarray, " k"]) -> "ClientData":
        """The clients at positions `rows`."""
        return ClientData(
            self.client[rows],
            self.train.take(rows),
            self.valid.take(rows),
            self.test.take(rows),
            self.n_items,
            self.cold.copy(),
        )

    def __len__(self) -> int:
        return len(self.client)


@dataclass(frozen=True)
class Dataset:
    """A source after cleaning, filtering and splitting; held by the job's entrypoint only.

    `label[n]` is TRAIN, VALID or TEST per interaction. `items` is indexed by dense item id (title,
    description, ... where the source has them). `counts` says what cleaning did: duplicates dropped, users
    dropped, items without features and so on. `cold` are the items held out of training (`data.cold_items`), ascending.
    """

    name: str
    interactions: Interactions
    label: Int[np.ndarray, " n"]
    items: pd.DataFrame
    features: ItemFeatures | None
    counts: Mapping[str, int]
    fingerprint: str
    cold: Int[np.ndarray, " cold"] = field(default_factory=_no_items)

    @property
    def contents(self) -> str:
        """The fingerprint, with that of the items' features: what a run can only go on with."""
        return f"{self.fingerprint}-{self.features.fingerprint}" if self.features else self.fingerprint


@dataclass(frozen=True)
class ServerState:
    """What the server knows: the shared parameters and the round they belong to."""

    round: int
    params: Arrays
    extra: Mapping[str, Any] = field(default_factory=dict)


class Broadcast(NamedTuple):
    """What goes down to every client, once a round."""

    round: int
    params: Arrays


@dataclass(frozen=True)
class RoundReport:
    """Everything a round says about itself; the only thing a tracker sees.

    `metrics` are flat, with slashes (`val/ndcg_at_10`, `train/loss`); `seconds` per stage; bytes are
    what would travel between server and clients this round (not Ray's own traffic). `restarts` are those of actors
    in the whole run so far. `clients_dropped`: selected, but their actor died or was late (`runtime.recovery: drop`).
    `abandoned` is 1 where so many were that the round changed nothing.
    """

    round: int
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    clients_ok: int
    clients_dropped: int = 0
    clients_rejected: int = 0
    restarts: int = 0
    abandoned: int = 0
