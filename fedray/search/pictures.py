"""Pictures of a sweep: its history, settings beside each other, and which of them matter."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from fedray.search.records import TrialRecord, best_of
from fedray.search.report import value_text
from fedray.search.space import Axis, current
from fedray.search.suggest import study_of
from fedray.search.sweep import Sweep
from fedray.tracking.figures import GREY, PALETTE, dress, png

LEAST = 4
"""Trials from which importance says anything."""
BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}


def drawn(sweep: Sweep, trials: Sequence[TrialRecord], metric: str) -> dict[str, bytes]:
    """File name -> PNG."""
    told = [r for r in trials if r.points and r.state != "failed"]
    found = {"history": history(sweep, told, metric), "parallel": parallel(sweep, told, metric)}
    weights, round_ = importance(sweep, told)
    if weights:
        found["importance"] = bars(weights, f"{sweep.config.name}: share of the variance of {metric} at round {round_}")
    return {f"figures/{name}.png": png(figure) for name, figure in found.items()}


def history(sweep: Sweep, trials: Sequence[TrialRecord], metric: str) -> Figure:
    """Each trial's curve and the best of all so far, by trial."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = [r.value or 0.0 for r in trials]
    for state, colour, marker in (("finished", PALETTE[0], "o"), ("pruned", PALETTE[1], "x")):
        some = [r for r in trials if r.state == state]
        left.scatter([r.number for r in some], [r.value for r in some], c=colour, marker=marker, label=state)
    left.step(
        [r.number for r in trials], np.maximum.accumulate(values), where="post", color=PALETTE[2], label="best so far"
    )
    dress(left, f"{sweep.config.name}: best validation {metric} of each trial", "trial", metric)
    left.legend(frameon=False)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    best = best_of(trials)
    for r in trials:
        top = r is best
        style: dict[str, Any] = {
            "color": PALETTE[2] if top else GREY,
            "lw": 2.4 if top else 0.8,
            "alpha": 1 if top else 0.6,
        }
        right.plot(*zip(*r.points, strict=True), **style, label=f"trial {r.number}" if top else None)
    pbt = sweep.config.scheduler.name == "pbt"
    said = "with the rounds shared with others" if pbt else "where trials were broken off"
    dress(right, f"best so far by round: {said}", "round", metric)
    right.legend(frameon=False)
    return figure


def parallel(sweep: Sweep, trials: Sequence[TrialRecord], metric: str) -> Figure:
    """One line a trial through its settings, coloured by its value; settings it does not have are gaps."""
    axes_, colours = sweep.space, colormaps["viridis"]
    figure = Figure(figsize=(max(7.0, 1.9 * (len(axes_) + 1)), 5.2), layout="constrained")
    plot = figure.subplots()
    values = np.array([r.value or 0.0 for r in trials])
    low, high = values.min(), max(values.max(), values.min() + 1e-12)
    for r in sorted(trials, key=lambda r: r.value or 0.0):
        share = ((r.value or 0.0) - low) / (high - low)
        now = current(r.settings)
        heights = [_height(a, now[a.key]) if a.key in now else np.nan for a in axes_]
        plot.plot([*heights, share], color=colours(share), lw=0.8 + 1.6 * share, alpha=0.5 + 0.5 * share, marker=".")
    for x, axis in enumerate(axes_):
        _ticks(plot, x, axis)
    for share, value in ((0.0, low), (1.0, high)):
        plot.text(len(axes_) + 0.04, share, f"{value:.4f}", fontsize=8, va="center")
    names = [*(a.key.replace(".", "\n", 1) for a in axes_), f"validation\n{metric}"]
    plot.set_xticks(range(len(names)), names, fontsize=8)
    plot.set_yticks([])
    plot.set_xlim(-0.3, len(axes_) + 0.6)
    plot.grid(visible=True, axis="x", alpha=0.6)
    plot.spines[["top", "right", "left"]].set_visible(False)
    plot.set_title(f"{sweep.config.name}: {len(trials)} trials", loc="left")
    return figure


def _height(axis: Axis, value: Any) -> float:
    """Where a value stands on its axis, 0 to 1."""
    if axis.kind in ("choice", "grid"):
        return axis.values.index(value) / max(len(axis.values) - 1, 1)
    low, high = axis.values
    if axis.kind == "loguniform":
        return float(np.log(value / low) / np.log(high / low))
    return float((value - low) / (high - low))


def _ticks(plot: Axes, x: int, axis: Axis) -> None:
    for value in axis.values:
        plot.text(
            x + 0.04, _height(axis, value), value_text(value)[:28], fontsize=8, va="center", color=GREY, bbox=BEHIND
        )


def importance(sweep: Sweep, trials: Sequence[TrialRecord]) -> tuple[dict[str, float], int]:
    """Each setting's share of the variance over trials (fANOVA, Hutter et al. 2014), the largest first; empty where
    there is too little to say. And the round at which they are compared, the last one that all of them reached: what
    came later depends on which were broken off."""
    round_ = min((r.points[-1][0] for r in trials), default=0)
    then = [replace(r, state="finished", value=[v for n, v in r.points if n <= round_][-1]) for r in trials]
    common = [a.key for a in sweep.space if all(a.key in r.settings for r in then)]
    varied = [k for k in common if len({value_text(r.settings[k]) for r in then}) > 1]
    moved = sweep.config.scheduler.name == "pbt"  # no trial is its settings there
    if moved or len(then) < LEAST or len({r.value for r in then}) < 2 or not varied:
        return {}, round_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = FanovaImportanceEvaluator(seed=0)
        return get_param_importances(study_of(sweep, then), evaluator=evaluator, params=varied), round_


def bars(weights: dict[str, float], title: str) -> Figure:
    """The most important on top."""
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(weights)), layout="constrained")
    plot = figure.subplots()
    names = list(reversed(weights))
    drawn_ = plot.barh(names, [weights[n] for n in names], color=PALETTE[0])
    plot.bar_label(drawn_, fmt="%.2f", padding=3, fontsize=8)
    dress(plot, title, "share", "")
    plot.grid(visible=False, axis="y")
    return figure
