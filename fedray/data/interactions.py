"""From a source's raw table to a clean one: ids, times and labels checked, pairs unique, short users settled.

Every finding is a named error with the file's row; nothing is corrected in silence: what is dropped is
counted. A missing time is allowed and older than any other; a missing rating is not.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Int

from fedray.config import DataConfig, nearest_hint
from fedray.data.sources import RawData
from fedray.errors import (
    BadIdError,
    BadRatingError,
    BadSplitError,
    BadTimestampError,
    DataError,
    DuplicatePairError,
    EmptyFileError,
    MissingColumnError,
    TooFewInteractionsError,
)
from fedray.types import MISSING_TIME, TEST, TRAIN, VALID

LEAST_TO_SPLIT = 3
LABELS = {"0": TRAIN, "1": VALID, "2": TEST, "train": TRAIN, "valid": VALID, "test": TEST}
LABELS |= {"validation": VALID, "val": VALID, "0.0": TRAIN, "1.0": VALID, "2.0": TEST}
NO_VALUE = ("", "nan", "null", "none", "<na>", "nat")
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class _Place:
    """Where a column stands, for messages: the file and each row's number in it."""

    where: str
    row: np.ndarray

    def refuse(self, kind: type[DataError], bad: Bool[np.ndarray, " n"], found: str, expected: str, mend: str) -> None:
        """Raise `kind` for the first bad row, if there is one."""
        if not bad.any():
            return
        n = int(bad.sum())
        more = f" ({n - 1} more such rows)" if n > 1 else ""
        raise kind(found + more, expected, mend, f"{self.where}, row {self.row[bad][0]}")


def clean(raw: RawData, config: DataConfig) -> tuple[pd.DataFrame, dict[str, int]]:
    """Columns user, item (int64 or text), time (int64) and, where given, split (int8), in file order; counts.

    Raises the `DataError` of the first defect: column, id, rating, time, label, pair, user, in this order.
    """
    frame = raw.frame
    _check_columns(frame, config, raw.where)
    place = _Place(raw.where, frame.index.to_numpy())
    checked = pd.DataFrame(
        {"user": as_ids(frame["user"], "user", raw.where), "item": as_ids(frame["item"], "item", raw.where)},
        index=frame.index,
    )
    _check_ratings(frame.get("rating"), place)
    checked["time"] = _times(frame.get("time"), place)
    if "split" in frame:
        checked["split"] = _labels(frame["split"], place)
    unique, duplicates = _unique_pairs(checked, config.duplicates, place)
    kept, dropped = _long_enough(unique, config, raw.where)
    timeless = int((kept["time"] == MISSING_TIME).sum())
    return kept, {"rows_read": len(frame), "duplicates_dropped": duplicates, **dropped, "rows_without_time": timeless}


def _check_columns(frame: pd.DataFrame, config: DataConfig, where: str) -> None:
    known = [str(c) for c in frame.columns]
    for name in ("user", "item", *(["split"] if config.split == "given" else [])):
        if name not in known:
            mend = nearest_hint(name, known) or f"The columns are {', '.join(known)}."
            raise MissingColumnError(f"there is no column {name!r}", "it in the header", mend, where)
    if frame.empty:
        raise EmptyFileError("there is no row", "at least one interaction", "", where)


def as_ids(column: pd.Series, what: str, where: str) -> np.ndarray:
    """Ids as int64 where all are plain integers, else as text (object array); spaces around are cut.

    "007" stays text: only the usual spelling of an integer is one. Raises `BadIdError` for an id that is
    empty, negative or a fraction; `what` names the column.
    """
    place = _Place(where, column.index.to_numpy())
    number = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
    ids = _whole(column, what, place) if number else _from_text(column, what, place)
    if ids.dtype.kind == "i":
        found = f"{what} id is {ids[ids < 0][:1].sum()}"
        place.refuse(BadIdError, ids < 0, found, "0 or more", "Number the ids from 0, or use text ids.")
    return ids


def _from_text(column: pd.Series, what: str, place: _Place) -> np.ndarray:
    """A text column as int64 where all of it is integers, else as text."""
    text = pa.compute.utf8_trim_whitespace(pa.array(_as_text(column), type=pa.large_string()))
    lower = pa.compute.utf8_lower(text)
    empty = pa.compute.is_in(lower, pa.array(NO_VALUE, pa.large_string())).to_numpy(zero_copy_only=False)
    place.refuse(BadIdError, empty, f"{what} id is empty", "an id", "Fill it in or remove the row.")
    broken = pa.compute.match_substring_regex(text, r"[\r\n]").to_numpy(zero_copy_only=False)
    found = f"{what} id {_first(column, broken)[:40]} holds a line break"
    place.refuse(BadIdError, broken, found, "ids on one line", "Look for a quote that is not closed.")
    if pa.compute.all(pa.compute.match_substring_regex(text, _INTEGER)).as_py():
        return cast(np.ndarray, pa.compute.cast(text, pa.int64()).to_numpy())
    return cast(np.ndarray, text.to_numpy(zero_copy_only=False))


def _whole(column: pd.Series, what: str, place: _Place) -> Int[np.ndarray, " n"]:
    """A numeric column as int64."""
    empty = column.isna().to_numpy()
    place.refuse(BadIdError, empty, f"{what} id is empty", "an id", "Fill it in or remove the row.")
    if pd.api.types.is_integer_dtype(column.dtype):
        return column.to_numpy(dtype=np.int64)
    number = column.to_numpy(dtype=np.float64)
    broken = ~((number == np.floor(number)) & (np.abs(number) < 2.0**53))
    found = f"{what} id is {number[broken][:1].sum()}"
    place.refuse(BadIdError, broken, found, "a whole number", "Write ids as integers or text.")
    return number.astype(np.int64)


def _as_text(column: pd.Series) -> np.ndarray:
    """Text of each value, '' where it is missing."""
    return column.astype(str).where(column.notna(), "").to_numpy(dtype=object)


def _check_ratings(column: pd.Series | None, place: _Place) -> None:
    if column is None:
        return
    number = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~np.isfinite(number) | pd.api.types.is_bool_dtype(column.dtype)
    found = f"rating is {_first(column, bad)}"
    place.refuse(BadRatingError, bad, found, "a finite number", "Mend the row or leave the column out.")


def _first(column: pd.Series, bad: Bool[np.ndarray, " n"]) -> str:
    """The first bad value as a reader would see it."""
    if not bad.any():
        return ""
    value = column.to_numpy(dtype=object)[int(np.argmax(bad))]
    return "missing" if value is None or value is pd.NA or value != value else repr(value)


def _times(column: pd.Series | None, place: _Place) -> Any:
    """Times as int64, MISSING_TIME where there is none; dates and fractions in microseconds."""
    if column is None:
        return MISSING_TIME
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        dates = pd.to_datetime(column, utc=True).dt.tz_localize(None).to_numpy("datetime64[us]")
        return dates.astype(np.int64)  # NaT is the least int64, as MISSING_TIME is
    if pd.api.types.is_integer_dtype(column.dtype):
        return column.to_numpy(dtype=np.int64, na_value=MISSING_TIME)
    return _times_from_floats(column, place)


def _times_from_floats(column: pd.Series, place: _Place) -> Int[np.ndarray, " n"]:
    number = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    missing = np.isnan(number)
    if not pd.api.types.is_numeric_dtype(column.dtype):
        missing &= np.isin(np.char.lower(_as_text(column).astype(str)), NO_VALUE)
    unit = 1 if np.array_equal(number, np.floor(number), equal_nan=True) else _MICROSECONDS
    bad = ~(missing | (np.abs(number) < 2.0**62 / unit))
    place.refuse(
        BadTimestampError,
        bad,
        f"timestamp is {_first(column, bad)}",
        "a finite number, a date as 2026-01-31, or nothing",
        "Write all rows alike: seconds since 1970, for instance.",
    )
    return np.where(missing, MISSING_TIME, np.rint(np.where(missing, 0, number) * unit).astype(np.int64))


def _labels(column: pd.Series, place: _Place) -> Int[np.ndarray, " n"]:
    code, words = pd.factorize(column.astype(object), use_na_sentinel=False)
    label = np.array([LABELS.get(str(word).strip().lower(), -1) for word in words], dtype=np.int8)[code]
    bad = label < 0
    found = f"split is {_first(column, bad)}"
    expected = "0, 1, 2 or train, valid, test"
    place.refuse(BadSplitError, bad, found, expected, "Mend the row, or rename a column of other meaning.")
    return label


def _unique_pairs(frame: pd.DataFrame, policy: str, place: _Place) -> tuple[pd.DataFrame, int]:
    """One row per (user, item): the latest; among equal or missing times the first in the file."""
    pair = _pairs(frame)
    again = pair.duplicated().to_numpy()
    if not again.any():
        return frame, 0
    if policy == "error":
        at = int(np.argmax(again))
        first = place.row[int(np.argmax(pair.to_numpy() == pair.iloc[at]))]
        row = frame.iloc[at]
        found = f"user {row['user']}, item {row['item']} is given again (first in row {first})"
        mend = "Remove it, or set data.duplicates: keep_latest."
        place.refuse(DuplicatePairError, again, found, "each pair once", mend)
    # ~time falls as time rises, without the overflow that -time has at MISSING_TIME.
    order = np.lexsort((~frame["time"].to_numpy(), pair.to_numpy()))
    leads = np.flatnonzero(~pair.iloc[order].duplicated().to_numpy())
    return frame.iloc[np.sort(order[leads])], int(again.sum())


def _pairs(frame: pd.DataFrame) -> pd.Series:
    """One number for each (user, item)."""
    user, _ = pd.factorize(frame["user"])
    item, items = pd.factorize(frame["item"])
    return pd.Series(user.astype(np.int64) * len(items) + item)


def _long_enough(frame: pd.DataFrame, config: DataConfig, where: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """The k-core, and what the policy for users too short to split leaves of it."""
    user, users = pd.factorize(frame["user"])
    item, items = pd.factorize(frame["item"])
    least_user, least_item = config.min_user_interactions, config.min_item_interactions
    core = k_core(user, item, least_user, least_item)
    n_short = 0
    if config.split == "leave_one_out":
        length = np.bincount(user[core], minlength=len(users))
        short = (length > 0) & (length < LEAST_TO_SPLIT)
        n_short = int(short.sum())
        if n_short and config.short_users == "error":
            raise _too_short(str(users[short][0]), int(length[short][0]), n_short, where)
    keep = core
    if n_short and config.short_users == "drop":
        keep = k_core(user, item, max(least_user, LEAST_TO_SPLIT), least_item)
    if not keep.any():
        found = f"none of {len(frame)} interactions is left after filtering"
        mend = "Lower data.min_user_interactions or min_item_interactions, or set data.short_users: keep."
        raise EmptyFileError(found, "some", mend, where)
    n_core, n_kept = len(np.unique(user[core])), len(np.unique(user[keep]))
    return frame[keep], {
        "users_dropped": len(users) - n_core,
        "short_users_dropped": n_core - n_kept,
        "short_users_kept": n_short if config.short_users == "keep" else 0,
        "items_dropped": len(items) - len(np.unique(item[keep])),
        "interactions_dropped": int((~keep).sum()),
    }


def _too_short(user: str, length: int, n_short: int, where: str) -> TooFewInteractionsError:
    more = f" ({n_short - 1} more such users)" if n_short > 1 else ""
    return TooFewInteractionsError(
        f"user {user} has {length} interactions{more}",
        f"at least {LEAST_TO_SPLIT}: one each to train, validate and test",
        "Set data.short_users to drop or keep.",
        where,
    )


def k_core(
    user: Int[np.ndarray, " n"], item: Int[np.ndarray, " n"], least_user: int, least_item: int
) -> Bool[np.ndarray, " n"]:
    """The largest set of rows in which each user has `least_user` rows and each item `least_item`."""
    keep = np.ones(len(user), dtype=bool)
    while True:
        of_user = np.bincount(user[keep], minlength=1 + int(user.max(initial=0)))
        of_item = np.bincount(item[keep], minlength=1 + int(item.max(initial=0)))
        still = keep & (of_user[user] >= least_user) & (of_item[item] >= least_item)
        if np.array_equal(still, keep):
            return keep
        keep = still
