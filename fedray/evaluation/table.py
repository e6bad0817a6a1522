"""The table at the end of a run: its metrics beside their controls, for the terminal and for Markdown.

Rows: the protocol's own ranking first, then the others (`sampled99_...`), by cut-off. Nothing is
highlighted: the columns are not competitors (EASE is central, the rest are floors).
"""

import re
from collections.abc import Collection, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

COLUMNS = {
    "run": "this run",
    "random": "random",
    "popularity": "popularity",
    "constant": "constant",
    "local_only": "local-only",
    "ease": "EASE",
}
KINDS = ("hr", "ndcg")
_METRIC = re.compile(r"(?P<prefix>.*?)(?P<kind>hr|recall|ndcg|mrr)_at_(?P<k>\d+)")


def end_table(
    test: Mapping[str, float],
    controls: Mapping[str, Mapping[str, float]],
    ks: Collection[int] | None = None,
    kinds: Sequence[str] = KINDS,
    title: str = "",
) -> Table:
    """Metric -> value of the run and, per control, of the controls (`split_of` takes a split of them).

    ks: the cut-offs shown (None: all); kinds: of hr, recall, ndcg, mrr. A control that is not there has
    no column; a value that is not there is a dash. Four decimals.
    """
    header, rows = _cells(test, controls, ks, kinds)
    # Narrow enough for 80 columns with every control present.
    table = Table(title=title or None, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
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
    header, rows = _cells(test, controls, ks, kinds)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    head = f"{title}\n\n" if title else ""
    return head + "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *rows])


def split_of(controls: Mapping[str, Mapping[str, Mapping[str, float]]], split: str) -> dict[str, dict[str, float]]:
    """Control -> metric -> value, of one split; a control without that split is left out."""
    return {name: dict(splits[split]) for name, splits in controls.items() if split in splits}


def _cells(
    test: Mapping[str, float],
    controls: Mapping[str, Mapping[str, float]],
    ks: Collection[int] | None,
    kinds: Sequence[str],
) -> tuple[list[str], list[list[str]]]:
    columns = {"run": test, **controls}
    shown = [name for name in COLUMNS if name in columns]
    rows = [[m, *(_number(columns[c].get(m)) for c in shown)] for m in _metrics(test, ks, kinds)]
    return ["test", *(COLUMNS[c] for c in shown)], rows


def _metrics(test: Mapping[str, float], ks: Collection[int] | None, kinds: Sequence[str]) -> list[str]:
    found = []
    for name in test:
        m = _METRIC.fullmatch(name)
        if m and m["kind"] in kinds and (ks is None or int(m["k"]) in ks):
            found.append((m["prefix"], int(m["k"]), kinds.index(m["kind"]), name))
    return [name for *_, name in sorted(found)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
