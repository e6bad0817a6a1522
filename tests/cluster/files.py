"""What lies in `cluster/`, the versions it has to agree with, and ways to plant a fault in a copy of it."""

import copy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
RAY_UP = sorted((CLUSTER / "ray-up").glob("*.yaml"))
COMPOSE = CLUSTER / "compose" / "compose.yaml"
DOCKERFILE = CLUSTER / "docker" / "Dockerfile"
SBATCH = CLUSTER / "slurm" / "fedray.sbatch"

PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
FEDRAY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGE = f"fedray:{FEDRAY}-ray{PINS['ray']}"
MLFLOW_IMAGE = f"fedray-mlflow:{PINS['mlflow']}"
REGISTRY = "registry.example.com/"

GONE = object()


def load(file: Path) -> Any:
    """The one document of a YAML file."""
    return yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)


def documents(file: Path) -> list[Any]:
    return list(yaml.load_all(file.read_text(encoding="utf-8"), yaml.CSafeLoader))


def at(document: Any, path: str) -> Any:
    """`at(job, "spec/workerGroupSpecs/1/groupName")`"""
    for step in path.split("/"):
        document = document[int(step) if isinstance(document, list) else step]
    return document


def planted(document: Any, path: str, value: Any) -> Any:
    """A copy with another value at `path`; `GONE` takes away what is there."""
    changed = copy.deepcopy(document)
    parent, _, last = path.rpartition("/")
    place = at(changed, parent) if parent else changed
    key = int(last) if isinstance(place, list) else last
    if value is GONE:
        del place[key]
    else:
        place[key] = value
    return changed


def keys(document: Any, free: frozenset[str], path: str = "") -> Iterator[str]:
    """The path of every key, but for what is below keys named in `free`."""
    inner = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in inner:
        here = f"{path}/{key}".removeprefix("/")
        if isinstance(document, dict):
            yield here
        if isinstance(value, (dict, list)) and key not in free:
            yield from keys(value, free, here)


def misspelt(document: Any, path: str) -> Any:
    """A copy in which the last letter of the key at `path` is missing: minReplicas becomes minReplica."""
    parent, _, last = path.rpartition("/")
    return planted(planted(document, f"{parent}/{last[:-1]}".removeprefix("/"), at(document, path)), path, GONE)


def words(command: str | list[str]) -> list[str]:
    """A command as compose takes it: a string is split like a shell's."""
    return command if isinstance(command, list) else shlex.split(command)
