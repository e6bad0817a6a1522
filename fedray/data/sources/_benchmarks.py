"""What the folders of FedVLR, GFMFR and MMRec share: column names, features by item id, id mappings.

Users and items are numbered from 0 and row r of a feature file is item r. The spelling of the columns is
no matter: userID, userId and RecBole's user_id:token are one.
"""

from pathlib import Path

import pandas as pd

from fedray.config import DataConfig
from fedray.data.interactions import as_ids
from fedray.data.sources import RawFeature
from fedray.data.sources._tables import ID_COLUMNS, delimited, read_npy, read_utf8
from fedray.errors import FileFormatError, MissingColumnError

MEANINGS = {"userid": "user", "itemid": "item", "rating": "rating", "timestamp": "time"}
MEANINGS |= {"splitlabel": "split", "xlabel": "split"}


def read_interactions(file: Path, delimiter: str, label: str, config: DataConfig) -> pd.DataFrame:
    """user, item and, where there is any, rating, time, split of a table with a header; other columns are left out.

    `label` is what this form calls the split. Raises file errors, and `MissingColumnError` in the file's own names.
    """
    body = read_utf8(file)
    meaning = _meanings(_header(body, delimiter), str(file))
    ids = tuple(name for name, means in meaning.items() if means in ID_COLUMNS)
    # Tab-separated tokens may hold quotes that quote nothing.
    frame = delimited(body, str(file), delimiter=delimiter, text=ids, quotes=delimiter == ",")
    _require(meaning, frame, label if config.split == "given" else "", str(file))
    return frame[list(meaning)].rename(columns=meaning)


def _require(meaning: dict[str, str], frame: pd.DataFrame, label: str, where: str) -> None:
    """Users, items and, where `label` is not empty, split labels must be there."""
    columns = f"The columns are {', '.join(frame.columns)}."
    for means, name in (("user", "userID"), ("item", "itemID")):
        if means not in meaning.values():
            raise MissingColumnError(f"there is no column {name!r}", "it in the header", columns, where)
    if label and "split" not in meaning.values():
        mend = f"Set data.split: leave_one_out, or add the column. {columns}"
        expected = "0, 1 or 2 in each row, for train, valid, test"
        raise MissingColumnError(f"there is no column {label!r}", expected, mend, where)


def read_features(folder: Path, suffix: str) -> dict[str, RawFeature]:
    """Each `<modality><suffix>` of the folder, [rows, d]; row r is item r. Pickles are not read."""
    files = sorted(folder.glob(f"[!.]*{suffix}"))  # no dot: macOS leaves ._image_features.npy beside unpacked files
    return {file.name.removesuffix(suffix): RawFeature(read_npy(file), None, str(file)) for file in files}


def read_original_ids(file: Path) -> pd.DataFrame:
    """item and original_id (text, as in the publisher's raw data) of a mapping; empty without the file.

    FedVLR separates by commas, MMRec by tabs, both under the name i_id_mapping.csv.
    """
    if not file.is_file():
        return pd.DataFrame({"item": pd.Series(dtype=str)})
    body = read_utf8(file)
    delimiter = "\t" if len(_header(body, "\t")) > 1 else ","
    names = _header(body, delimiter)
    table = delimited(body, str(file), delimiter=delimiter, text=tuple(names))
    numbers = [name for name in names if _plain(name) == "itemid"]
    if not numbers or len(names) < 2:
        mend = f"The columns are {', '.join(names)}."
        expected = "the columns asin and itemID: the original id and its number"
        raise MissingColumnError("there is no column 'itemID' beside another", expected, mend, str(file))
    item = numbers[-1]  # of item_id,itemID the second is the number
    original = next(name for name in names if name != item)
    return pd.DataFrame({"item": as_ids(table[item], "item", str(file)), "original_id": table[original]})


def _meanings(names: list[str], where: str) -> dict[str, str]:
    """The file's column names that mean something here -> what fedray calls them."""
    found: dict[str, str] = {}
    for name in names:
        means = MEANINGS.get(_plain(name))
        if means in found.values():
            first = next(n for n in found if found[n] == means)
            raise FileFormatError(f"columns {first!r} and {name!r} are both there", "one", "Remove one.", where)
        if means:
            found[name] = means
    return found


def _header(body: bytes, delimiter: str) -> list[str]:
    """The names in the first line that is not blank."""
    line = body.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n").partition(b"\n")[0]
    return [name.strip('"') for name in line.decode("utf-8").rstrip("\r").split(delimiter)]


def _plain(name: str) -> str:
    """A column name without case, underscores and RecBole's type."""
    return name.partition(":")[0].strip().lower().replace("_", "")
