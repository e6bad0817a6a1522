"""Embeddings without weights: hashed words of a text; colours, and where they are, of an image. Made in microseconds,
the same on every machine. The floor that a pretrained encoder must beat, and its stand-in where there is none.

    text     each lower-cased word w adds s(w) (1 + log count) to the entry h(w); h and s from CRC-32
    image    64 numbers: root of the share of pixels in each cell of the 4 x 4 x 4 colour cube;
             192 numbers: mean red, green and blue of each field of an 8 x 8 grid

Both have unit L2 norm.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from pydantic import Field

from fedray.encoders import Encoder, Problem, Raw
from fedray.encoders._images import decode
from fedray.encoders._texts import checked
from fedray.encoders._weights import modality
from fedray.sections import EncoderConfig

SCHEME = 1
"""To be raised by whoever changes a number that comes out."""

_WORD = re.compile(r"[^\W_]+")
_SIDE, _FIELDS, _LEVELS = 64, 8, 4


class Config(EncoderConfig):
    """Settings of the `hashing` encoder."""

    name: Literal["hashing"] = "hashing"
    dim: int = Field(256, ge=2, le=65536, description="length of an embedding")


def describe(config: Config) -> dict[str, Any]:
    """See `fedray.encoders`."""
    return {"name": config.name, "input": modality(config), "dim": config.dim, "scheme": SCHEME}


def make(config: Config, device: str, max_pixels: int) -> Encoder:
    """See `fedray.encoders`. All the work is done in `prepare`; `device` does not matter."""
    if modality(config) == "text":
        return Encoder(config.dim, partial(_text, config.dim), partial(_stacked, config.dim))
    return Encoder(config.dim, partial(_image, config.dim, max_pixels), partial(_stacked, config.dim))


def _stacked(dim: int, items: Sequence[Float32[ndarray, " dim"]]) -> Float32[ndarray, "n dim"]:
    return np.stack(items) if len(items) else np.empty((0, dim), np.float32)


def _text(dim: int, raw: Raw) -> Float32[ndarray, " dim"] | Problem:
    text = checked(raw)
    if isinstance(text, Problem):
        return text
    counts = Counter(_WORD.findall(text.lower()))
    return _hashed(counts, dim) if counts else Problem("empty_text", "no word is in it")


def _hashed(counts: Counter[str], dim: int) -> Float32[ndarray, " dim"]:
    """Signs keep words that share an entry apart on average. A text whose words cancel out altogether goes unsigned."""
    codes = np.array([zlib.crc32(word.encode()) for word in counts], np.int64)
    weight = np.array([1 + math.log(n) for n in counts.values()])
    sign, entry = np.where(codes >> 31, 1.0, -1.0), (codes & 0x7FFFFFFF) % dim
    signed = np.bincount(entry, sign * weight, dim)
    return _unit(signed if signed.any() else np.bincount(entry, weight, dim))


def _unit(row: ndarray) -> Float32[ndarray, " dim"]:
    return (row / np.linalg.norm(row)).astype(np.float32)


def _image(dim: int, max_pixels: int, raw: Raw) -> Float32[ndarray, " dim"] | Problem:
    image = decode(raw, max_pixels)
    if isinstance(image, Problem):
        return image
    from PIL.Image import Resampling

    small = np.asarray(image.resize((_SIDE, _SIDE), Resampling.BOX), np.int64)
    numbers = np.concatenate([_colours(small), _layout(small)])
    return _unit(np.bincount(np.arange(len(numbers)) % dim, numbers, dim))


def _colours(small: ndarray) -> ndarray:
    """[64], of unit norm."""
    level = small * _LEVELS // 256
    cell = (level[..., 0] * _LEVELS + level[..., 1]) * _LEVELS + level[..., 2]
    return np.sqrt(np.bincount(cell.ravel(), minlength=_LEVELS**3) / cell.size)


def _layout(small: ndarray) -> ndarray:
    """[192], none negative: nothing cancels when it is folded to fewer numbers. Of norm up to 1."""
    width = _SIDE // _FIELDS
    means = small.reshape(_FIELDS, width, _FIELDS, width, 3).mean((1, 3)) / 255
    return means.ravel() / math.sqrt(means.size)
