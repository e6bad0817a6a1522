"""What encoders are fed: each item's text or image bytes, or why there is none; and the key of each.

A catalogue is a data frame, row = dense item id, column `item` the id outside, the others whatever describes it;
`image` names a file (or holds the bytes). What is wrong with one item is that item's `Problem` and nobody else's.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedray.config import EncoderConfig, nearest_hint, part_module
from fedray.encoders import Problem, Raw
from fedray.errors import MissingColumnError

TEXT_FIELDS = ("title", "description")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
Picture = Callable[[Mapping[str, Any]], bytes]
Found = Raw | Problem


@dataclass(frozen=True)
class Content:
    """The items as one encoder sees them. key[i]: SHA-256 of item i's raw content, or None where `problem[i]` says why.

    raw(i) reads item i again: images are not kept in memory.
    """

    ids: tuple[str, ...]
    keys: tuple[bytes | None, ...]
    problems: tuple[Problem | None, ...]
    raw: Callable[[int], Found]

    def distinct(self) -> dict[bytes, int]:
        """Key -> the first item that has it: equal content is encoded once."""
        found: dict[bytes, int] = {}
        for i, key in enumerate(self.keys):
            if key is not None:
                found.setdefault(key, i)
        return found


def key_of(raw: Raw) -> bytes:
    """SHA-256 of a text's UTF-8 or an image's bytes."""
    return hashlib.sha256(raw.encode() if isinstance(raw, str) else raw).digest()


def content_of(config: EncoderConfig, items: pd.DataFrame, picture: Picture | None = None) -> Content:
    """The content that this encoder reads. picture: draws an item that has no image file, for made-up catalogues.

    Raises `MissingColumnError` for fields that no item has.
    """
    read = _reader(config, items, picture)
    keys: list[bytes | None] = []
    problems: list[Problem | None] = []
    for i in range(len(items)):
        found = read(i)
        keys.append(None if isinstance(found, Problem) else key_of(found))
        problems.append(found if isinstance(found, Problem) else None)
    return Content(tuple(items["item"].astype(str)), tuple(keys), tuple(problems), read)


def _reader(config: EncoderConfig, items: pd.DataFrame, picture: Picture | None) -> Callable[[int], Found]:
    if getattr(part_module("encoders", config.name), "BY_ID", False):
        ids = items["item"].astype(str).tolist()
        return lambda i: ids[i]
    if config.input == "image":
        return _images(items, picture)
    texts = list(_texts(config, items))
    return lambda i: texts[i]


def _texts(config: EncoderConfig, items: pd.DataFrame) -> Iterator[Found]:
    columns = [items[name].tolist() for name in _fields(config, items)]
    for row in zip(*columns):
        found = text_of(row)
        yield found if isinstance(found, Problem) else config.prompt.replace("{}", found)


def _fields(config: EncoderConfig, items: pd.DataFrame) -> Sequence[str]:
    known = [c for c in items.columns if c not in ("item", "image")]
    fields = config.fields or [f for f in TEXT_FIELDS if f in known]
    missing = [f for f in fields if f not in known]
    if missing or not fields:
        found = f"the items have no column {missing[0]!r}" if missing else f"the items have none of {TEXT_FIELDS}"
        near = nearest_hint(missing[0], known) if missing else "Name the columns in the encoder's `fields`."
        raise MissingColumnError(found, f"one of {', '.join(known) or 'none at all'}", near)
    return fields


def text_of(values: Sequence[Any]) -> str | Problem:
    """The fields of one item, joined by '. '; numbers are written out, lists joined by commas, gaps left out."""
    parts: list[str] = []
    for value in values:
        part = _part(value)
        if isinstance(part, Problem):
            return part
        parts += [] if part is None else [part.strip()]
    if not parts:
        return Problem("no_text", "no field has a value")
    text = ". ".join(p for p in parts if p)
    return text or Problem("empty_text", "nothing but blanks")


def _part(value: Any) -> str | Problem | None:
    if isinstance(value, str):
        return value if _is_text(value) else Problem("not_utf8", f"{value[:40]!a}")
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list | tuple | np.ndarray):
        parts = [_part(v) for v in value]
        bad = [p for p in parts if isinstance(p, Problem)]
        return bad[0] if bad else ", ".join(p for p in parts if isinstance(p, str)) or None
    return Problem("wrong_type", f"a field holds {type(value).__name__}: {str(value)[:40]!a}")


def _is_text(value: str) -> bool:
    """Whether it came from valid UTF-8: reading replaces what is not, and JSON lets halves of a character through."""
    return REPLACEMENT not in value and not any(0xD800 <= ord(c) <= 0xDFFF for c in value)


def _images(items: pd.DataFrame, picture: Picture | None) -> Callable[[int], Found]:
    if "image" not in items and picture is not None:
        rows = items.to_dict("records")
        return lambda i: picture({str(k): v for k, v in rows[i].items()})
    where = items["image"].tolist() if "image" in items else [None] * len(items)
    return lambda i: image_bytes(where[i])


def image_bytes(where: Any) -> bytes | Problem:
    """The bytes of an image file, or of what already is bytes; they are not looked into here."""
    if isinstance(where, bytes):
        return where or Problem("empty_file", "no bytes")
    if where is None or where is pd.NA or (isinstance(where, float) and math.isnan(where)) or where == "":
        return Problem("no_image", "the catalogue names none")
    if not isinstance(where, str):
        return Problem("wrong_type", f"`image` holds {type(where).__name__}: {str(where)[:40]!a}")
    try:
        body = Path(where).read_bytes()
    except FileNotFoundError:
        return Problem("no_image", f"{where} is not there")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return Problem("unreadable", f"{where}: {error}")
    return body or Problem("empty_file", where)
