"""Where a data path may be: as given, else in the current directory, FEDRAY_DATA, ../shared/data."""

import os
from pathlib import Path

from fedray.errors import MissingPathError

NEIGHBOUR = Path("..") / "shared" / "data"


def resolve(path: str, what: str = "data.path") -> Path:
    """The file or folder of a path setting called `what`; `~` and `$NAME` are expanded.

    Raises `MissingPathError` that lists where it looked.
    """
    places = candidates(path)
    for place in places:
        if place.exists():
            return place
    raise MissingPathError(
        f"{what} {path!r} does not exist (looked at {', '.join(map(str, places))})",
        "an existing path",
        f"Set {what} to the folder, or FEDRAY_DATA to the folder that holds it.",
    )


def candidates(path: str) -> list[Path]:
    """Where `path` is looked for, in order; an absolute path only at its own place."""
    given = _expanded(path)
    if given.is_absolute():
        return [given]
    home = os.environ.get("FEDRAY_DATA")
    roots = [Path(), *([_expanded(home)] if home else []), NEIGHBOUR]
    return [root / given for root in roots]


def _expanded(path: str) -> Path:
    """With `$NAME` and `~` replaced; those that nobody knows stay, and are then not found."""
    return Path(os.path.expanduser(os.path.expandvars(path)))  # noqa: PTH111 - Path.expanduser raises
