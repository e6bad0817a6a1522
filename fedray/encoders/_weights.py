"""Which weights an encoder has: where they lie, and what they are."""

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fedray.errors import MissingKeyError, MissingPathError, WeightsError
from fedray.sections import EncoderConfig

Predicate = Callable[[Path], bool]

_UNLOADABLE = (
    RuntimeError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    EOFError,
    StopIteration,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


def unloadable() -> tuple[type[Exception], ...]:
    """What loading a model raises for files that are damaged, of another model, or not weights at all."""
    from safetensors import SafetensorError

    return (*_UNLOADABLE, SafetensorError)


def modality(config: EncoderConfig) -> Literal["image", "text"]:
    """What the encoder is fed. Raises `MissingKeyError` where neither the feature's name nor the key says it."""
    if config.input == "auto":
        raise MissingKeyError(f"encoder {config.name}: key 'input' is missing", "image or text")
    return config.input


def digest(path: Path, only: tuple[str, ...] = ()) -> str:
    """SHA-256, 64 hex digits, of a file's content, or of a folder's: the names and contents of its files.

    Hidden files, *.md and LICENSE decide nothing and are left out; with `only`, all but the files at the folder's top
    that match one of these patterns are. Raises `MissingPathError`, `WeightsError`.
    """
    try:
        if path.is_file():
            return _of_file(path)
        if path.is_dir():
            lines = [f"{_of_file(file)} {file.relative_to(path).as_posix()}\n" for file in _counting(path, only)]
            return hashlib.sha256("".join(lines).encode()).hexdigest()
    except OSError as error:
        raise WeightsError(f"not readable: {error.strerror}", "readable weights", "", str(path)) from error
    raise MissingPathError(f"{path} does not exist", "a file or folder of weights", "Check the path.")


def _of_file(file: Path) -> str:
    with file.open("rb") as body:
        return hashlib.file_digest(body, "sha256").hexdigest()


def _counting(folder: Path, only: tuple[str, ...]) -> list[Path]:
    found = [file for pattern in only for file in folder.glob(pattern)] if only else folder.rglob("*")
    return sorted(file for file in set(found) if file.is_file() and not _aside(file.relative_to(folder)))


def _aside(name: Path) -> bool:
    return name.suffix == ".md" or name.name == "LICENSE" or any(part.startswith(".") for part in name.parts)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object beside the weights. Raises `WeightsError` where there is none."""
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"{file.name} is not there" if isinstance(error, FileNotFoundError) else f"{file.name}: {error}"
        raise WeightsError(found, "one JSON object", "Check the folder.", str(file.parent)) from error
    if not isinstance(body, dict):
        raise WeightsError(f"{file.name} holds {type(body).__name__}", "one JSON object", "", str(file.parent))
    return body


def shards(folder: Path) -> list[Path]:
    """The files that hold the weights of a transformers folder; empty where there are none or one is missing."""
    for kind in ("safetensors", "bin"):
        files = sorted(folder.glob(f"*.{kind}"))
        index = next(iter(folder.glob(f"*.{kind}.index.json")), None)
        listed = set(read_json(index).get("weight_map", {}).values()) if index else set()
        if files and listed <= {file.name for file in files}:
            return files
    return []


def snapshot(name: str, complete: Predicate, best: tuple[str, ...], fallback: tuple[str, ...]) -> Path:
    """The folder of a repository of the Hugging Face hub: from the local cache if `complete` there, else downloaded.

    best: patterns of what is downloaded, at the repository's top alone; fallback: what is, too, if it is not complete
    with the best. Raises `WeightsError` at once where neither cache nor hub has it.
    """
    for files, cached in (((*best, *fallback), True), (best, False), ((*best, *fallback), False)):
        folder = _snapshot(name, files, cached)
        if folder and complete(folder):
            return folder
    raise WeightsError(f"{name} on the hub lacks needed files", ", ".join((*best, *fallback)), "Take another model.")


def _snapshot(name: str, files: tuple[str, ...], cached: bool) -> Path | None:
    import huggingface_hub

    huggingface_hub.utils.disable_progress_bars()
    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=list(files), ignore_patterns=["*/*"], local_files_only=cached
        )
    except (OSError, ValueError, RuntimeError) as error:
        if cached:
            return None
        raise _unreachable(name, error) from error
    return Path(folder)


def _unreachable(name: str, error: Exception) -> WeightsError:
    why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return WeightsError(
        f"the hub does not give {name} ({type(error).__name__}: {why})",
        "it in the local cache, or on a hub within reach",
        "Check the name; without network, download it elsewhere and give its path.",
    )
