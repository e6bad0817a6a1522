"""MovieLens as GroupLens hands it out: 100K (u.data, u.item) and 1M (ratings.dat, movies.dat).

`path` is the unpacked folder or the one above it. The files are Latin-1; 100K is separated by tabs and
bars, 1M by double colons. Genres become a list of names, the year stays in the title as in the file.
"""

from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field

from fedray.config import DataConfig
from fedray.data.paths import resolve
from fedray.data.sources import RawData
from fedray.data.sources._tables import delimited, read_bytes
from fedray.errors import FileFormatError, MissingPathError

RATING_COLUMNS = ("user", "item", "rating", "time")
_GENRES = """
unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy
Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western
"""
GENRES = _GENRES.split()
U_ITEM_COLUMNS = ("item", "title", "release_date", "video_release_date", "imdb_url", *GENRES)


class Config(DataConfig):
    """Settings of the `movielens` source."""

    source: Literal["movielens"] = "movielens"
    path: str = Field(min_length=1, description="the folder of u.data or ratings.dat, or the one above it")


def load(config: Config) -> RawData:
    """Ratings and films of the release found at `path`. Raises path and file errors."""
    root = resolve(config.path)
    folders = [root, root / "ml-100k", root / "ml-1m"]
    files = [f / name for f in folders for name in ("u.data", "ratings.dat") if (f / name).is_file()]
    if len(files) > 1:
        found = f"{' and '.join(map(str, files))} are both there"
        raise FileFormatError(found, "one release", "Set data.path to the folder of one.", str(root))
    if files and files[0].name == "u.data":
        return _load_100k(files[0].parent, config.name or "ml100k")
    if files:
        return _load_1m(files[0].parent, config.name or "ml1m")
    raise MissingPathError(
        f"neither u.data nor ratings.dat is in {', '.join(map(str, folders))}",
        "GroupLens' files",
        "Unpack the release there, or use data.source: folder.",
    )


def _load_100k(folder: Path, name: str) -> RawData:
    file = folder / "u.data"
    frame = delimited(_latin1(file), str(file), RATING_COLUMNS, "\t", quotes=False)
    return RawData(frame, _films_100k(folder / "u.item"), name, str(file))


def _load_1m(folder: Path, name: str) -> RawData:
    file = folder / "ratings.dat"
    frame = delimited(_with_tabs(file), str(file), RATING_COLUMNS, "\t", quotes=False)
    return RawData(frame, _films_1m(folder / "movies.dat"), name, str(file))


def _films_100k(file: Path) -> pd.DataFrame:
    if not file.is_file():
        return pd.DataFrame({"item": pd.Series(dtype=str)})
    text = U_ITEM_COLUMNS[:5]
    films = delimited(_latin1(file), str(file), U_ITEM_COLUMNS, "|", text, quotes=False)
    flags = films[GENRES].eq(1).to_numpy(dtype=bool, na_value=False)
    genres = [[g for g, flag in zip(GENRES, row) if flag] for row in flags]
    return films[["item", "title", "release_date"]].assign(genres=pd.Series(genres, films.index))


def _films_1m(file: Path) -> pd.DataFrame:
    if not file.is_file():
        return pd.DataFrame({"item": pd.Series(dtype=str)})
    columns = ("item", "title", "genres")
    films = delimited(_with_tabs(file), str(file), columns, "\t", columns, quotes=False)
    return films.assign(genres=films["genres"].str.split("|"))


def _latin1(file: Path) -> bytes:
    """A Latin-1 file as UTF-8; every byte sequence is valid Latin-1."""
    return read_bytes(file).decode("latin-1").encode()


def _with_tabs(file: Path) -> bytes:
    """A file with '::' between fields as UTF-8 with tabs, which the fast parser can read."""
    return _latin1(file).replace(b"::", b"\t")
