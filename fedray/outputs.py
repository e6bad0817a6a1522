"""What `--summary` and `--save` leave behind: checked before any training, written aside and renamed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError, FedrayError
from fedray.evaluation.users import Users, beside, to_parquet


def check_outputs(summary: Path | None, save: Path | None) -> None:
    """Refuse, before any training, paths that could not be written after it."""
    if summary is not None and (summary.is_dir() or not _can_hold(summary.parent)):
        raise ConfigError(f"--summary {summary}", "a file in a writable folder")
    if save is not None and not _can_hold(save):
        raise ConfigError(f"--save {save}", "a writable folder, or one that can be made")


def _can_hold(folder: Path) -> bool:
    """Whether files can be written into `folder`, made if need be."""
    here = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return here.is_dir() and os.access(here, os.W_OK)


def write_end(file: Path, summary: Mapping[str, Any], users: Mapping[Any, Users]) -> None:
    """The summary of a run or family and, beside it, each client's test metrics (by seed; None: of a single run)."""
    for seed, found in users.items():
        write_aside(beside(file, seed), to_parquet(found))
    write_summary(file, summary)


def write_summary(file: Path, summary: Mapping[str, Any]) -> None:
    """The summary as JSON."""
    write_aside(file, json.dumps(summary, indent=2, default=str).encode())


def write_aside(file: Path, content: bytes) -> None:
    """Written aside and renamed: a reader sees all of it or nothing."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(file.name + ".part")
        aside.write_bytes(content)
        aside.rename(file)
    except OSError as error:
        raise FedrayError(f"cannot write it: {error.strerror}", "a writable path", "", str(file)) from error
