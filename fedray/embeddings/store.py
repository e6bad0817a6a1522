"""An append-only store of one encoder's embeddings, for several jobs and machines at once. See the package."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from fedray.embeddings import segments
from fedray.embeddings.claims import Claim, Claims
from fedray.embeddings.folder import CLAIMS, SEGMENTS, USES, Dtype, hold, names, prepare, refused, write_whole
from fedray.embeddings.index import NOWHERE, PLACE, Flags, Index, Keys, Places, as_bytes, as_keys, first_of_each
from fedray.encoders import fingerprint
from fedray.errors import StoreError

PATIENCE_S = 60.0
_USE = re.compile(r"[\w-][\w.-]{0,199}", re.ASCII)


class EmbeddingStore:
    """Rows of `dim` numbers under 32-byte keys. For use by one thread at a time; close it, or use it in a `with`.

    description: the encoder's, as `fedray.encoders` says. dtype: what the rows are kept as; they are given and
    taken as float32 all the same. Opening waits up to a minute for a collection to end (`StoreBusyError`) and raises
    `StoreError` where the folder cannot be written, is no store or belongs to another encoder.

    dim: None before the first row is known. damaged: rows whose checksum failed so far. torn: name of a segment that
    was skipped whole -> why. What others write is seen by `refresh`, `write` and `claim`, not by the rest.
    """

    def __init__(self, root: Path, description: Mapping[str, Any], dtype: Dtype) -> None:
        if dtype not in segments.DTYPES:
            raise StoreError(f"dtype {dtype!r}", " or ".join(segments.DTYPES))
        self.folder = prepare(root, description, dtype)
        self.dtype: Dtype = dtype
        self.dim: int | None = None
        self.damaged = 0
        self.torn: dict[str, str] = {}
        self._fingerprint = fingerprint(description)
        self._lock = hold(self.folder, "shared", PATIENCE_S)
        self._claims = Claims(self.folder / CLAIMS)
        self._index = Index()
        self._segments: list[segments.Segment] = []
        self._known: set[str] = set()
        self.refresh()

    def __len__(self) -> int:
        """Rows known; a key stored twice counts twice."""
        return len(self._index)

    def __enter__(self) -> "EmbeddingStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def refresh(self) -> None:
        """See what others have written since. Only new segments are opened."""
        with refused(self.folder / SEGMENTS, "cannot be listed"):
            fresh = names(self.folder / SEGMENTS, segments.SUFFIX, self._known)
        loaded = [self._load(name) for name in fresh]
        self._take_in([one for one in loaded if one])

    def has(self, keys: Sequence[bytes]) -> Bool[np.ndarray, " n"]:
        """Which of `keys` are stored. A row may still turn out damaged when it is read."""
        return self._index.has(as_keys(keys))

    def read(self, keys: Sequence[bytes]) -> tuple[Float32[np.ndarray, "n dim"], Bool[np.ndarray, " n"]]:
        """Rows, and which of them were found; the others are zeros.

        A damaged row is not found, is counted, and is no longer stored as far as this object knows: claim it, encode
        it and write it again.
        """
        wanted = as_keys(keys)
        values = np.zeros((len(wanted), self.dim or 0), np.float32)
        found = np.zeros(len(wanted), bool)
        left = np.arange(len(wanted))
        while len(left := left[self._index.has(wanted[left])]):
            places = self._index.find(wanted[left])
            values[left], good = self._fetch(wanted[left], places)
            found[left] = good
            self._forget(places[~good])
            left = left[~good]  # a key may be stored twice: try its other row
        return values, found

    def write(self, keys: Sequence[bytes], values: Float32[np.ndarray, "n dim"]) -> int:
        """Store rows as one new segment, on the disk when this returns; the number written.

        Keys that are stored already are left out, and of equal keys all but the first. Raises `StoreError` for rows
        of another length than those there are, for NaN and infinity, for numbers beyond 65504 where the store keeps
        float16, and where the disk refuses.
        """
        given = as_keys(keys)
        rows = self._rows(given, values)
        self.refresh()
        fresh = np.flatnonzero(first_of_each(given) & ~self._index.has(given))
        if len(fresh):
            where = self.folder / SEGMENTS
            self._take_in([segments.write(where, self._fingerprint, given[fresh], rows[fresh])])
            self.dim = rows.shape[1]
        return len(fresh)

    def claim(self, keys: Sequence[bytes], at_most: int) -> Claim:
        """The first `at_most` of `keys` that are neither stored nor claimed by a living other, now claimed by this one.

        Keys this object has claimed before and not yet written are given again: leave out those in work. `others`:
        all of `keys` that living others have claimed; they will be stored, or come free.
        """
        with self._claims.turn():
            # In this order: a claim that is gone by now may be gone because its rows were written.
            self._claims.look(self._index.has)
            self.refresh()
            self._claims.settle(self._index.has)
            wanted = as_keys(keys)
            return self._claims.pick(as_bytes(wanted[~self._index.has(wanted)]), at_most)

    def release(self, keys: Sequence[bytes]) -> None:
        """Give claims back that will not be written."""
        with self._claims.turn():
            self._claims.release(keys)

    def use(self, name: str, keys: Sequence[bytes]) -> None:
        """Keep these rows at the next collection, stored or not yet; replaces what `name` asked for before.

        name: letters, digits, dot, dash and underscore.
        """
        if not _USE.fullmatch(name):
            raise StoreError(f"name {name!r}", "1 to 200 letters, digits, dots, dashes and underscores, no dot first")
        write_whole(self.folder / USES / f"{name}.keys", np.unique(as_keys(keys)).tobytes())

    def close(self) -> None:
        """Give all claims back and let the store go. Do not use it after."""
        with refused(self.folder / CLAIMS, "cannot be released"):
            self._claims.close()
        self._lock.close()

    def _load(self, name: str) -> segments.Loaded | None:
        """A segment not known yet; None, and noted, if it cannot be used."""
        try:
            loaded = segments.load(self.folder / SEGMENTS / name, self._fingerprint, self.dtype)
        except OSError as error:
            loaded = segments.Torn(f"cannot be read: {error.strerror}")
        self._known.add(name)
        if isinstance(loaded, segments.Loaded):
            self.dim = self.dim or loaded.segment.dim
            if loaded.segment.dim == self.dim:
                return loaded
            loaded = segments.Torn(f"rows of {loaded.segment.dim} numbers among rows of {self.dim}")
        self.torn[name] = loaded.why
        return None

    def _take_in(self, loaded: Sequence[segments.Loaded]) -> None:
        """All at once: one sort for the thousands of segments a store may open with."""
        places = [_places(len(self._segments) + i, one) for i, one in enumerate(loaded)]
        if loaded:
            self._index.add(np.concatenate([one.keys for one in loaded]), np.concatenate(places))
        self._segments += [one.segment for one in loaded]
        self._known |= {one.segment.file.name for one in loaded}

    def _fetch(self, keys: Keys, places: Places) -> tuple[Float32[np.ndarray, "n dim"], Flags]:
        """The rows at `places`, and which of them have the checksum of their key; zeros for the others."""
        values, good = np.zeros((len(keys), self.dim or 0), np.float32), np.zeros(len(keys), bool)
        order = np.lexsort((places["row"], places["segment"]))
        borders = np.flatnonzero(np.diff(places["segment"][order])) + 1
        for part in np.split(order, borders):
            try:
                rows = segments.read(self._segments[places["segment"][part[0]]], places["row"][part])
            except OSError:
                continue  # gone, or unreadable: as good as damaged
            fine = segments.checksums(keys[part], rows) == places["crc"][part]
            values[part[fine]], good[part] = rows[fine], fine
        return values, good

    def _forget(self, places: Places) -> None:
        if len(places):
            gone = np.unique(places)
            self._index.drop(gone)
            self.damaged += len(gone)

    def _rows(self, keys: Keys, values: Float32[np.ndarray, "n dim"]) -> np.ndarray:
        """`values` as they are stored; `StoreError` if they cannot be."""
        if values.ndim != 2 or len(values) != len(keys) or values.shape[1] < 1:
            raise StoreError(f"values of shape {values.shape}", f"one row of numbers for each of {len(keys)} keys")
        if self.dim not in (None, values.shape[1]):
            raise StoreError(f"rows of {values.shape[1]} numbers", f"{self.dim}, as stored", where=str(self.folder))
        limit = np.finfo(segments.DTYPES[self.dtype]).max
        largest = np.abs(values).max(initial=0.0)
        if not np.isfinite(largest):
            raise StoreError("NaN or infinity in an embedding", "finite numbers", "Leave that item out.")
        if largest > limit:
            mend = "Store this encoder's embeddings as float32."
            raise StoreError(f"the number {largest:g} in an embedding", f"at most {limit:g} for {self.dtype}", mend)
        return np.ascontiguousarray(values, segments.DTYPES[self.dtype])


def _places(number: int, loaded: segments.Loaded) -> Places:
    places = np.full(loaded.segment.rows, NOWHERE, PLACE)
    places["segment"] = number
    places["row"] = np.arange(loaded.segment.rows)
    places["crc"] = loaded.crcs
    return places
