"""`load`: a data section and a protocol -> one frozen `Dataset`; `client_data`: its private parts.

The catalogue is the items with at least one interaction left after filtering, as in the papers' tables
(1,682 films of MovieLens-100K, 3,706 of 1M); what a source lists beyond these is counted, not kept.
Users are numbered in the order of their external ids, items too, or at random where the protocol asks:
an item id then says nothing, and a ranking that breaks ties by id cannot profit.
"""

import hashlib
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from fedray import seeding
from fedray.config import DataConfig, part_module
from fedray.data import splits
from fedray.data.cold import labelled
from fedray.data.features import align, filled
from fedray.data.interactions import as_ids, clean
from fedray.data.protocols import Protocol
from fedray.data.sources import RawData
from fedray.errors import BadSplitError
from fedray.types import TEST, TRAIN, VALID, ClientData, Dataset, Interactions, Ragged


def load(config: DataConfig, protocol: Protocol) -> Dataset:
    """Read, clean, number, split. Raises what the source, `clean` and `align` raise."""
    raw: RawData = part_module("data.sources", config.source).load(config)
    frame, counts = clean(raw, config)
    item, item_ids = _dense(frame["item"])
    cold = splits.choose_cold(len(item_ids), config.cold_items, config.seed)
    label, cold_counts = labelled(frame, item, cold, config, raw.where)
    if config.last:
        user, time = _dense(frame["user"])[0], frame["time"].to_numpy()
        label = splits.most_recent(label, user, item, time, config.last, config.seed)
    _check_parts(label, raw.where)
    kept = label != splits.DROPPED
    frame, item, label = frame[kept], item[kept], label[kept]
    user, user_ids = _dense(frame["user"])
    time, given = frame["time"].to_numpy(), _given(frame)
    if protocol.permute_items:
        number, item_ids = _permuted(item_ids, config.seed)
        item, cold = number[item], np.sort(number[cold])
    interactions = Interactions(user, item, time, given, user_ids, item_ids)
    items, listed_counts = _catalogue(raw, item_ids)
    features, missing = align(raw.features, item_ids, _listed(raw, item_ids))
    return Dataset(
        name=config.name or raw.name,
        interactions=interactions,
        label=label,
        items=items,
        features=filled(features, config.missing, item_ids) if features else None,
        counts={**counts, **cold_counts, **listed_counts, **missing},
        fingerprint=fingerprint(user, item, label, len(item_ids), cold),
        cold=cold,
    )


def _dense(column: pd.Series) -> tuple[Int[np.ndarray, " n"], np.ndarray]:
    """0..n-1 in ascending order of the external ids, and these ids."""
    code, ids = pd.factorize(column, sort=True)
    return code.astype(np.int64), np.asarray(ids, dtype=np.int64 if column.dtype.kind == "i" else object)


def _given(frame: pd.DataFrame) -> Int[np.ndarray, " n"] | None:
    return frame["split"].to_numpy() if "split" in frame else None


def _check_parts(label: Int[np.ndarray, " n"], where: str) -> None:
    """Without a validation row no round can be selected, without a test row nothing is measured."""
    for part, name in ((TRAIN, "train"), (VALID, "valid"), (TEST, "test")):
        if not (label == part).any():
            mend = "Add such rows, or set data.split: leave_one_out and data.short_users: drop."
            raise BadSplitError(f"no interaction is for {name}", "some for each of train, valid, test", mend, where)


def _permuted(item_ids: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Items renumbered at random, by the data's seed: each one's new number, and the ids in the new order."""
    order = seeding.generator(seeding.key(seed, "item_ids")).permutation(len(item_ids))
    new = np.empty_like(order)
    new[order] = np.arange(len(order))
    return new, item_ids[order]


def _catalogue(raw: RawData, item_ids: np.ndarray) -> tuple[pd.DataFrame, dict[str, int]]:
    """The items' descriptions by dense id, and how many are listed without interactions or twice."""
    listed = pd.Index(raw.items["item"]).astype(str)
    known = pd.Index(item_ids).astype(str)
    table = raw.items[~listed.duplicated()].drop(columns="item")
    items = table.set_axis(listed[~listed.duplicated()], axis="index").reindex(known)
    items = items.set_axis(pd.RangeIndex(len(item_ids)), axis="index")
    items.insert(0, "item", item_ids)
    more = {str(i) for f in raw.features.values() if f.item is not None for i in f.item} | set(listed)
    return items, {
        "items_without_interactions": len(more.difference(known)),
        "items_listed_twice": int(listed.duplicated().sum()),
    }


def _listed(raw: RawData, item_ids: np.ndarray) -> np.ndarray | None:
    """Every integer item id there is, or None without a list of items (or with text ids in it)."""
    if not raw.features or raw.items.empty or item_ids.dtype.kind != "i":
        return None
    listed = as_ids(raw.items["item"], "item", f"items of {raw.where}")
    seen = as_ids(raw.frame["item"], "item", raw.where)
    return np.concatenate([listed, seen]) if listed.dtype.kind == "i" else None


def fingerprint(user: np.ndarray, item: np.ndarray, label: np.ndarray, n_items: int, cold: np.ndarray) -> str:
    """12 hex digits of the SHA-256 over the dense table, its labels, the size of the catalogue and its cold items."""
    digest = hashlib.sha256()
    for column in (user, item, label, np.array([n_items]), cold):
        digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    return digest.hexdigest()[:12]


def client_data(dataset: Dataset) -> ClientData:
    """The private part of every user; client c is dense user c."""
    table = dataset.interactions
    train, valid, test = (
        Ragged.of(table.user[dataset.label == part], table.item[dataset.label == part], table.n_users)
        for part in (TRAIN, VALID, TEST)
    )
    return ClientData(np.arange(table.n_users, dtype=np.int64), train, valid, test, table.n_items, dataset.cold)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Sizes, density (share of the user-item grid) and what cleaning did, flat, for logs."""
    table = dataset.interactions
    n = len(table.user)
    parts = {name: int((dataset.label == p).sum()) for name, p in zip(("train", "valid", "test"), (0, 1, 2))}
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "users": table.n_users,
        "items": table.n_items,
        "interactions": n,
        "density": n / (table.n_users * table.n_items),
        **parts,
        **dataset.counts,
    }
