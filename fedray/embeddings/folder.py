"""One encoder's folder: where things are, who may touch them, and files that are there whole or not at all."""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, get_args
from uuid import uuid4

from fedray.encoders import fingerprint
from fedray.errors import StoreBusyError, StoreError

Dtype = Literal["float32", "float16"]

SEGMENTS, CLAIMS, USES = "segments", "claims", "uses"
DESCRIPTION, LOCK = "encoder.json", ".lock"
_NAME = re.compile(f"([0-9a-f]{{16}})-({'|'.join(get_args(Dtype))})")
_LOOK_AGAIN_S = 0.05


def prepare(root: Path, description: Mapping[str, Any], dtype: Dtype) -> Path:
    """The folder of this encoder, made where it is not there.

    Raises `StoreError` where it cannot be written, holds something else, or describes another encoder.
    """
    folder = root / f"{fingerprint(description)}-{dtype}"
    with refused(folder, "cannot be made"):
        folder.mkdir(parents=True, exist_ok=True)
        _check_content(folder)
        for part in (SEGMENTS, CLAIMS, USES):
            (folder / part).mkdir(exist_ok=True)
    for place in (folder, *(folder / part for part in (SEGMENTS, CLAIMS, USES))):
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise StoreError("not writable", "a folder this user may read and write", where=str(place))
    _describe(folder / DESCRIPTION, description)
    return folder


def stores(root: Path) -> dict[Path, tuple[str, str]]:
    """Every encoder's folder under `root` -> its fingerprint and dtype; `StoreError` where `root` cannot be read."""
    with refused(root, "cannot be listed"):
        found = [(path, _NAME.fullmatch(path.name)) for path in sorted(root.iterdir())]
    return {p: (name[1], name[2]) for p, name in found if name and (p / DESCRIPTION).is_file()}


def described(folder: Path) -> dict[str, Any] | None:
    """The description on the disk; None if it is not one."""
    try:
        found = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def hold(folder: Path, how: Literal["shared", "alone"], patience_s: float = 0.0) -> IO[bytes]:
    """The folder's lock until the returned file is closed; `StoreBusyError` if not to be had in `patience_s`."""
    with refused(folder / LOCK, "cannot be opened"):
        file = (folder / LOCK).open("a+b")  # over NFS a shared lock wants a file that can be read
    deadline = time.monotonic() + patience_s
    while not locked(file, how):
        if time.monotonic() >= deadline:
            file.close()
            raise StoreBusyError(*_BUSY[how], where=str(folder))
        time.sleep(_LOOK_AGAIN_S)
    return file


def locked(file: IO[bytes], how: Literal["shared", "alone"]) -> bool:
    """Whether the lock on `file` could be taken at once."""
    with refused(Path(file.name), "cannot be locked"):
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if how == "shared" else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def names(folder: Path, suffix: str = "", but: Set[str] = frozenset()) -> list[str]:
    """Names in `folder` that end so, sorted; hidden ones left out: NFS keeps removed open files under such."""
    with os.scandir(folder) as entries:
        found = {entry.name for entry in entries} - but
    return sorted(name for name in found if name.endswith(suffix) and not name.startswith("."))


def write_whole(file: Path, content: bytes) -> None:
    """`file` with this content, on the disk when this returns; a reader sees all of it or what was there before."""
    aside = file.with_name(f"{file.name}.{uuid4().hex}.tmp")
    with refused(file, "cannot be written"):
        try:
            with aside.open("xb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)
        sync(file.parent)


def sync(folder: Path) -> None:
    """Put the names in `folder` on the disk: a file whose name is lost is lost."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def refused(where: Path, what: str) -> Iterator[None]:
    """Turn what the system refuses into a `StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error.strerror or error}", where=str(where)) from error


def _describe(file: Path, description: Mapping[str, Any]) -> None:
    """Write the description, or check it against the one there is."""
    if not file.exists():
        write_whole(file, json.dumps(description, indent=2, sort_keys=True).encode())
    found = described(file.parent)
    if found is None or _canonical(found) != _canonical(description):
        raise StoreError(
            "not a description" if found is None else "describes another encoder",
            _canonical(description)[:200],
            "Use another folder, or remove this one: embeddings can be made again.",
            str(file),
        )


def _check_content(folder: Path) -> None:
    """A folder in use for something else must not be filled with ours."""
    foreign = {n for n in names(folder) if not n.endswith(".tmp")} - {SEGMENTS, CLAIMS, USES, DESCRIPTION}
    if foreign and not (folder / DESCRIPTION).exists():
        raise StoreError(
            f"holds {min(foreign)!r} and no {DESCRIPTION}", "an embedding store, or an empty folder", where=str(folder)
        )


def _canonical(description: Mapping[str, Any]) -> str:
    return json.dumps(description, sort_keys=True)


_BUSY = {
    "shared": ("being collected", "no collection at work", "Try again when it is done."),
    "alone": ("in use by another process", "nobody to have it open", "Try again when those jobs are done."),
}
