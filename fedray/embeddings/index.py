"""Where each key's row is: sorted arrays instead of a dictionary, 44 bytes a row.

Keys are 32 bytes as numpy dtype "S32", which sorts and compares like the bytes themselves: all have one length,
so the padding rule for zeros at the end changes nothing. They must never leave numpy one by one, for then it does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from fedray.errors import StoreError

KEY_BYTES = 32
KEY = np.dtype("S32")
PLACE = np.dtype([("segment", np.int32), ("row", np.int32), ("crc", np.uint32)])
NOWHERE = np.array((-1, -1, 0), PLACE)

Keys = Shaped[np.ndarray, " n"]
"""dtype KEY."""

Places = Shaped[np.ndarray, " n"]
"""dtype PLACE; segment -1 where there is none."""

Flags = Bool[np.ndarray, " n"]


class _Run(NamedTuple):
    """Keys, ascending, and the places that go with them."""

    keys: Keys
    places: Places


class Index:
    """Key -> place; a key may have several.

    A few sorted runs, each at least twice as long as the next, so that adding n rows a few at a time moves each
    about log2 n times, and a look-up makes about as many searches at worst.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(run.keys) for run in self._runs)

    def add(self, keys: Keys, places: Places) -> None:
        """Take in keys at places. Memory for a moment: twice what is merged."""
        if len(keys):
            self._runs.append(_sorted(keys, places))
        while len(self._runs) > 1 and len(self._runs[-2].keys) < 2 * len(self._runs[-1].keys):
            pair = self._runs[-2:]
            self._runs[-2:] = []
            self._runs.append(_sorted(np.concatenate([r.keys for r in pair]), np.concatenate([r.places for r in pair])))

    def find(self, keys: Keys) -> Places:
        """One place for each of `keys`; `NOWHERE` for those not here."""
        found = np.full(len(keys), NOWHERE, PLACE)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run.keys, keys), len(run.keys) - 1)
            hit = run.keys[at] == keys
            found[hit] = run.places[at[hit]]
        return found

    def has(self, keys: Keys) -> Flags:
        """Which of `keys` are here."""
        return self.find(keys)["segment"] >= 0

    def drop(self, places: Places) -> None:
        """Forget these places; another place of the same key stays."""
        gone = _number(places)
        kept = [(run, ~np.isin(_number(run.places), gone)) for run in self._runs]
        self._runs = [_Run(run.keys[k], run.places[k]) for run, k in kept if k.any()]


def as_keys(keys: Sequence[bytes]) -> Keys:
    """An array of `keys`; `StoreError` if one is not 32 bytes long."""
    wrong = set(map(len, keys)) - {KEY_BYTES}
    if wrong:
        raise StoreError(f"a key of {min(wrong)} bytes", f"{KEY_BYTES}, a SHA-256")
    return np.frombuffer(b"".join(keys), KEY)


def as_bytes(keys: Keys) -> list[bytes]:
    """The opposite of `as_keys`."""
    raw = keys.tobytes()
    return [raw[i : i + KEY_BYTES] for i in range(0, len(raw), KEY_BYTES)]


def first_of_each(keys: Keys) -> Flags:
    """True where a key stands for the first time."""
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def _sorted(keys: Keys, places: Places) -> _Run:
    order = np.argsort(keys, kind="stable")  # merges what is sorted already in one pass
    return _Run(keys[order], places[order])


def _number(places: Places) -> Int64[np.ndarray, " n"]:
    return (places["segment"].astype(np.int64) << 32) | places["row"]
