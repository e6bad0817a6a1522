"""Pictures of who uses what: each client's router weights, what a part of the item rows is worth, and to whom.

Drawn as in `figures`. Each is None where there is nothing to draw.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedray.evaluation.ablation import Ablated, Gain
from fedray.evaluation.metrics import AMONG_COLD
from fedray.evaluation.users import Users, traits_in
from fedray.federated.rounds import Outcome
from fedray.tracking.figures import GREY, PALETTE, dress, png, series
from fedray.types import RoundReport


def drawn(
    reports: Sequence[RoundReport], outcome: Outcome, gains: Mapping[str, Gain], metric: str, title: str
) -> dict[str, bytes]:
    """`figures/<name>.png` of those that there is something to draw for."""
    full = Ablated(outcome.test, outcome.test_errors)
    found = {
        "router": router(reports, outcome.users, outcome.best_round, title),
        "ablation": ablation(full, outcome.ablation, metric, title),
        "content_gain": content_gain(gains, metric, title),
    }
    return {f"figures/{name}.png": png(figure) for name, figure in found.items() if figure is not None}


def router(reports: Sequence[RoundReport], users: Users, best_round: int, title: str = "") -> Figure | None:
    """The views' weights by round (mean over clients, band from 10th to 90th percentile), and beside it those of every
    client at the selected round, in order of the view that tells clients apart most."""
    names = traits_in(users)
    if not names:
        return None
    figure = Figure(figsize=(12, 5), layout="constrained")
    drift, people = figure.subplots(1, 2)
    _drift(drift, reports, names, best_round)
    _people(people, users, names)
    handles, labels = drift.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"How clients' routers weigh the views\n{title}", fontweight="bold")
    return figure


def _drift(axes: Axes, reports: Sequence[RoundReport], names: Sequence[str], best_round: int) -> None:
    for name, colour in zip(names, _colours(names)):
        rounds, means = series(reports, name)
        low, high = (series(reports, f"{name}_{p}")[1] for p in ("p10", "p90"))
        axes.plot(rounds, means, color=colour, lw=2.0, marker=".", label=_view(name))
        axes.fill_between(rounds, low, high, facecolor=colour, edgecolor=colour, alpha=0.18, lw=0.8)
    axes.axhline(1 / len(names), color=GREY, ls=":", lw=1.2, label="all alike")
    axes.axvline(best_round, color=GREY, ls="--", lw=1.2, label="selected round")
    dress(axes, "Mean over clients, band: 10th to 90th percentile", "round", "weight")


def _people(axes: Axes, users: Users, names: Sequence[str]) -> None:
    weights = np.stack([users[name] for name in names])
    weights = weights[:, np.isfinite(weights).all(axis=0)]
    n = weights.shape[1]
    most = np.bincount(weights.argmax(axis=0), minlength=len(names))
    counts = ", ".join(f"{_view(name)} {k:,}" for name, k in zip(names, most))
    title = "Each client at the selected round"
    if n == 0:
        return dress(axes, title, "clients", "weight")
    first = int(np.argmax(weights.std(axis=1).round(6)))  # two views differ alike, but for rounding
    stack = [first, *(i for i in range(len(names)) if i != first)]
    heights = weights[stack][:, np.argsort(-weights[first], kind="stable")]
    edges = np.repeat(np.arange(n + 1), 2)[1:-1]  # a step a client
    axes.stackplot(edges, np.repeat(heights, 2, axis=1), colors=[_colours(names)[i] for i in stack], lw=0)
    dress(axes, title, f"{n:,} clients, by weight of {_view(names[first])}\nheaviest view: {counts}", "weight")
    axes.set(xlim=(0, n), ylim=(0, 1))
    axes.grid(visible=False)
    return None


def ablation(full: Ablated, parts: Mapping[str, Ablated], metric: str, title: str = "") -> Figure | None:
    """The selected model and the same without each part: bars with standard errors, of all items and, where some were
    held out of training, of those among themselves."""
    shown = [name for name in (metric, AMONG_COLD + metric) if all(name in a.test for a in (full, *parts.values()))]
    if not parts or not shown:
        return None
    figure = Figure(figsize=(7.5 * len(shown), 1.6 + 0.55 * (1 + len(parts))), layout="constrained")
    rows = {"full model": full, **{_spelled(name): a for name, a in parts.items()}}
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        values, errors = ([getattr(a, of).get(name, np.nan) for a in rows.values()] for of in ("test", "errors"))
        colours = [PALETTE[0], *[PALETTE[5]] * len(parts)]
        bars = axes.barh(list(rows), values, xerr=errors, color=colours, ecolor=GREY, capsize=3, height=0.7)
        axes.bar_label(bars, fmt="%.4f", fontsize=8, padding=4)
        axes.axvline(values[0], color=PALETTE[0], ls=":", lw=1.2)
        axes.invert_yaxis()
        dress(axes, "cold items among themselves" if name != metric else "all items", f"test {name}", "")
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.15)
    figure.suptitle(f"Without a part of the item rows (whiskers: standard error)\n{title}", fontweight="bold")
    return figure


def content_gain(gains: Mapping[str, Gain], metric: str, title: str = "") -> Figure | None:
    """Bars: what content adds to a client's metric, by activity and in each slice, with standard errors."""
    if not gains:
        return None
    figure = Figure(figsize=(max(7.0, 1.5 * len(gains) + 1), 4.8), layout="constrained")
    axes = figure.subplots()
    means, errors = [g.mean for g in gains.values()], [g.error for g in gains.values()]
    groups = [name.split("_")[0] for name in gains]
    colours = [{"all": PALETTE[0], "activity": PALETTE[5]}.get(group, PALETTE[1]) for group in groups]
    axes.bar(range(len(gains)), means, yerr=errors, color=colours, ecolor=GREY, capsize=4, width=0.7)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(gains)), [_who(name, gain) for name, gain in gains.items()])
    dress(axes, "Mean over clients of the full model less the same without content", "", f"test {metric}, difference")
    axes.grid(visible=False, axis="x")
    figure.suptitle(f"What content adds, and to whom (whiskers: standard error)\n{title}", fontweight="bold")
    return figure


def _who(name: str, gain: Gain) -> str:
    label = f"{gain.label}\ntraining items" if name.startswith("activity") else gain.label
    return f"{label}\n({gain.clients:,} users)"


def _spelled(name: str) -> str:
    return name.replace("_", " ", 1)


def _view(name: str) -> str:
    return name.split("/", 1)[1]


def _colours(names: Sequence[str]) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(len(names))]
