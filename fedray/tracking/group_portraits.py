"""Pictures of groups of clients: sizes by round, who is near whom, what each likes and how well it is served.

Drawn as in `figures`. The eight largest groups at the selected round have a colour each, the same in all pictures.
"""

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fedray.evaluation.groups import Liked, Served, liked, served
from fedray.federated.method import Portrait
from fedray.federated.rounds import Outcome
from fedray.tracking.contact_sheet import families, shown, wrapped
from fedray.tracking.figures import GREY, PALETTE, dress, png, series
from fedray.types import RoundReport

POINTS = 3000
PAGE, PAGES = 6, 4
"""Groups on a page of items, and pages; of more groups the largest are drawn."""
TITLE = 38  # letters
STRAY = "#BBBBBB"  # of the smaller groups, and of clients without one

Colours = Mapping[int, str]


def drawn(
    reports: Sequence[RoundReport], outcome: Outcome, names: Sequence[str], metric: str, title: str
) -> dict[str, bytes]:
    """`figures/<name>.png`; nothing where the method makes no groups."""
    if outcome.groups is None:
        return {}
    at = f"{title}, round {outcome.best_round}"
    found = {
        "groups": groups(reports, outcome.groups, served(outcome.users, metric), outcome.best_round, metric, title),
        "groups_map": plane(outcome.groups, at),
        **items(liked(outcome.groups.preference, outcome.groups.group), names, at),
    }
    return {f"figures/{name}.png": png(figure) for name, figure in found.items()}


def groups(
    reports: Sequence[RoundReport],
    portrait: Portrait,
    means: Sequence[Served],
    best_round: int,
    metric: str = "ndcg_at_10",
    title: str = "",
) -> Figure:
    """Sizes, stability and the fit's loss by round, and the metric of each group at the selected round."""
    colours = colours_of(portrait.group)
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    _sizes(axes[0, 0], reports, colours)
    _line(axes[0, 1], reports, "group/stability", "Stability: adjusted Rand index against the round before", "index")
    axes[0, 1].set_ylim(min(-0.05, axes[0, 1].get_ylim()[0]), 1.05)
    _line(axes[1, 0], reports, "group/fit_loss", "Loss of the server's fit, last epoch", "loss")
    _means(axes[1, 1], means, colours, metric)
    for ax in axes.flat[:3]:
        ax.axvline(best_round, color=GREY, ls="--", lw=1.2)
    _legend(figure, portrait.group, colours)
    figure.suptitle(f"Groups of clients (dashed: the selected round)\n{title}", fontweight="bold")
    return figure


def _sizes(axes: Axes, reports: Sequence[RoundReport], colours: Colours) -> None:
    names = sorted({int(k.rsplit("_", 1)[1]) for r in reports for k in r.metrics if k.startswith("group/size_")})
    if names:
        rounds = np.array(series(reports, f"group/size_{names[0]}")[0])
        heights = [np.repeat(series(reports, f"group/size_{g}")[1], 2) for g in names]
        edges = np.stack([rounds - 0.5, rounds + 0.5], axis=1).ravel()  # a step a round
        shades = [colours.get(g, STRAY) for g in names]
        axes.stackplot(edges, heights, colors=shades, edgecolor="white", lw=0.3, alpha=0.9)
        axes.set_xlim(edges[0], edges[-1])
    dress(axes, "Sizes", "round", "clients")
    axes.set_ylim(bottom=0)


def _line(axes: Axes, reports: Sequence[RoundReport], name: str, title: str, y: str) -> None:
    axes.plot(*series(reports, name), color=PALETTE[0], lw=1.8, marker=".")
    dress(axes, title, "round", y)


def _means(axes: Axes, means: Sequence[Served], colours: Colours, metric: str) -> None:
    names = ["none" if m.group < 0 else f"{m.group}" for m in means]
    shades = [colours.get(m.group, STRAY) for m in means]
    heights, errors = [m.mean for m in means], [m.error for m in means]
    axes.bar(range(len(means)), heights, yerr=errors, color=shades, ecolor=GREY, capsize=3, width=0.7)
    every = max(1, ceil(len(means) / 16))
    labels = [f"{name}\n({m.clients:,})" for name, m in zip(names, means)]
    axes.set_xticks(range(0, len(means), every), labels[::every])
    if clients := sum(m.clients for m in means):
        axes.axhline(sum(m.mean * m.clients for m in means) / clients, color=GREY, ls=":", lw=1.2, label="all clients")
        axes.legend(frameon=False, fontsize=8)
    dress(axes, "Test set, by group (whiskers: standard error)", "group (clients with a test item)", metric)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(bottom=0)


def plane(portrait: Portrait, title: str = "") -> Figure:
    """A point a client of the round, coloured by its group; of more than `POINTS`, evenly by id."""
    n, colours = len(portrait.client), colours_of(portrait.group)
    chosen = np.unique(np.linspace(0, n - 1, min(n, POINTS)).astype(np.int64))
    shades = [colours.get(int(g), STRAY) for g in portrait.group[portrait.client[chosen]]]
    figure = Figure(figsize=(8, 7.2), layout="constrained")
    axes = figure.subplots()
    # One call in order of ids: no group lies on top of all others.
    axes.scatter(portrait.at[chosen, 0], portrait.at[chosen, 1], c=shades, s=16, alpha=0.75, lw=0)
    which = f"{n:,} clients" if len(chosen) == n else f"{len(chosen):,} of {n:,} clients, evenly by id"
    x, y = (
        f"{axis} principal axis, {share:.0%} of the variance" for axis, share in zip(("1st", "2nd"), portrait.share)
    )
    dress(axes, which, x, y)
    axes.set_aspect("equal", "datalim")
    _legend(figure, portrait.group, colours)
    figure.suptitle(f"Clients by their score functions, coloured by group\n{title}", fontweight="bold")
    return figure


def items(found: Sequence[Liked], names: Sequence[str], title: str = "") -> dict[str, Figure]:
    """`group_items`, `group_items_2`, ...: bars of what each group likes most, and likes more than others do."""
    largest = sorted(sorted(found, key=lambda one: -one.clients)[: PAGE * PAGES], key=lambda one: one.group)
    pages = [largest[lo : lo + PAGE] for lo in range(0, len(largest), PAGE)]
    left = f", the {len(largest)} largest of {len(found)} groups" if len(largest) < len(found) else ""
    colours = _coloured({one.group: one.clients for one in found})
    figures = [_page(page, names, colours, f"{title}{left}") for page in pages]
    return {f"group_items{'' if i == 0 else f'_{i + 1}'}": figure for i, figure in enumerate(figures)}


def _page(page: Sequence[Liked], names: Sequence[str], colours: Colours, title: str) -> Figure:
    figure = Figure(figsize=(13, 1.2 + 2.4 * len(page)), layout="constrained")
    axes = figure.subplots(len(page), 2, squeeze=False, sharex="col")
    for (left, right), one in zip(axes, page):
        colour = colours.get(one.group, STRAY)
        _bars(left, one.most, names, colour, "%.3f")
        _bars(right, one.more, names, colour, "%+.3f")
        last = one is page[-1]
        dress(left, f"group {one.group} ({one.clients:,} clients): liked most", "preference" if last else "", "")
        dress(right, "more than others", "preference above the mean over groups" if last else "", "")
        for ax in (left, right):
            ax.grid(visible=False, axis="y")
            ax.set_axisbelow(True)
            ax.tick_params(labelbottom=True)
    figure.suptitle(f"What each group likes\n{title}", fontweight="bold")
    return figure


def _bars(axes: Axes, entries: Sequence[tuple[int, float]], names: Sequence[str], colour: str, spelled: str) -> None:
    """A title may hold dollar signs: they are no formula."""
    bars = axes.barh(range(len(entries)), [value for _, value in entries], color=colour, height=0.7)
    axes.bar_label(bars, fmt=spelled, fontsize=8, padding=3)
    labels = [" ".join(wrapped(shown(names[item]), TITLE, lines=1)) for item, _ in entries]
    axes.set_yticks(range(len(entries)), labels, fontsize=8.5, fontfamily=families(), parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def colours_of(group: Int[np.ndarray, " N"]) -> Colours:
    """A colour for each of the largest groups, in order of their numbers."""
    return _coloured(_counts(group))


def _coloured(size: Mapping[int, int]) -> Colours:
    largest = sorted(size, key=lambda g: -size[g])[: len(PALETTE)]
    return dict(zip(sorted(largest), PALETTE))


def _counts(group: Int[np.ndarray, " N"]) -> dict[int, int]:
    numbers, counts = np.unique(group[group >= 0], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist()))


def _legend(figure: Figure, group: Int[np.ndarray, " N"], colours: Colours) -> None:
    """The coloured groups with their sizes, and how many groups have none."""
    size = _counts(group)
    handles = [Patch(color=colour, label=f"group {g} ({size[g]:,})") for g, colour in colours.items()]
    if more := len(size) - len(colours):
        clients = sum(n for g, n in size.items() if g not in colours)
        handles.append(Patch(color=STRAY, label=f"{more} smaller groups ({clients:,})"))
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 2)))  # inches a label
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
