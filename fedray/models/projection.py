"""An item's content before and at the start of its projection: brought to one scale, and projected at random or along
what tells the catalogue's items apart."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

Start = Literal["random", "principal", "whitened"]


def scaled(table: Float[np.ndarray, "M n"], present: Bool[np.ndarray, " M"]) -> Float32[np.ndarray, "M n"]:
    """Columns of mean 0, numbers of mean square 1, over the items that have the feature; 0 for the others."""
    centred = table - table[present].mean(axis=0, dtype=np.float64)
    scale = np.sqrt(np.mean(np.square(centred[present]), dtype=np.float64)) or 1.0
    return np.where(present[:, None], centred / scale, 0.0).astype(np.float32)


def axes(
    table: Float[np.ndarray, "M n"], present: Bool[np.ndarray, " M"], width: int, whiten: bool
) -> Float32[np.ndarray, "width n"]:
    """The principal axes of the centred `table` over its present rows, as rows, the widest first.

    Scaled so that the projected numbers have mean square 1: by one factor for all axes, or (whiten) by one each, after
    which every axis counts alike. Where the content has fewer axes than `width` (or none wider than rounding), the
    rest are zero rows. An axis points to where its largest entry is positive.
    """
    mine = table[present].astype(np.float64)
    values, vectors = np.linalg.eigh(mine.T @ mine / max(len(mine), 1))
    values, vectors = values[::-1][:width], vectors[:, ::-1][:, :width]
    wide = values > 1e-9 * max(values[0], 0.0)
    values, vectors = values[wide], vectors[:, wide]
    upright = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    scale = values**-0.5 if whiten else np.full(len(values), np.mean(values) ** -0.5 if len(values) else 0.0)
    out = np.zeros((width, table.shape[1]), np.float32)
    out[: len(values)] = (vectors * upright * scale).T
    return out
