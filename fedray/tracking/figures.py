"""Plots of a run, drawn without pyplot: no global state, no display.

Colours are those of Okabe and Ito (2008), which stay apart for colour-blind eyes.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedray.tracking.records import MB
from fedray.types import RoundReport

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
CONTROL_STYLES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
GREY = "#555555"
DPI = 110

_QUANTILE = re.compile(r"((?:val|test)/.+)_p(\d{1,2})$")


def curves(
    reports: Sequence[RoundReport],
    metric: str = "ndcg_at_10",
    controls: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Loss, validation quality, seconds per stage, and quality against traffic; by round.

    `metric` is the one quality is read by (`val/<metric>`); `controls` are its values by control name,
    drawn as level lines.
    """
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    _loss(axes[0, 0], reports)
    _quality(axes[0, 1], reports, metric, controls or {})
    _stages(axes[1, 0], reports)
    _traffic(axes[1, 1], reports, metric)
    if title:
        figure.suptitle(title, fontweight="bold")
    return figure


def quantiles(metrics: Mapping[str, float], title: str = "Quality per client") -> Figure | None:
    """Bars of per-client quantiles from metrics named `val/ndcg_at_10_p10`; None if there are none."""
    table = quantile_table(metrics)
    if not table:
        return None
    levels = sorted({level for row in table.values() for level in row})
    figure = Figure(figsize=(max(6.0, 1.6 * len(table) + 2), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(levels)
    places = np.arange(len(table))
    for i, level in enumerate(levels):
        heights = [row.get(level, np.nan) for row in table.values()]
        at = places + (i - (len(levels) - 1) / 2) * width
        bars = axes.bar(at, heights, width * 0.92, color=PALETTE[i % len(PALETTE)], label=f"{level}th percentile")
        axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
    axes.set_xticks(places, list(table))
    dress(axes, title, "", "metric value")
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False)
    return figure


def quantile_table(metrics: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Metric -> percentile -> value, from names of the splits' metrics that end in `_p<percentile>`."""
    table: dict[str, dict[int, float]] = {}
    for name, value in metrics.items():
        if found := _QUANTILE.match(name):
            table.setdefault(found[1], {})[int(found[2])] = value
    return table


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def series(reports: Iterable[RoundReport], name: str) -> tuple[list[int], list[float]]:
    """Rounds and values of a metric."""
    found = [(r.round, r.metrics[name]) for r in reports if name in r.metrics]
    return [x for x, _ in found], [y for _, y in found]


def _loss(axes: Axes, reports: Sequence[RoundReport]) -> None:
    names = [n for n in _names(reports) if n.startswith("train/") and "loss" in n] or ["train/loss"]
    for i, name in enumerate(names):
        axes.plot(*series(reports, name), color=PALETTE[i % len(PALETTE)], label=name, lw=1.8)
    dress(axes, "Training loss", "round", "loss (mean over clients)")
    if len(names) > 1:
        axes.legend(frameon=False)


def _quality(axes: Axes, reports: Sequence[RoundReport], metric: str, controls: Mapping[str, float]) -> None:
    """The selecting metric and its validation controls as level lines."""
    axes.plot(*series(reports, f"val/{metric}"), color=PALETTE[0], lw=2.2, label="this run")
    for i, (name, value) in enumerate(sorted(controls.items(), key=lambda kv: -kv[1])):
        style = CONTROL_STYLES[i % len(CONTROL_STYLES)]
        axes.axhline(value, color=GREY, ls=style, lw=1.2, label=f"{name} {value:.3f}")
    dress(axes, f"Validation {metric} and its controls", "round", metric)
    axes.set_ylim(bottom=0)
    axes.legend(framealpha=0.8, edgecolor="none", fontsize=7)


def _stages(axes: Axes, reports: Sequence[RoundReport]) -> None:
    names = sorted({s for r in reports for s in r.seconds if s != "round"})
    heights = [[r.seconds.get(name, 0.0) for r in reports] for name in names]
    if heights:
        axes.stackplot([r.round for r in reports], heights, labels=names, colors=PALETTE, alpha=0.9)
        axes.legend(frameon=False, fontsize=8, loc="upper right", reverse=True)
    dress(axes, "Time per stage", "round", "seconds in the round")
    axes.set_ylim(bottom=0)


def _traffic(axes: Axes, reports: Sequence[RoundReport], metric: str) -> None:
    total = accumulate((r.bytes_down + r.bytes_up) / MB for r in reports)
    points = [(mb, r.metrics[f"val/{metric}"]) for mb, r in zip(total, reports) if f"val/{metric}" in r.metrics]
    axes.plot([x for x, _ in points], [y for _, y in points], color=PALETTE[0], lw=1.8, marker=".", ms=4)
    dress(axes, "Quality against traffic", "MB sent so far, down and up", f"val/{metric}")
    axes.set_ylim(bottom=0)


def _names(reports: Iterable[RoundReport]) -> list[str]:
    return sorted({name for report in reports for name in report.metrics})


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Titles, grid and spines as in every plot."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if x == "round":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
