"""A trained federation on disk: safetensors and text, no pickle. Private parts stay in files their own actors wrote.

<folder>/config.yaml                     the resolved configuration
<folder>/server.safetensors              shared parameters of the selected round
<folder>/clients-00000.safetensors ...   private state, one file per actor
<folder>/manifest.json                   round, data fingerprint, files with sha256; written last
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from fedray.config import RunConfig, load_config, to_yaml
from fedray.errors import DataError, MissingPathError
from fedray.types import Arrays


def save_model(folder: Path, config: RunConfig, data: str, write: Callable[[str], Any]) -> None:
    """`write(folder)` has the actors write their files and returns (shared params, round, files).

    A model that was in the folder is replaced; until the manifest is written, the folder holds none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / "manifest.json", *folder.glob("clients-*.safetensors")]:
        old.unlink(missing_ok=True)
    params, round_, files = write(str(folder.resolve()))
    save_file({k: v.copy() for k, v in params.items()}, folder / "server.safetensors")
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    names = ["config.yaml", "server.safetensors", *sorted(Path(f).name for f in files)]
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} client files are not here (actors on other nodes wrote them there)",
            "a folder that all nodes share",
            "Use --save with a path on shared storage.",
            str(folder),
        )
    manifest = {"round": round_, "data": data, "files": {n: _sha256(folder / n) for n in names}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def load_model(folder: Path, sets: list[str]) -> tuple[RunConfig, dict[str, Any], Arrays, list[Path]]:
    """Configuration (with `sets` laid over), manifest, shared parameters and client files, each checked."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise MissingPathError(f"{file} does not exist", "a folder that `fedray train --save` wrote")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        files = {str(name): str(digest) for name, digest in manifest["files"].items() if "/" not in name}
        _ = manifest["round"], manifest["data"]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError("not a manifest", "the file as saved", "Save again.", str(file)) from error
    for name, digest in files.items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise DataError(f"{name} is missing or changed", "the file as saved", "Save again.", str(folder))
    clients = [folder / n for n in sorted(files) if n.startswith("clients-")]
    return (
        load_config(folder / "config.yaml", sets),
        manifest,
        load_file(folder / "server.safetensors"),
        clients,
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
