"""What an encoder could not take, remembered beside its embeddings: the same bytes are not tried at every run.

One JSON object a line, appended in one write each, so that jobs may share the file; a torn line is passed over. Only
what follows from the bytes is kept. An actor that died may have died of something else.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from fedray.encoders import Kind, Problem

FILE = "refused.jsonl"
LASTING = ("empty_text", "not_an_image", "truncated", "too_large", "not_finite")


def read_refusals(folder: Path, max_pixels: int) -> dict[bytes, Problem]:
    """Key -> problem. An image refused for its size is tried again under another limit."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    return {key: problem for line in lines for key, problem, limit in _entry(line) if limit in (None, max_pixels)}


def _entry(line: str) -> list[tuple[bytes, Problem, int | None]]:
    try:
        row = json.loads(line)
        key, kind = bytes.fromhex(row["key"]), row["kind"]
    except (ValueError, TypeError, KeyError):
        return []
    return [(key, Problem(kind, str(row.get("detail", ""))), row.get("limit"))] if kind in get_args(Kind) else []


def add_refusals(folder: Path, problems: Mapping[bytes, Problem], max_pixels: int) -> None:
    """Remember the lasting ones of these."""
    lasting = {k: p for k, p in problems.items() if p.kind in LASTING}
    if not lasting:
        return
    handle = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        for key, problem in lasting.items():
            limit = max_pixels if problem.kind == "too_large" else None
            row = {"key": key.hex(), "kind": problem.kind, "detail": problem.detail[:200], "limit": limit}
            os.write(handle, (json.dumps(row) + "\n").encode())
    finally:
        os.close(handle)
