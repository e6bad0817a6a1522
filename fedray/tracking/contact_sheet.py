"""A contact sheet: chosen items, each beside the items whose embeddings are nearest, to look at one by one.

Drawn pixel by pixel for `figures.png`, 1400 wide: a row an item, a cell a poster with its cosine and its title.
"""

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64, Real
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from fedray.tracking.figures import DPI, GREY, PALETTE

Picture = Callable[[int], Image.Image | None]

WIDTH, HEAD, MARGIN = 1400, 84, 14
POSTER = 150  # height
CELL = 214  # height of a row: poster, cosine, two lines of title
GAP = 22  # between an item and its neighbours
PALE, TILE = "#F2F4F7", "#DDDDDD"
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Droid Sans Fallback", "SimHei")
UNKNOWN = "\u25a1"
ELLIPSIS = "…"


class Neighbours(NamedTuple):
    """The nearest items, nearest first, their cosines, and whether their vector is the very same."""

    rows: Int64[np.ndarray, " k"]
    cosine: Float32[np.ndarray, " k"]
    same: Bool[np.ndarray, " k"]


def choose_rows(present: Bool[np.ndarray, " n"], popularity: Real[np.ndarray, " n"], n: int = 10) -> list[int]:
    """`n` items that have the feature, most popular first: half of them the most popular ones, the others spread evenly
    over the ranks of the rest. No chance plays a part, so that sheets of several runs show the same items.
    """
    there = np.flatnonzero(present)
    ranked = there[np.argsort(-popularity[there], kind="stable")]
    top = n // 2
    if len(ranked) <= n:
        return [int(i) for i in ranked]
    spread = top + (np.arange(n - top) + 0.5) * (len(ranked) - top) / (n - top)
    return [int(i) for i in ranked[[*range(top), *spread.astype(np.int64)]]]


def contact_sheet(
    vectors: Float32[np.ndarray, "n d"],
    present: Bool[np.ndarray, " n"],
    titles: Sequence[str],
    picture: Picture | None,
    rows: Sequence[int],
    neighbours: int = 6,
    title: str = "",
) -> Figure:
    """Each of `rows`, and right of it its nearest neighbours by cosine among the other items that are `present`.

    picture: item -> its poster, loaded; None where it has none. A vector that equals the query's is marked: items that
    share a placeholder or a text look like a find and are none.
    """
    height = HEAD + max(1, len(rows)) * CELL + MARGIN
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
    axes = _canvas(figure, height)
    width = (WIDTH - 2 * MARGIN - GAP) / (neighbours + 1)
    _head(axes, title, width, int(present.sum()))
    for at, row in enumerate(rows):
        found = nearest(vectors, present, row, neighbours)
        _draw_row(axes, HEAD + at * CELL, width, _Cells(row, found, titles, picture, bool(present[row])))
    return figure


def nearest(vectors: Float32[np.ndarray, "n d"], present: Bool[np.ndarray, " n"], row: int, k: int) -> Neighbours:
    """The `k` others that are present with the highest cosine to `row`; of equals the lower row. A zero vector has
    cosine 0 to all."""
    length = np.linalg.norm(vectors, axis=1)
    cosine = (vectors @ vectors[row]) / np.maximum(length * length[row], np.finfo(np.float32).tiny)
    others = np.flatnonzero(present & (np.arange(len(vectors)) != row))
    order = others[np.argsort(-np.round(cosine[others], 6), kind="stable")][: k if present[row] else 0]
    return Neighbours(order, cosine[order].astype(np.float32), (vectors[order] == vectors[row]).all(axis=1))


class _Cells(NamedTuple):
    """A row of the sheet before it is drawn."""

    row: int
    found: Neighbours
    titles: Sequence[str]
    picture: Picture | None
    present: bool


def _canvas(figure: Figure, height: int) -> Axes:
    """Axes over the whole figure, in pixels from its top left."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.set_autoscale_on(False)
    return axes


def _head(axes: Axes, title: str, width: float, items: int) -> None:
    _text(axes, MARGIN, 30, shown(title), size=13, weight="bold")
    _text(axes, MARGIN, 62, "item", color=GREY)
    says = f"nearest of the {items:,} items that have this feature, by the cosine of their vectors"
    _text(axes, MARGIN + width + GAP, 62, says, color=GREY)


def _draw_row(axes: Axes, top: float, width: float, cells: _Cells) -> None:
    axes.add_patch(Rectangle((MARGIN, top), width, CELL - 8, color=PALE, lw=0, zorder=0))
    says = "" if cells.present else "no vector"
    _draw_cell(axes, MARGIN, top, width, cells, cells.row, (says, PALETTE[1]))
    for i, (row, cosine, same) in enumerate(zip(cells.found.rows, cells.found.cosine, cells.found.same)):
        left = MARGIN + GAP + (i + 1) * width
        says = f"{cosine:.2f}  same vector" if same else f"{cosine:.2f}"
        _draw_cell(axes, left, top, width, cells, int(row), (says, PALETTE[1] if same else PALETTE[0]))


def _draw_cell(
    axes: Axes, left: float, top: float, width: float, cells: _Cells, row: int, says: tuple[str, str]
) -> None:
    image = cells.picture(row) if cells.picture else None
    centre, top = left + width / 2, top + 8
    if image is None:
        side = POSTER * 2 / 3
        axes.add_patch(Rectangle((centre - side / 2, top), side, POSTER, color=TILE, lw=0))
    else:
        _draw_picture(axes, image, centre, top, width - 16)
    _text(axes, centre, top + POSTER + 10, says[0], color=says[1], weight="bold", ha="center")
    for line, text in enumerate(wrapped(_name(cells.titles, row), int(width / 7.6))):
        first = top + POSTER + (27 if says[0] else 12)
        _text(axes, centre, first + 15 * line, text, ha="center")


def _draw_picture(axes: Axes, image: Image.Image, centre: float, top: float, width: float) -> None:
    """As large as fits, in whole pixels so that nothing is resampled twice; transparent parts white."""
    scale = min(width / image.width, POSTER / image.height)
    w, h = (max(1, round(side * scale)) for side in image.size)
    small = image.convert("RGBA").resize((w, h), Image.Resampling.LANCZOS, reducing_gap=3.0)
    flat = Image.alpha_composite(Image.new("RGBA", (w, h), "white"), small).convert("RGB")
    x, y = round(centre - w / 2), round(top + (POSTER - h) / 2)
    axes.imshow(np.asarray(flat), extent=(x, x + w, y + h, y), aspect="auto", interpolation="nearest", zorder=1)
    axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=TILE, lw=0.7, zorder=2))


def _name(titles: Sequence[str], row: int) -> str:
    """The title; the item's row where there is none, or none that can be read."""
    title = shown(titles[row]) if row < len(titles) else ""
    return title if title.strip(f"{UNKNOWN} ") else f"item {row}"


def _text(axes: Axes, x: float, y: float, text: str, size: float = 8.5, **more: str) -> None:
    """A title may hold dollar signs: they are no formula."""
    style: dict[str, Any] = {"color": "black", "va": "center", **more}
    axes.text(x, y, text, fontsize=size, fontfamily=families(), parse_math=False, **style)


def shown(title: object) -> str:
    """The title on one line, with boxes for what no font here can draw; '' for what is no text (a missing title)."""
    if not isinstance(title, str):
        return ""
    plain = " ".join(unicodedata.normalize("NFC", title).split())
    return "".join(c if ord(c) in _drawable() else UNKNOWN for c in plain)


def wrapped(text: str, width: int, lines: int = 2) -> list[str]:
    """At most two lines of `width` narrow letters, broken at spaces where there are any, the rest an ellipsis.

    A letter of Chinese, Japanese or Korean takes two places, as does the box for one.
    """
    out: list[str] = []
    while text and len(out) < lines:
        head = _fitting(text, width)
        if len(head) < len(text) and len(out) == lines - 1:
            return [*out, _fitting(text, width - 1).rstrip() + ELLIPSIS]
        space = head.rfind(" ") if len(head) < len(text) and text[len(head)] != " " else -1
        head = head[:space] if space > 0 else head
        out.append(head.rstrip())
        text = text[len(head) :].lstrip()
    return out


def _fitting(text: str, width: int) -> str:
    """The longest start of `text` that fits; one letter at the least."""
    ends = np.cumsum([2 if c == UNKNOWN or unicodedata.east_asian_width(c) in "WF" else 1 for c in text])
    return text[: max(1, int((ends <= width).sum()))]


@cache
def families() -> tuple[str, ...]:
    """Those of `FONTS` that are installed; matplotlib brings the first one along."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in FONTS if name in installed)


@cache
def _drawable() -> frozenset[int]:
    """Code points that one of these fonts can draw: matplotlib warns of every other."""
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in families()]
    return frozenset(code for font in fonts for code in font.get_charmap())
