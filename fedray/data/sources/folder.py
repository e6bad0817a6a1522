"""A user's own data in one folder.

    interactions.csv | interactions.parquet   user, item, optional rating, timestamp, split
    items.jsonl | items.csv                   optional: item and any columns (title, description, image, ...)
    images/<item>.jpg                         optional (also .jpeg, .png, .webp); not decoded here
    features/<modality>.npy                   optional: [rows, d]; row r is item r, or the r-th line of
                                              features/<modality>.ids.txt or features/item_ids.txt

Text is UTF-8. Ids are integers or any text; a `timestamp` is a number or a date and may be missing; a
`split` is 0, 1, 2 or train, valid, test.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from fedray.config import DataConfig
from fedray.data.interactions import as_ids
from fedray.data.paths import resolve
from fedray.data.sources import RawData, RawFeature
from fedray.data.sources._tables import delimited, read_json_lines, read_lenient, read_npy, read_parquet, read_utf8
from fedray.errors import EncodingError, FeatureShapeError, FileFormatError, MissingColumnError, MissingPathError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Config(DataConfig):
    """Settings of the `folder` source."""

    source: Literal["folder"] = "folder"
    path: str = Field(min_length=1, description="the folder; relative to here, FEDRAY_DATA or ../shared/data")


def load(config: Config) -> RawData:
    """The folder's tables, unjudged. Raises the path and file errors of `fedray.errors`."""
    folder = resolve(config.path)
    file = _one_of(folder, "interactions.csv", "interactions.parquet")
    if file is None:
        raise MissingPathError(
            f"{folder} holds no interactions.csv or interactions.parquet",
            "one of the two",
            "The file needs the columns user and item.",
        )
    return RawData(
        frame=_read_table(file),
        items=_with_images(_items(folder), folder / "images"),
        features=_features(folder / "features"),
        name=config.name or folder.resolve().name,
        where=str(file),
    )


def _one_of(folder: Path, *names: str) -> Path | None:
    """The one of these files that is there, or None; two are refused, since neither can be preferred."""
    there = [folder / name for name in names if (folder / name).is_file()]
    if len(there) > 1:
        raise FileFormatError(f"{' and '.join(names)} are both there", "one", "Remove one.", str(folder))
    return there[0] if there else None


def _read_table(file: Path) -> pd.DataFrame:
    """The interactions; their `timestamp` is called time from here on."""
    frame = read_parquet(file) if file.suffix == ".parquet" else delimited(read_utf8(file), str(file))
    if {"time", "timestamp"} <= set(frame.columns):
        raise FileFormatError("columns 'time' and 'timestamp' are both there", "one", "Remove one.", str(file))
    return frame.rename(columns={"timestamp": "time"})


def _items(folder: Path) -> pd.DataFrame:
    file = _one_of(folder, "items.jsonl", "items.csv")
    if file is None:
        return pd.DataFrame({"item": pd.Series(dtype=str)})
    body = read_lenient(file)
    items = read_json_lines(body, file) if file.suffix == ".jsonl" else delimited(body, str(file))
    if "item" not in items:
        mend = f"The columns are {', '.join(map(str, items.columns))}."
        raise MissingColumnError("there is no column 'item'", "it", mend, str(file))
    broken = items["item"].astype(str).str.contains("\N{REPLACEMENT CHARACTER}", regex=False)
    if broken.any():
        found = f"the item id {items['item'][broken].iloc[0]!r} is not UTF-8"
        raise EncodingError(found, "UTF-8 text", "", f"{file}, row {broken.idxmax()}")
    return items.assign(item=as_ids(items["item"], "item", str(file)))


def _with_images(items: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """`items` with a column `image`: the picture's path, or missing. An item that only has a picture is added.

    Without a folder of pictures, paths that the items' own column `image` gives count from the data's folder.
    """
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []
    if not files:
        return items.assign(image=[_below(folder.parent, v) for v in items["image"]]) if "image" in items else items
    pictures = pd.Series([str(f) for f in files], index=[f.stem for f in files], dtype=str)
    pictures = pictures[~pictures.index.duplicated()]
    name = items["item"].astype(str)
    listed = items.assign(image=name.map(pictures))
    more = pictures[~pictures.index.isin(name)]
    return pd.concat([listed, pd.DataFrame({"item": more.index, "image": more.to_numpy()})]) if len(more) else listed


def _below(folder: Path, value: Any) -> Any:
    return str(folder / value) if isinstance(value, str) and value else value


def _features(folder: Path) -> dict[str, RawFeature]:
    files = sorted(folder.glob("*.npy")) if folder.is_dir() else []
    return {file.stem: _feature(file) for file in files}


def _feature(file: Path) -> RawFeature:
    table = read_npy(file)
    for ids in (file.with_suffix(".ids.txt"), file.with_name("item_ids.txt")):
        if ids.is_file():
            return RawFeature(table, _ids(ids, len(np.atleast_1d(table)), file.name), str(file))
    return RawFeature(table, None, str(file))


def _ids(file: Path, n_rows: int, table: str) -> np.ndarray:
    ids = [line.strip() for line in read_utf8(file).decode("utf-8-sig").splitlines()]
    if len(ids) != n_rows:
        expected = f"{n_rows}, one for each row of {table}"
        raise FeatureShapeError(f"{len(ids)} ids", expected, "One id a line, no header.", str(file))
    return np.array(ids, dtype=object)
