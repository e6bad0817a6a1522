"""The table that compares systems over seeds: one part per metric, as Markdown or CSV."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from fedray.evaluation.significance import Difference

NO_NUMBER = "-"


@dataclass(frozen=True)
class Line:
    """One system's numbers in one metric.

    seeds: how many; 0 for a control that has none. values: one per seed. baseline: the name of the row it is compared
    with ("" where it is not). holm: the bootstrap's and Wilcoxon's p-values, corrected over the lines of this metric.
    """

    metric: str
    row: str
    protocol: str
    data: str
    seeds: int
    mean: float
    std: float
    baseline: str = ""
    difference: Difference | None = None
    holm: tuple[float, float] | None = None


def tables(lines: Sequence[Line], baseline: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Head and rows of each metric's table. `baseline` is the row that all are compared with, "" for no tests."""
    tested = ["difference", "95 % interval", "p bootstrap", "p Wilcoxon"] if baseline else []
    for metric, group in groupby(lines, key=lambda line: line.metric):
        rows = [_cells(line) + (_test_cells(line, baseline) if baseline else []) for line in group]
        yield ["row", "protocol", "seeds", metric, *tested], rows


def markdown(lines: Sequence[Line], baseline: str, notes: Iterable[str]) -> str:
    """A table per metric, then the notes."""
    parts = []
    for head, rows in tables(lines, baseline):
        under = ["---", "---", *["---:"] * (len(head) - 2)]
        parts.append("".join(f"| {' | '.join(row)} |\n" for row in (head, under, *rows)))
    return "\n".join([*parts, *(f"{note}\n" for note in notes)])


def csv_text(lines: Sequence[Line], notes: Mapping[str, str]) -> str:
    """A line per row and metric, p-values before and after the correction; `notes` are those of the protocols."""
    out = io.StringIO()
    flat = [_flat(line) | {"protocol_note": notes.get(line.protocol, "")} for line in lines]
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _cells(line: Line) -> list[str]:
    spread = "" if math.isnan(line.std) else f" ± {line.std:.4f}"
    value = NO_NUMBER if math.isnan(line.mean) else f"{line.mean:.4f}{spread}"
    return [line.row, line.protocol, str(line.seeds or NO_NUMBER), value]


def _test_cells(line: Line, baseline: str) -> list[str]:
    found, holm = line.difference, line.holm
    if found is None or holm is None:
        return ["baseline" if line.row == baseline else NO_NUMBER, *[NO_NUMBER] * 3]
    return [f"{found.mean:+.4f}", f"[{found.low:+.4f}, {found.high:+.4f}]", *map(p_text, holm)]


def p_text(p: float) -> str:
    """Four decimals; what would read 0.0000 does not."""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _flat(line: Line) -> dict[str, object]:
    head = {k: v for k, v in asdict(line).items() if k not in ("difference", "holm")}
    found, holm = line.difference, line.holm or ("", "")
    names = ("mean", "low", "high", "p_bootstrap", "p_wilcoxon", "users")
    tested = {n: getattr(found, n) if found else "" for n in names}
    tested = {"difference": tested.pop("mean"), **tested, "p_bootstrap_holm": holm[0], "p_wilcoxon_holm": holm[1]}
    return {k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in (head | tested).items()}
