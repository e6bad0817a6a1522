"""Who is about to encode what, so that two jobs on one catalogue share the work instead of doing it twice.

A process that claims has a file of its own, held locked for as long as it lives, to which it appends records: a
sign and a key, "+" for a claim and "-" for one taken back. A file that can be locked belongs to no living process
and is removed: a kill -9 loses the claims and nothing else. A claim ends by itself when its key is stored.
"""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from uuid import uuid4

import numpy as np

from fedray.embeddings.folder import locked, names, refused
from fedray.embeddings.index import KEY, KEY_BYTES, Flags, Keys, as_bytes, as_keys

TURN = ".lock"
_RECORD = 1 + KEY_BYTES
_TAKEN, _BACK = b"+", b"-"

Stored = Callable[[Keys], Flags]


class Claim(NamedTuple):
    """Keys this process has now, and those that living others have."""

    mine: list[bytes]
    others: list[bytes]


class _Other:
    """What another process has claimed, as far as its file was read."""

    def __init__(self) -> None:
        self.offset = 0
        self.keys: set[bytes] = set()

    def take_in(self, raw: bytes, stored: Stored) -> None:
        """Records appended since; the last may be half there, and is read next time."""
        whole = len(raw) // _RECORD
        self.offset += whole * _RECORD
        records = np.frombuffer(raw, np.uint8, whole * _RECORD).reshape(whole, _RECORD)
        keys = np.ascontiguousarray(records[:, 1:]).view(KEY).ravel()
        pending = ~stored(keys)  # a long job's file names much that is done: look at the rest only
        for sign, key in zip(records[pending, 0].tolist(), as_bytes(keys[pending])):
            (self.keys.add if sign == _TAKEN[0] else self.keys.discard)(key)


class Claims:
    """The claims on one encoder's folder, as one process sees them. For use by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._mine: set[bytes] = set()
        self._others: dict[str, _Other] = {}

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Only one process at a time looks and claims."""
        with refused(self._folder, "cannot be claimed in"), (self._folder / TURN).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def look(self, stored: Stored) -> None:
        """See what living others have claimed since; remove what the dead left. Inside `turn`."""
        own = Path(self._file.name).name if self._file else ""
        found = {name: self._read(name, stored) for name in names(self._folder) if name != own}
        self._others = {name: other for name, other in found.items() if other}

    def settle(self, stored: Stored) -> None:
        """Forget the claims on keys that are stored by now."""
        for keys in (self._mine, *(other.keys for other in self._others.values())):
            listed = as_keys(list(keys))
            keys.difference_update(as_bytes(listed[stored(listed)]))

    def pick(self, keys: Iterable[bytes], at_most: int) -> Claim:
        """Claim the first `at_most` of `keys` that no other has. Inside `turn`, after `look`."""
        elsewhere = {key for other in self._others.values() for key in other.keys}
        each = list(dict.fromkeys(keys))
        others = [key for key in each if key in elsewhere]
        mine = [key for key in each if key not in elsewhere][: max(0, at_most)]
        self._append(_TAKEN, [key for key in mine if key not in self._mine])
        self._mine.update(mine)
        return Claim(mine, others)

    def release(self, keys: Iterable[bytes]) -> None:
        """Give claims back; those not held are passed over."""
        back = self._mine.intersection(keys)
        self._append(_BACK, sorted(back))
        self._mine -= back

    def close(self) -> None:
        """Give everything back."""
        if self._file:
            Path(self._file.name).unlink(missing_ok=True)
            self._file.close()
        self._file, self._mine, self._others = None, set(), {}

    def _read(self, name: str, stored: Stored) -> _Other | None:
        """The other process behind this file; None if there is none any more."""
        try:
            file = (self._folder / name).open("rb")
        except FileNotFoundError:
            return None
        with file:
            if locked(file, "shared"):  # its owner holds it alone: there is no owner
                (self._folder / name).unlink(missing_ok=True)
                return None
            other = self._others.get(name) or _Other()
            file.seek(other.offset)
            other.take_in(file.read(), stored)
        return other

    def _append(self, sign: bytes, keys: Sequence[bytes]) -> None:
        if not keys:
            return
        if self._file is None:
            self._file = self._own_file()
        self._file.write(b"".join(sign + key for key in keys))
        self._file.flush()
        os.fsync(self._file.fileno())  # over NFS others see only what has left this machine

    def _own_file(self) -> IO[bytes]:
        """Made inside `turn`: nobody may find it before it is locked."""
        file = (self._folder / uuid4().hex).open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file
