"""Files that must be whole or not there: a folder on a local disk, on NFS, or behind any fsspec URI (`s3://...`).

A file is known by the sha256 of what was meant to be in it. A folder of files is made aside and renamed; where there is
no renaming (object stores) it is made in place, and whoever reads it goes by a manifest that is written last.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fedray.errors import CheckpointError, ConfigError


class Written(NamedTuple):
    """A file as it was meant to be."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Storage:
    """A folder, by path or URI. Names are relative to it."""

    url: str

    @classmethod
    def at(cls, url: str) -> "Storage":
        """`url` as every process sees it: a path becomes absolute."""
        return cls(url if "://" in url else str(Path(url).absolute()))

    def under(self, name: str) -> "Storage":
        """A folder in this one."""
        return Storage(f"{self.url}/{name}")

    def write(self, name: str, content: bytes) -> Written:
        """On disk, and not only on its way there, on return. Raises `OSError`."""
        fs, path = self._open()
        fs.makedirs(f"{path}/{name}".rsplit("/", 1)[0], exist_ok=True)
        with fs.open(f"{path}/{name}", "wb") as file:
            file.write(content)
            if self.local:
                file.flush()
                os.fsync(file.fileno())
        return Written(name, hashlib.sha256(content).hexdigest(), len(content))

    def read(self, name: str, sha256: str = "") -> bytes:
        """The file; `CheckpointError` where it is missing or, with `sha256`, another than was written."""
        fs, path = self._open()
        try:
            with fs.open(f"{path}/{name}", "rb") as file:
                content: bytes = file.read()
        except OSError as error:
            raise CheckpointError(
                f"{name}: {error.strerror or error}", "the file as written", where=self.url
            ) from error
        if sha256 and hashlib.sha256(content).hexdigest() != sha256:
            raise CheckpointError(f"{name} is torn or was changed", "the file as written", where=self.url)
        return content

    def names(self) -> list[str]:
        """What is directly here, sorted; nothing where the folder is missing."""
        fs, path = self._open()
        try:
            return sorted(str(p).rstrip("/").rsplit("/", 1)[1] for p in fs.ls(path, detail=False, refresh=True))
        except FileNotFoundError:
            return []

    def aside(self, name: str) -> str:
        """Where the folder `name` is made."""
        return f".{name}.part" if self.local else name

    def publish(self, name: str) -> None:
        """The folder made aside takes its name, in one step; one of that name is removed first."""
        if not self.local:
            return
        _, path = self._open()
        root = Path(path)
        self.remove(name)
        (root / self.aside(name)).rename(root / name)
        for folder in (root / name, root):
            _sync_folder(folder)

    def remove(self, name: str) -> None:
        """The file or folder, if it is there."""
        fs, path = self._open()
        if fs.exists(f"{path}/{name}"):
            fs.rm(f"{path}/{name}", recursive=True)

    @property
    def local(self) -> bool:
        """Whether this is a file system of this machine (or NFS), where renaming is one step."""
        return isinstance(self._open()[0], LocalFileSystem)

    def _open(self) -> tuple[Any, str]:
        try:
            fs, path = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{self.url}: {error}", "a path, or a URI whose fsspec package is installed", "E.g. pip install s3fs."
            ) from error
        return fs, str(path).rstrip("/")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
