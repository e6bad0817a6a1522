"""Who ran which code: the tags that say so."""

import getpass
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fedray

LIBRARIES = ("ray", "torch", "numpy", "mlflow")
GIT_TIMEOUT_S = 5


def provenance() -> dict[str, str]:
    """Tags for code, versions and user; what cannot be found out is left out."""
    found = {
        "fedray.version": fedray.__version__,
        "python.version": platform.python_version(),
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": Path(sys.argv[0]).name,
        **{f"{name}.version": _version(name) for name in LIBRARIES},
        **git_tags(Path(fedray.__file__).parent),
    }
    return {name: value for name, value in found.items() if value}


def git_tags(package: Path) -> dict[str, str]:
    """Commit, and whether the package differs from it; nothing unless git tracks this very package.

    An installed fedray may lie inside somebody else's repository, whose commit would be a lie.
    """
    found = _git(package, "rev-parse", "HEAD", "HEAD:./__init__.py")
    if found is None:
        return {}
    dirty = _git(package, "status", "--porcelain", "--", ".")
    return {
        "mlflow.source.git.commit": found.split()[0],
        "mlflow.source.git.dirty": "true" if dirty else "false",
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no entry for its user
        return ""
