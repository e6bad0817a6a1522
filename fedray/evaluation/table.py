"""The table at the end of a run: its metrics beside their controls, for the terminal and for Markdown.

Rows: the protocol's own ranking first, then the others (`sampled99_...`), by cut-off; then a block for each
slice of the clients, its name and number of test items above it. Nothing is highlighted: the columns are
not competitors (EASE is central, the rest are floors).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from fedray.evaluation.content import PREFIX
from fedray.evaluation.slices import TARGETS

CONTENT = "content_<feature>"
COLUMNS = {
    "run": "this run",
    "random": "random",
    "popularity": "popularity",
    "constant": "constant",
    CONTENT: "content",
    "local_only": "local-only",
    "ease": "EASE",
}
NARROW = {
    "this run": "this\nrun",
    "popularity": "popu-\nlarity",
    "constant": "con-\nstant",
    "local-only": "local-\nonly",
}
FEATURE_WIDTH = 12
KINDS = ("hr", "ndcg")
_METRIC = re.compile(r"((?P<part>\w+)/)?(?P<prefix>\w*?)(?P<kind>hr|recall|ndcg|mrr)_at_(?P<k>\d+)")


def end_table(
    test: Mapping[str, float],
    controls: Mapping[str, Mapping[str, float]],
    ks: Collection[int] | None = None,
    kinds: Sequence[str] = KINDS,
    title: str = "",
) -> "EndTable":
    """Metric -> value of the run and, per control, of the controls (`split_of` takes a split of them).

    ks: the cut-offs shown (None: all); kinds: of hr, recall, ndcg, mrr. A control that is not there has
    no column; a value that is not there is a dash. Four decimals.
    """
    columns = {"run": test, **controls}
    return _both(*_cells(columns, _shown(columns), ks, kinds), title)


def ablation_table(
    test: Mapping[str, float], parts: Mapping[str, Mapping[str, float]], ks: Collection[int] | None = None
) -> "EndTable":
    """The same rows with the model once more without each part of the item rows: hr and ndcg."""
    return _both(*_cells({"run": test, **parts}, _without(parts), ks, KINDS), "")


def _both(header: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]], title: str) -> "EndTable":
    return EndTable(*(_table(header, blocks, title, narrow) for narrow in (False, True)))


class EndTable(NamedTuple):
    """What rich prints: `narrow` (80 columns with every control and two features) where `wide` does not fit."""

    wide: Table
    narrow: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = console.measure(self.wide, options=options.update(max_width=1000)).maximum
        yield self.wide if needed <= options.max_width else self.narrow


def _table(header: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]], title: str, narrow: bool) -> Table:
    padding = (0, 0, 0, 0 if narrow else 1)
    table = Table(title=title or None, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    for i, name in enumerate(header):
        heading = _heading(name, narrow)
        table.add_column(heading, justify="right" if i else "left", vertical="bottom", no_wrap=True)
    for block in blocks:
        table.add_section()
        for row in block:
            table.add_row(*row)
    return table


def end_markdown(
    test: Mapping[str, float],
    controls: Mapping[str, Mapping[str, float]],
    ks: Collection[int] | None = None,
    kinds: Sequence[str] = KINDS,
    title: str = "",
) -> str:
    """The same table as Markdown, a paragraph of its own for the title; ends with a newline."""
    columns = {"run": test, **controls}
    return _markdown(*_cells(columns, _shown(columns), ks, kinds), title)


def ablation_markdown(
    test: Mapping[str, float], parts: Mapping[str, Mapping[str, float]], ks: Collection[int] | None = None
) -> str:
    """`ablation_table` as Markdown, a paragraph of its own for what it is."""
    return _markdown(*_cells({"run": test, **parts}, _without(parts), ks, KINDS), "the same model without a part")


def _markdown(header: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]], title: str) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    head = f"{title}\n\n" if title else ""
    return head + "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *chain(*blocks)])


def split_of(controls: Mapping[str, Mapping[str, Mapping[str, float]]], split: str) -> dict[str, dict[str, float]]:
    """Control -> metric -> value, of one split; a control without that split is left out."""
    return {name: dict(splits[split]) for name, splits in controls.items() if split in splits}


def _cells(
    columns: Mapping[str, Mapping[str, float]],
    shown: Mapping[str, str],
    ks: Collection[int] | None,
    kinds: Sequence[str],
) -> tuple[list[str], list[list[list[str]]]]:
    """The header (`shown`: heading -> column), and rows in blocks: all clients, then each slice, below its name."""
    test, blocks = columns["run"], []
    for part, metrics in _metrics(test, ks, kinds).items():
        above = [[_called(part, test), *[""] * len(shown)]] if part else []
        rows = [[m.removeprefix(part), *(number(columns[c].get(m)) for c in shown.values())] for m in metrics]
        blocks.append([*above, *rows])
    return ["test", *shown], blocks


def _called(part: str, test: Mapping[str, float]) -> str:
    """`tail (412)`: the slice and its number of test items."""
    n = test.get(f"{part}{TARGETS}")
    return part.rstrip("/") + ("" if n is None else f" ({n:.0f})")


def _shown(columns: Collection[str]) -> dict[str, str]:
    """Heading -> name, in the order of `COLUMNS`."""
    found: dict[str, str] = {}
    for name, heading in COLUMNS.items():
        if name == CONTENT:
            found |= {f"{heading} {c.removeprefix(PREFIX)}": c for c in columns if c.startswith(PREFIX)}
        elif name in columns:
            found[heading] = name
    return found


def _without(parts: Collection[str]) -> dict[str, str]:
    """Heading -> name: `without_text` is headed `without text`."""
    return {COLUMNS["run"]: "run", **{name.replace("_", " ", 1): name for name in parts}}


def _heading(name: str, narrow: bool) -> str:
    """A feature's is on two lines."""
    first = next((f for f in (f"{COLUMNS[CONTENT]} ", "without ") if name.startswith(f)), "")
    if not first:
        return NARROW.get(name, name) if narrow else name
    feature = name.removeprefix(first)
    return f"{first.strip()}\n{feature if len(feature) <= FEATURE_WIDTH else feature[: FEATURE_WIDTH - 1] + '…'}"


def _metrics(test: Mapping[str, float], ks: Collection[int] | None, kinds: Sequence[str]) -> dict[str, list[str]]:
    """The metrics to show, by slice (`tail/`; "": all clients)."""
    found: dict[str, list[tuple[str, int, int, str]]] = {"": []}
    for name in test:
        m = _METRIC.fullmatch(name)
        if m and m["kind"] in kinds and (ks is None or int(m["k"]) in ks):
            part = f"{m['part']}/" if m["part"] else ""
            found.setdefault(part, []).append((m["prefix"], int(m["k"]), kinds.index(m["kind"]), name))
    return {part: [name for *_, name in sorted(rows)] for part, rows in found.items()}


def number(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "-" if value is None else f"{value:.4f}"
