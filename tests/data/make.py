"""Folders with data for the tests of this package: written small, read by the real sources."""

import json
from pathlib import Path

import numpy as np

from fedray.config import make_config
from fedray.data.dataset import load
from fedray.data.protocols import protocol

GOOD = "user,item,timestamp\n" + "".join(f"{u},{i},{100 * u + i}\n" for u in (1, 2) for i in range(4))


def write(folder: Path, body: str = GOOD, items: list[dict] | None = None, **features: np.ndarray) -> Path:
    """interactions.csv and, where given, items.jsonl and features/<modality>.npy."""
    (folder / "interactions.csv").write_text(body, encoding="utf-8")
    if items is not None:
        (folder / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items), encoding="utf-8")
    if features:
        (folder / "features").mkdir(exist_ok=True)
    for modality, table in features.items():
        np.save(folder / "features" / f"{modality}.npy", table)
    return folder


def settings(folder: Path, **data):
    """The checked data section."""
    return make_config({"data": {"source": "folder", "path": str(folder), **data}}).data


def read(folder: Path, rules: str = "paper/pfedrec", **data):
    """The data set of a folder; items in the order of their ids unless `rules` says clean."""
    return load(settings(folder, **data), protocol(rules))


def rows_of(dataset, label: int) -> dict[str, list[str]]:
    """External user id -> its external item ids with that label, in file order."""
    table = dataset.interactions
    out: dict[str, list[str]] = {}
    for n in np.flatnonzero(dataset.label == label):
        out.setdefault(str(table.user_ids[table.user[n]]), []).append(str(table.item_ids[table.item[n]]))
    return out
