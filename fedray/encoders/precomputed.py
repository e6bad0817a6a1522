"""Rows of a table somebody made before: no model, no picture and no text is read.

    image: {name: precomputed, path: clip.npy}     [rows, d] numbers; the ids of the rows in clip.ids.txt, one a line

Without ids, row r belongs to the item with the integer id r. What it is fed is the item's id in the data, as text.
"""

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from pydantic import Field

from fedray.data.paths import resolve
from fedray.encoders import Encoder, Kind, Problem, Raw
from fedray.encoders._weights import digest, modality
from fedray.errors import FeatureShapeError, FeatureValueError, FileFormatError
from fedray.sections import EncoderConfig

STORED = False
"""Its rows are on disk already: the embedding store need not keep them."""

BY_ID = True
"""It is fed ids, not images or texts."""


class Config(EncoderConfig):
    """Settings of the `precomputed` encoder."""

    name: Literal["precomputed"] = "precomputed"
    path: str = Field(min_length=1, description="the .npy file, [rows, d]")
    ids: str = Field("", description="a file with each row's item id, one a line; empty: X.ids.txt beside X.npy if any")


def describe(config: Config) -> dict[str, Any]:
    """See `fedray.encoders`. Raises `MissingPathError`."""
    file = resolve(config.path, "path")
    ids = _ids_file(config, file)
    return {
        "name": config.name,
        "input": modality(config),
        "weights": digest(file),
        "ids": digest(ids) if ids else "row numbers",
    }


def make(config: Config, device: str, max_pixels: int) -> Encoder:
    """See `fedray.encoders`. The table stays on disk, mapped; `device` does not matter.

    Raises `MissingPathError`, `FileFormatError`, `FeatureShapeError`, `FeatureValueError`; for the ids also
    `EncodingError` and `EmptyFileError`.
    """
    file = resolve(config.path, "path")
    table = _table(file)
    ids = _ids_file(config, file)
    rows = _rows(ids, len(table)) if ids else None
    absent: Kind = "no_image" if modality(config) == "image" else "no_text"
    return Encoder(table.shape[1], partial(_prepare, table, rows, absent), partial(_gathered, table))


def _ids_file(config: Config, file: Path) -> Path | None:
    if config.ids:
        return resolve(config.ids, "ids")
    beside = file.with_suffix(".ids.txt")
    return beside if beside.is_file() else None


def _table(file: Path) -> ndarray:
    try:
        table = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"not readable: {error}", "a .npy array of numbers", "", str(file)) from error
    if not isinstance(table, np.ndarray):
        table.close()
        raise FileFormatError("an archive of arrays", "one array", "Save it with numpy.save.", str(file))
    if table.ndim != 2 or 0 in table.shape:
        mend = "Save one row of numbers for each item."
        raise FeatureShapeError(f"the shape is {table.shape}", "[rows, d]", mend, str(file))
    if table.dtype.kind not in "fiub":
        raise FeatureValueError(f"the values are {table.dtype}", "real numbers", "", str(file))
    return table


def _rows(ids: Path, n_rows: int) -> dict[str, int]:
    """Item id -> row."""
    from fedray.data.sources._tables import read_utf8

    names = read_utf8(ids).decode("utf-8-sig").splitlines()
    if len(names) != n_rows:
        raise FeatureShapeError(f"{len(names)} ids for {n_rows} rows", "one line a row", "", str(ids))
    row = {name.strip(): r for r, name in enumerate(names)}
    if len(row) < n_rows:
        twice = next(name for r, name in enumerate(names) if row[name.strip()] != r)
        raise FeatureShapeError(f"item {twice} has two rows", "one row an item", "", str(ids))
    return row


def _prepare(table: ndarray, rows: dict[str, int] | None, absent: Kind, raw: Raw) -> int | Problem:
    if not isinstance(raw, str):
        return Problem("wrong_type", "bytes, not an item's id")
    row = rows.get(raw) if rows is not None else _number(raw, len(table))
    if row is None:
        return Problem(absent, f"the table has no row for item {raw[:60]!r}")
    if not np.isfinite(_gathered(table, [row])).all():
        return Problem("not_finite", f"row {row}")
    return row


def _number(raw: str, n_rows: int) -> int | None:
    """007 is no integer id: as one it would be written 7."""
    plain = raw.isascii() and raw.isdigit() and len(raw) < 19 and raw == str(int(raw))
    return int(raw) if plain and int(raw) < n_rows else None


def _gathered(table: ndarray, items: Sequence[int]) -> Float32[ndarray, "n dim"]:
    with np.errstate(over="ignore"):  # what leaves float32 is found by `_prepare`
        return np.asarray(table[np.asarray(items, np.int64)], np.float32)
