"""Charts of a report as SVG that a page can hold, in colours that follow the page's.

Rows go by number, colour and dashes; the page's own key says which is which. What is neither row nor paper is drawn in
`INK` and handed over as `currentColor`, so that one picture is readable on light and on dark.
"""

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedray.tracking.courses import Curve
from fedray.tracking.figures import PALETTE

COLOURS = PALETTE[:6]
"""Without yellow and black: each of these can be seen on white and on black."""
DASHES = ("", "6 3", "2 2", "8 3 2 3")
"""As SVG has them; matplotlib's are in widths of the line."""
INK = "#123456"
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "fedray", "font.family": ["sans-serif"], "font.size": 9.5}
NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
WIDTH, HEIGHT = 5.0, 3.1
LINE = 2.0


@dataclass(frozen=True)
class Bundle:
    """A row's curves: each seed's, and their mean ([] where that is the only one)."""

    number: int
    seeds: Sequence[Curve]
    mean: Curve


def style(number: int) -> tuple[str, str]:
    """Colour and dashes of the row of that number, from 1 on."""
    return COLOURS[(number - 1) % len(COLOURS)], DASHES[(number - 1) // len(COLOURS) % len(DASHES)]


def curves(bundles: Sequence[Bundle], x: str, y: str, from_zero: bool) -> str:
    """A line a row, its seeds thin behind it."""
    with rc_context(SETTINGS):
        figure, axes = _paper(HEIGHT)
        for bundle in bundles:
            _bundle(axes, bundle)
        _dress(axes, x, y)
        if x == "round":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if from_zero:
            axes.set_ylim(bottom=0)
        return _svg(figure, f"{y} against {x}")


def spreads(rows: Sequence[tuple[int, Sequence[float]]], x: str) -> str:
    """A bar a row from its five quantiles, ascending: thin over all, thick over the middle half, a dot at median."""
    with rc_context(SETTINGS):
        figure, axes = _paper(0.9 + 0.32 * len(rows))
        for place, (number, (p10, p25, p50, p75, p90)) in enumerate(rows):
            colour = style(number)[0]
            axes.plot([p10, p90], [place, place], color=colour, lw=2)
            axes.plot([p25, p75], [place, place], color=colour, lw=8, solid_capstyle="butt")
            axes.plot([p50], [place], marker="o", ms=7, color=colour, mec=INK, mew=1.5, clip_on=False)
        _dress(axes, x, "row")
        axes.set_yticks(range(len(rows)), [str(number) for number, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
        return _svg(figure, f"quantiles of {x}")


def _bundle(axes: Axes, bundle: Bundle) -> None:
    colour, dashes = style(bundle.number)
    drawn = (0, [float(n) / LINE for n in dashes.split()]) if dashes else "-"
    dot = "o" if len(bundle.mean[0]) == 1 else ""  # a single point is no line
    if len(bundle.seeds) > 1:
        for xs, ys in bundle.seeds:
            axes.plot(xs, ys, color=colour, lw=0.8, alpha=0.45)
    axes.plot(*bundle.mean, color=colour, lw=LINE, ls=drawn, marker=dot, ms=5)


def _paper(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK, parse_math=False)
    axes.set_ylabel(y, color=INK, parse_math=False)
    axes.tick_params(colors=INK)
    axes.grid(visible=True, color=INK, alpha=0.2, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _svg(figure: Figure, label: str) -> str:
    """As an element: it takes the width that the page gives it, and its texts are texts."""
    out = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(out, format="svg", metadata=NO_METADATA)
    element = out.getvalue().partition("<svg")[2]
    sized = re.sub(r' (width|height)="[\d.]+pt"', "", element, count=2)
    return f'<svg role="img" aria-label="{html.escape(label)}"{sized.replace(INK, "currentColor").rstrip()}'
