"""Raw feature tables as read-only float32 matrices, row = dense item id.

An item without a row has zeros and `present` False. Integer item ids may index the rows directly; text ids
need the ids of the rows. Values must be finite; float16 and float64 become float32.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped

from fedray import seeding
from fedray.data.sources import RawFeature
from fedray.errors import FeatureShapeError, FeatureValueError
from fedray.types import ItemFeatures


def align(
    raw: Mapping[str, RawFeature], item_ids: Shaped[np.ndarray, " items"], listed: np.ndarray | None = None
) -> tuple[ItemFeatures | None, dict[str, int]]:
    """The features of the items `item_ids`, in that order, and how many items each modality lacks.

    `listed`: every item id the data know of (None: unknown). A table without ids of its own must have
    exactly one row for each number up to the largest of these. Raises `FeatureShapeError`,
    `FeatureValueError`.
    """
    if not raw:
        return None, {}
    tables, present, counts = {}, {}, {}
    for modality, feature in sorted(raw.items()):
        table = _finite(feature)
        row = _rows(feature, item_ids, listed)
        tables[modality], present[modality] = _gathered(table, row)
        counts[f"items_without_{modality}"] = int((row < 0).sum())
    return ItemFeatures(tables, present, fingerprint(tables, present)), counts


def _finite(feature: RawFeature) -> Float[np.ndarray, "rows d"]:
    """The table as float32, judged."""
    table = feature.table
    if table.ndim != 2 or 0 in table.shape:
        mend = "Save one row of numbers for each item."
        raise FeatureShapeError(f"the shape is {table.shape}", "[rows, d]", mend, feature.where)
    if table.dtype.kind not in "fiub":
        raise FeatureValueError(f"the values are {table.dtype}", "real numbers", "", feature.where)
    with np.errstate(over="ignore"):
        floats = table.astype(np.float32)
    bad = ~np.isfinite(floats).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        value = floats[row][~np.isfinite(floats[row])][0]
        mend = "Leave the row out and give an ids file; items without a row are masked."
        found = f"{value} in row {row} (counted from 0; {int(bad.sum())} such rows)"
        raise FeatureValueError(found, "finite float32 numbers", mend, feature.where)
    return floats


def _rows(
    feature: RawFeature, item_ids: Shaped[np.ndarray, " items"], listed: np.ndarray | None
) -> Int[np.ndarray, " items"]:
    """The table row of each item, -1 where it has none."""
    if feature.item is None:
        _check_positional(feature, item_ids, listed)
        return item_ids.astype(np.int64)
    ids = pd.Index(feature.item).astype(str)
    if not ids.is_unique:
        raise FeatureShapeError(f"item {ids[ids.duplicated()][0]} has two rows", "one row an item", "", feature.where)
    row = ids.get_indexer(pd.Index(item_ids).astype(str)).astype(np.int64)
    if (row < 0).all():
        found = f"none of the {len(ids)} rows belongs to an item with interactions (the first is for {ids[0]})"
        raise FeatureShapeError(found, f"ids as in the interactions, such as {item_ids[0]}", "", feature.where)
    return row


def _check_positional(feature: RawFeature, item_ids: Shaped[np.ndarray, " items"], listed: np.ndarray | None) -> None:
    """Row r is item r only if the ids are numbers and the rows reach exactly as far as they do."""
    rows = len(feature.table)
    mend = "Row r is item id r; source folder also takes the id of each row, one a line, in features/item_ids.txt."
    if item_ids.dtype.kind not in "iu":
        raise FeatureShapeError(f"{rows} rows without ids, and text item ids", "ids", mend, feature.where)
    known = item_ids if listed is None else listed
    needed = int(max(known.max(initial=-1), item_ids.max(initial=-1))) + 1
    if rows < needed or (listed is not None and rows > needed):
        exactly = "at least " if listed is None else ""
        expected = f"{exactly}{needed}, for the item ids 0 to {needed - 1}"
        raise FeatureShapeError(f"there are {rows} rows", expected, mend, feature.where)


def _gathered(
    table: Float[np.ndarray, "rows d"], row: Int[np.ndarray, " items"]
) -> tuple[Float[np.ndarray, "items d"], Bool[np.ndarray, " items"]]:
    there = row >= 0
    out = np.where(there[:, None], table[np.where(there, row, 0)], np.float32(0))
    out.flags.writeable = False
    there.flags.writeable = False
    return out, there


def filled(features: ItemFeatures, policy: str, item_ids: np.ndarray) -> ItemFeatures:
    """What `data.missing` makes of items without a feature: `mask` leaves them zero and not present, `mean` gives them
    the mean of the others and calls them present, `error` raises `FeatureValueError` with their ids."""
    gaps = {m: np.flatnonzero(~there) for m, there in features.present.items() if not there.all()}
    if policy == "mask" or not gaps:
        return features
    if policy == "error":
        raise _gaps_refused(gaps, item_ids)
    tables, present = dict(features.tables), dict(features.present)
    for modality, rows in gaps.items():
        table = tables[modality].copy()
        table[rows] = table[present[modality]].mean(axis=0, dtype=np.float64)
        table.flags.writeable = False
        tables[modality], present[modality] = table, np.ones(len(table), bool)
    return ItemFeatures(tables, present, fingerprint(tables, present))


def _gaps_refused(gaps: Mapping[str, np.ndarray], item_ids: np.ndarray) -> FeatureValueError:
    ids = {m: [str(i) for i in np.sort(item_ids[rows])] for m, rows in gaps.items()}
    parts = [f"{len(i)} without {m} (ids {', '.join(i[:10])}{', ...' * (len(i) > 10)})" for m, i in ids.items()]
    mend = "data.missing: error refuses them; mask or mean goes on without."
    return FeatureValueError(f"items lack features: {'; '.join(parts)}", "every feature of every item", mend)


def shuffled(features: ItemFeatures, seed: int) -> ItemFeatures:
    """Every item with the features of another, drawn from the data's seed; an item's features stay together."""
    n = len(next(iter(features.present.values())))
    order = seeding.generator(seeding.key(seed, "item_ids", client=-1)).permutation(n)
    tables, present = ({m: v[order] for m, v in part.items()} for part in (features.tables, features.present))
    return joined(None, tables, present)


def joined(
    own: ItemFeatures | None, tables: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]
) -> ItemFeatures:
    """The data's own features with others laid over them; arrays are made read-only."""
    for array in (*tables.values(), *present.values()):
        array.flags.writeable = False
    merged = ({**own.tables, **tables}, {**own.present, **present}) if own else (dict(tables), dict(present))
    return ItemFeatures(*merged, fingerprint(*merged))


def fingerprint(tables: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]) -> str:
    """12 hex digits of the SHA-256 over names, shapes and bytes."""
    digest = hashlib.sha256()
    for modality in sorted(tables):
        digest.update(f"{modality}{tables[modality].shape}".encode())
        digest.update(np.ascontiguousarray(tables[modality]).tobytes())
        digest.update(present[modality].tobytes())
    return digest.hexdigest()[:12]
