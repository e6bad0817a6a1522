"""Checking and cleaning up what is on the disk: `verify` changes nothing, `gc` drops what nobody uses.

`gc` is safe to kill anywhere: new segments are whole on the disk before an old one goes, and a row that is there
twice in between does no harm.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedray.embeddings import segments
from fedray.embeddings.folder import CLAIMS, DESCRIPTION, SEGMENTS, USES, described, hold, names, refused, stores, sync
from fedray.embeddings.index import KEY, KEY_BYTES, PLACE, Flags, Index, Keys, first_of_each
from fedray.encoders import fingerprint
from fedray.errors import StoreError

SEGMENT_BYTES = 64 << 20
_DAY_S = 86400.0

Part = tuple[np.ndarray, np.ndarray]
"""Keys [n] and rows [n, d] to be written; n differs from part to part."""


@dataclass(frozen=True)
class Health:
    """Every encoder's folder, read to the last byte. Files are named from the root on.

    rows: folder -> rows in whole segments, damaged ones and duplicates included. segments, bytes: of all segment
    files. duplicates: sound rows whose key stands before. damaged: file -> rows that fail their checksum. torn:
    file -> why it is skipped whole. leftovers: files of writers that died, or are at work.
    """

    rows: dict[str, int]
    segments: int
    bytes: int
    duplicates: int
    damaged: dict[str, tuple[int, ...]]
    torn: dict[str, str]
    leftovers: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether every row that was written can be read."""
        return not (self.damaged or self.torn)

    def text(self) -> str:
        """For people: one line a folder, then what is wrong."""
        lines = [f"{folder}: {rows:,} rows" for folder, rows in self.rows.items()]
        lines += [f"{self.segments:,} segments, {_megabytes(self.bytes)}, {self.duplicates:,} duplicate rows"]
        lines += [f"{file}: {len(rows):,} damaged rows" for file, rows in self.damaged.items()]
        lines += [f"{file}: {why}" for file, why in self.torn.items()]
        lines += [f"{file}: left over" for file in self.leftovers]
        return "\n".join([*lines, "all whole" if self.whole else "what is damaged is made again when it is needed"])


@dataclass(frozen=True)
class Collected:
    """What became of the rows and files of all folders. Files are named from the root on.

    kept, and dropped for want of a use, as damaged, and as duplicates: rows. sets_dropped: uses that were too old.
    bytes: of all segment files.
    """

    kept: int
    unused: int
    damaged: int
    duplicates: int
    torn: tuple[str, ...]
    leftovers: tuple[str, ...]
    sets_dropped: tuple[str, ...]
    bytes_before: int
    bytes_after: int

    def text(self) -> str:
        """For people: one line, and one for each kind of file that went."""
        rows = f"{self.kept:,} rows kept, dropped {self.unused:,} unused, {self.damaged:,} damaged"
        size = f"{_megabytes(self.bytes_before)} before, {_megabytes(self.bytes_after)} now"
        files = {"torn": self.torn, "left over": self.leftovers, "uses too old": self.sets_dropped}
        went = [f"{kind}: {', '.join(found)}" for kind, found in files.items() if found]
        return "\n".join([f"{rows}, {self.duplicates:,} duplicate; {size}", *went])


def verify(root: Path) -> Health:
    """Check every row of every encoder under `root`. Others may read and write meanwhile.

    Raises `StoreBusyError` while a collection is at work, `StoreError` where something cannot be read.
    """
    found = []
    for folder, (of, dtype) in stores(root).items():
        with hold(folder, "shared"), refused(folder, "cannot be read"):
            found.append(_examined(folder, of, dtype))
    return Health(**_summed(Health({}, 0, 0, 0, {}, {}, ()), found))


def gc(root: Path, older_than_days: float = 30.0) -> Collected:
    """Drop every row that no use names, and damaged rows, torn segments and what the dead left; pack the rest.

    A use that was not written anew for `older_than_days` is dropped first. Raises `StoreBusyError`, and changes
    nothing, while anybody has one of the stores open; `StoreError` where a use is damaged or the disk refuses.
    """
    found = stores(root)
    with ExitStack() as held:
        for folder in found:
            held.enter_context(hold(folder, "alone"))
        before = time.time() - older_than_days * _DAY_S
        parts = [_collected(folder, *kind, before) for folder, kind in found.items()]
    return Collected(**_summed(Collected(0, 0, 0, 0, (), (), (), 0, 0), parts))


def _summed(nothing: Health | Collected, parts: Sequence[Health | Collected]) -> dict[str, Any]:
    """Field by field: numbers and tuples are added, dictionaries put together."""
    total = dict(vars(nothing))
    for name, value in ((name, value) for part in parts for name, value in vars(part).items()):
        total[name] = total[name] | value if isinstance(value, dict) else total[name] + value
    return total


def _examined(folder: Path, of: str, dtype: str) -> Health:
    where, seen, tally = folder / SEGMENTS, Index(), Counter[str]()
    damaged, torn = {}, _torn_description(folder, of)
    for file in _files(where, segments.SUFFIX):
        loaded = segments.load(file, of, dtype)
        tally["bytes"] += file.stat().st_size
        tally["segments"] += 1
        if isinstance(loaded, segments.Torn):
            torn[_named(file)] = loaded.why
            continue
        good = segments.intact(loaded)[1]
        tally["rows"] += len(good)
        tally["duplicates"] += int(good.sum() - _new(loaded.keys, good, seen).sum())
        if not good.all():
            damaged[_named(file)] = tuple(np.flatnonzero(~good).tolist())
    leftovers = tuple(map(_named, _leftovers(folder)))
    rows = {folder.name: tally["rows"]}
    return Health(rows, tally["segments"], tally["bytes"], tally["duplicates"], damaged, torn, leftovers)


def _torn_description(folder: Path, of: str) -> dict[str, str]:
    found, name = described(folder), f"{folder.name}/{DESCRIPTION}"
    if found is None:
        return {name: "not a description"}
    return {} if fingerprint(found) == of else {name: "describes another encoder"}


def _collected(folder: Path, of: str, dtype: str, before: float) -> Collected:
    with refused(folder, "cannot be collected"):
        sets_dropped = _drop_old_uses(folder / USES, before)
        used = _used(folder / USES)
        leftovers = [*_leftovers(folder), *_files(folder / CLAIMS)]
        bytes_before = _bytes(folder)
        sweep = _Sweep(folder / SEGMENTS, of, dtype, used)
        for keys, rows in _packed(sweep.survivors()):
            segments.write(folder / SEGMENTS, of, keys, rows)
        _remove([*sweep.emptied, *leftovers])
        sync(folder / SEGMENTS)
        return Collected(
            **{name: sweep.tally[name] for name in ("kept", "unused", "damaged", "duplicates")},
            torn=tuple(map(_named, sweep.torn)),
            leftovers=tuple(map(_named, leftovers)),
            sets_dropped=tuple(map(_named, sets_dropped)),
            bytes_before=bytes_before,
            bytes_after=_bytes(folder),
        )


class _Sweep:
    """One pass over a folder's segments. emptied: files whose rows are worthless, or written anew by now."""

    def __init__(self, where: Path, of: str, dtype: str, used: Index) -> None:
        self.emptied: list[Path] = []
        self.torn: list[Path] = []
        self.tally = Counter[str]()
        self._where, self._of, self._dtype, self._used = where, of, dtype, used
        self._seen = Index()
        self._dim = 0

    def survivors(self) -> Iterator[Part]:
        """Rows to write anew, segment by segment. Segments that are large and all in use stay as they are."""
        for file in _files(self._where, segments.SUFFIX):
            loaded = segments.load(file, self._of, self._dtype)
            if isinstance(loaded, segments.Torn) or loaded.segment.dim != (self._dim or loaded.segment.dim):
                self.torn.append(file)
                self.emptied.append(file)
                continue
            self._dim = loaded.segment.dim
            rows, good = segments.intact(loaded)
            keep = self._wanted(loaded.keys, good)
            if not keep.all() or len(rows) < _rows_in_a_segment(rows) // 2:
                self.emptied.append(file)
                yield loaded.keys[keep], rows[keep]

    def _wanted(self, keys: Keys, good: Flags) -> Flags:
        used = good & self._used.has(keys)
        keep = _new(keys, used, self._seen)
        self.tally["damaged"] += int((~good).sum())
        self.tally["unused"] += int((good & ~used).sum())
        self.tally["duplicates"] += int((used & ~keep).sum())
        self.tally["kept"] += int(keep.sum())
        return keep


def _new(keys: Keys, good: Flags, seen: Index) -> Flags:
    """Those of the good rows whose key was not seen before; it is now."""
    new = good.copy()
    new[good] = first_of_each(keys[good]) & ~seen.has(keys[good])
    seen.add(keys[new], np.zeros(int(new.sum()), PLACE))
    return new


def _packed(parts: Iterator[Part]) -> Iterator[Part]:
    """The same rows in segments of at most `SEGMENT_BYTES`, all but the last about full."""
    held: list[Part] = []
    n = 0
    for keys, rows in parts:
        most = _rows_in_a_segment(rows)
        while n + len(keys) >= most:
            yield _joined([*held, (keys[: most - n], rows[: most - n])])
            held, keys, rows, n = [], keys[most - n :], rows[most - n :], 0
        held.append((keys, rows))
        n += len(keys)
    if n:
        yield _joined(held)


def _rows_in_a_segment(rows: segments.Rows) -> int:
    return max(1, SEGMENT_BYTES // (rows.itemsize * rows.shape[1] + KEY_BYTES + 4))


def _joined(parts: Sequence[Part]) -> Part:
    return np.concatenate([keys for keys, _ in parts]), np.concatenate([rows for _, rows in parts])


def _used(uses: Path) -> Index:
    """Every key that a use names."""
    found = {file: file.read_bytes() for file in _files(uses, ".keys")}
    broken = [file for file, raw in found.items() if len(raw) % KEY_BYTES]
    if broken:
        mend = "Write this use anew, or remove the file and with it what only it keeps."
        raise StoreError(f"{len(found[broken[0]])} bytes", f"keys of {KEY_BYTES}", mend, str(broken[0]))
    keys = np.unique(np.frombuffer(b"".join(found.values()), KEY))
    used = Index()
    used.add(keys, np.zeros(len(keys), PLACE))
    return used


def _drop_old_uses(uses: Path, before: float) -> list[Path]:
    old = [file for file in _files(uses, ".keys") if file.stat().st_mtime < before]
    _remove(old)
    return old


def _leftovers(folder: Path) -> list[Path]:
    """Files that a writer was killed over; while others write, also those they are at."""
    return [file for place in (folder, folder / SEGMENTS, folder / USES) for file in _files(place, ".tmp")]


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _files(folder: Path, suffix: str = "") -> list[Path]:
    return [folder / name for name in names(folder, suffix)]


def _named(file: Path) -> str:
    """`<folder>/segments/<name>`, as seen from the root."""
    parts = file.parts[-2:] if file.parent.name not in (SEGMENTS, CLAIMS, USES) else file.parts[-3:]
    return "/".join(parts)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in _files(folder / SEGMENTS, segments.SUFFIX))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
