"""The split of a clean table, with the cold items out of training (`splits` says how) and short users settled."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from fedray.config import DataConfig
from fedray.data import splits
from fedray.errors import TooFewInteractionsError
from fedray.types import TEST

Labels = Int[np.ndarray, " n"]


def labelled(
    frame: pd.DataFrame,
    item: Int[np.ndarray, " n"],
    cold: Int[np.ndarray, " cold"],
    config: DataConfig,
    where: str,
) -> tuple[Labels, dict[str, int]]:
    """Each row's label, DROPPED where it must go; and what cold items cost, empty without them."""
    is_cold = np.isin(item, cold)
    user, ids = pd.factorize(frame["user"], sort=True)
    if config.split == "given" and "split" in frame:
        label = frame["split"].to_numpy()
        label, short = np.where(is_cold & (label != TEST), splits.DROPPED, label).astype(label.dtype), 0
    else:
        label = splits.leave_one_out(user, item, frame["time"].to_numpy(), config.seed, is_cold)
        label, short = _settled(label, user, is_cold, config, np.asarray(ids), where)
    if not len(cold):
        return label, {}
    kept = label != splits.DROPPED  # those of short users count too
    return label, {
        "cold_items": len(cold),
        "cold_targets": int((is_cold & (label == TEST)).sum()),
        "cold_short_users": short,
        "cold_interactions_dropped": int((~kept).sum()),
    }


def _settled(
    label: Labels, user: np.ndarray, is_cold: Bool[np.ndarray, " n"], config: DataConfig, ids: np.ndarray, where: str
) -> tuple[Labels, int]:
    """Users that are short only because cold rows went: dropped, kept for training, or refused; and their number."""
    length, n_cold = np.bincount(user), np.bincount(user, is_cold).astype(np.int64)
    left = splits.rows_left(length, n_cold)
    short = (left < splits.LEAST) & (n_cold > 0)
    n = int(short.sum())
    if n and config.short_users == "error":
        more = f" ({n - 1} more such users)" if n > 1 else ""
        raise TooFewInteractionsError(
            f"user {ids[short][0]} has {left[short][0]} interactions besides all but one of its cold items{more}",
            f"at least {splits.LEAST}: a cold one to test and two others to train and validate",
            "Set data.short_users to drop or keep, or lower data.cold_items.",
            where,
        )
    if config.short_users == "drop":
        label[short[user]] = splits.DROPPED
    return label, n
