"""What an item's content alone is worth: items rank by their likeness to those the client has.

Nothing is learnt and nothing is shared: a client needs its own training items and the catalogue's features. A method
that uses content and does not beat this has learnt nothing from the others.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from scipy.sparse import csr_matrix

from fedray.types import ItemFeatures, Ragged

PREFIX = "content_"
MISSING = np.float32(-2.0)  # below every cosine
ROUNDING = 1e-6

Rows = Int64[np.ndarray, " rows"]
Scorer = Callable[[Rows], Float32[np.ndarray, "rows items"]]


def content_scorers(features: ItemFeatures | None, train: Ragged) -> dict[str, Scorer]:
    """`content_<feature>` -> its scores for chosen rows of `train`; a feature that no item has is left out."""
    if features is None:
        return {}
    there = [name for name, present in features.present.items() if present.any()]
    return {f"{PREFIX}{name}": content_scorer(features.tables[name], features.present[name], train) for name in there}


def content_scorer(table: Float[np.ndarray, "items d"], present: Bool[np.ndarray, " items"], train: Ragged) -> Scorer:
    """The mean cosine of an item with the client's training items (those that have the feature), about the mean item.

    An item without the feature scores -2, below all that have it. A client none of whose items has it: 0 for all.
    """
    vectors = directions(table, present)

    def score(rows: Rows) -> Float32[np.ndarray, "rows items"]:
        profiles = mean_vectors(vectors, present, train.take(rows))
        return np.where(present, profiles @ vectors.T, MISSING)

    return score


def directions(
    table: Float[np.ndarray, "items d"], present: Bool[np.ndarray, " items"]
) -> Float32[np.ndarray, "items d"]:
    """Each present item's direction from the mean of the present ones; zeros for the others.

    Centred, because what one encoder makes has a large common part. It says nothing of an item, but left in, it makes
    all cosines alike, and those items come first that are near the mean, whatever a client likes. An item that is
    nearer to the mean than rounding can tell has no direction: zeros.
    """
    mine = table[present]
    largest = max(float(np.abs(mine).max()), float(np.finfo(np.float32).tiny))  # squares of large numbers overflow
    scaled = np.divide(mine, largest, dtype=np.float32)
    from_mean = scaled - scaled.mean(axis=0, dtype=np.float64).astype(np.float32)
    length = np.linalg.norm(from_mean, axis=1, keepdims=True)
    far = length > ROUNDING * np.sqrt(table.shape[1])
    out = np.zeros(table.shape, np.float32)
    out[present] = np.where(far, from_mean / np.where(far, length, 1), 0)
    return out


def mean_vectors(
    vectors: Float32[np.ndarray, "items d"], present: Bool[np.ndarray, " items"], lists: Ragged
) -> Float32[np.ndarray, "rows d"]:
    """The mean vector of each row's present items; zeros where there is none."""
    weight = present[lists.values].astype(np.float32)
    chosen = csr_matrix((weight, lists.values, lists.ptr), shape=(len(lists.ptr) - 1, len(vectors)))
    counts = np.asarray(chosen.sum(axis=1), np.float32).reshape(-1, 1)
    return np.asarray(chosen @ vectors, np.float32) / np.maximum(counts, 1)
