"""One segment: a safetensors file of some rows, written once and checked whenever it is read.

It is read with plain reads, not mapped: a mapped file that is cut short under a reader kills the process, and
each map holds one of its open files.
"""

import os
import zlib
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple
from uuid import uuid4

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt32
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from safetensors.numpy import save

from fedray.embeddings.folder import write_whole
from fedray.embeddings.index import KEY, KEY_BYTES, Flags, Keys
from fedray.errors import StoreError

SUFFIX = ".safetensors"
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
_CODES = {"float32": "F32", "float16": "F16"}
_BYTES = {"F32": 4, "F16": 2, "U32": 4, "U8": 1}
_LONGEST_HEADER = 1 << 16

Rows = Float[np.ndarray, "n dim"]
"""float32 or float16, as stored."""

Crcs = UInt32[np.ndarray, " n"]


class Segment(NamedTuple):
    """What is needed to read rows: bytes before the first one, and their length."""

    file: Path
    rows: int
    dim: int
    dtype: str
    value_at: int


class Loaded(NamedTuple):
    """A segment with its keys [n] and the checksums [n] it claims; its values stay on the disk."""

    segment: Segment
    keys: Keys
    crcs: Crcs


class Torn(NamedTuple):
    """A file that is not a whole segment of this store."""

    why: str


def write(folder: Path, fingerprint: str, keys: Keys, rows: Rows) -> Loaded:
    """One new segment in `folder`, on the disk when this returns. Memory: about twice the rows."""
    crcs = checksums(keys, rows)
    tensors: dict[str, np.ndarray] = {"key": keys.view(np.uint8).reshape(-1, KEY_BYTES), "crc": crcs, "value": rows}
    file = folder / f"{uuid4().hex}{SUFFIX}"
    write_whole(file, save(tensors, {"fingerprint": fingerprint}))
    loaded = load(file, fingerprint, rows.dtype.name)
    if isinstance(loaded, Torn):
        raise StoreError(f"written, and now {loaded.why}", "the segment as written", where=str(file))
    return loaded


def load(file: Path, fingerprint: str, dtype: str) -> Loaded | Torn:
    """Header, keys and checksums of a segment; its values are not looked at. Raises `OSError`."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        header = _header(opened, size)
        why = header if isinstance(header, str) else _mismatch(header, fingerprint, dtype)
        if why or isinstance(header, str):
            return Torn(why)
        start = size - header.end
        keys = _array(opened, start, header.key, KEY)
        crcs = _array(opened, start, header.crc, np.dtype("<u4"))
    n, dim = header.value.shape
    if len(keys) != n or len(crcs) != n:
        return Torn("breaks off")
    return Loaded(Segment(file, n, dim, dtype, start + header.value.data_offsets[0]), keys, crcs)


def read(segment: Segment, rows: Int[np.ndarray, " n"]) -> Rows:
    """The values of `rows` (at least one, ascending), unchecked; zeros beyond the end of a file that breaks off."""
    width = segment.dim * DTYPES[segment.dtype].itemsize
    raw = bytearray()
    with segment.file.open("rb") as file:
        for first, last in _stretches(rows):
            wanted = (last - first + 1) * width
            raw += os.pread(file.fileno(), wanted, segment.value_at + first * width).ljust(wanted, b"\0")
    return np.frombuffer(raw, DTYPES[segment.dtype]).reshape(len(rows), segment.dim)


def checksums(keys: Keys, rows: Rows) -> Crcs:
    """CRC-32 of each row's bytes followed by its key's: a row under another's key is damage, too."""
    key, value, width = keys.tobytes(), memoryview(rows.tobytes()), rows.itemsize * rows.shape[1]
    each = (
        zlib.crc32(key[i * KEY_BYTES : (i + 1) * KEY_BYTES], zlib.crc32(value[i * width : (i + 1) * width]))
        for i in range(len(rows))
    )
    return np.fromiter(each, np.uint32, len(rows))


def intact(loaded: Loaded) -> tuple[Rows, Flags]:
    """All rows of a segment, and which are as they were written."""
    values = read(loaded.segment, np.arange(loaded.segment.rows))
    return values, checksums(loaded.keys, values) == loaded.crcs


class _Tensor(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    dtype: str
    shape: list[PositiveInt]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]

    def fits(self) -> bool:
        start, end = self.data_offsets
        return end - start == prod(self.shape) * _BYTES.get(self.dtype, 0)


class _Header(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    metadata: Annotated[dict[str, str], Field(alias="__metadata__")]
    key: _Tensor
    crc: _Tensor
    value: _Tensor

    @property
    def end(self) -> int:
        return max(t.data_offsets[1] for t in (self.key, self.crc, self.value))


def _header(file: IO[bytes], size: int) -> _Header | str:
    """The header, or why there is none."""
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, _LONGEST_HEADER):
        return "breaks off" if length <= _LONGEST_HEADER else "no header"
    try:
        header = _Header.model_validate_json(file.read(length))
    except ValueError:
        return "header not readable"
    spans = sorted(t.data_offsets for t in (header.key, header.crc, header.value))
    tiled = spans[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(spans))
    if not tiled or not all(t.fits() for t in (header.key, header.crc, header.value)):
        return "header not consistent"
    return header if size == 8 + length + header.end else f"{size} bytes, its header says {8 + length + header.end}"


def _mismatch(header: _Header, fingerprint: str, dtype: str) -> str:
    """Why a header that is fine in itself is none of this store; empty if it is."""
    if header.metadata != {"fingerprint": fingerprint} or header.value.dtype != _CODES[dtype]:
        return f"belongs to {header.metadata.get('fingerprint')}, {header.value.dtype}"
    n = header.value.shape[0]
    if len(header.value.shape) != 2 or header.key.shape != [n, KEY_BYTES] or header.crc.shape != [n]:
        return "header not consistent"
    return "" if (header.key.dtype, header.crc.dtype) == ("U8", "U32") else "header not consistent"


def _array(file: IO[bytes], start: int, tensor: _Tensor, dtype: np.dtype[Any]) -> Shaped[np.ndarray, " n"]:
    first, last = tensor.data_offsets
    raw = os.pread(file.fileno(), last - first, start + first)
    return np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)


def _stretches(rows: Int[np.ndarray, " n"]) -> Iterator[tuple[int, int]]:
    """First and last of each stretch of consecutive rows: one read serves all of it."""
    breaks = np.flatnonzero(np.diff(rows) != 1)
    firsts, lasts = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(rows) - 1]])
    return zip(rows[firsts].tolist(), rows[lasts].tolist())
