"""Runs over seeds beside each other, with tests over users: `fedray compare`.

Runs of one configuration, its seed left aside, are one row. A row is tested against the baseline on each user's test
metric, averaged over the row's seeds (`evaluation/significance.py`). Rows of different data or protocols measure
different things: they are refused, or on request printed without tests.
"""

import difflib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedray.config import nearest_hint
from fedray.errors import (
    AmbiguousRunError,
    MissingPathError,
    NoSuchRunError,
    NotComparableError,
    NothingToCompareError,
    UnknownNameError,
)
from fedray.evaluation.comparison import Line, csv_text, markdown
from fedray.evaluation.content import PREFIX
from fedray.evaluation.significance import LEVEL, RESAMPLES, Difference, compared, holm
from fedray.evaluation.users import metrics_in
from fedray.tracking.recorded import Recorded, read_summary
from fedray.tracking.rows import Row, alike, in_rows, usable

DEFAULT = ("hr_at_10", "ndcg_at_10", "hr_at_50", "ndcg_at_50", "sampled99_hr_at_10", "sampled99_ndcg_at_10")
CENTRAL = ("random", "popularity", "ease")
Tests = Mapping[str, Mapping[str, Difference]]
"""Row -> metric -> its difference to the baseline."""


@dataclass(frozen=True)
class Comparison:
    """A table: its lines metric by metric, the baseline's name ("": no tests), each protocol's note, what a user should
    be told aloud, and the rows it is of."""

    lines: tuple[Line, ...]
    baseline: str
    notes: Mapping[str, str]
    remarks: tuple[str, ...]
    rows: tuple[Row, ...]

    def reading(self) -> list[str]:
        """What a reader of the table must know."""
        return [*(f"protocol {name}: {note}" for name, note in self.notes.items() if note), *_reading(self)]


def compare(
    what: Sequence[str],
    uri: str,
    baseline: str = "",
    metrics: Sequence[str] = (),
    across: bool = False,
    controls: bool = False,
) -> Comparison:
    """The table of the runs that `what` names (see `gather`). Raises the family of `CompareError`."""
    return compare_runs(gather(what, uri), baseline, metrics, across, controls)


def compare_runs(
    runs: Sequence[Recorded],
    baseline: str = "",
    metrics: Sequence[str] = (),
    across: bool = False,
    controls: bool = False,
) -> Comparison:
    """The table of these runs."""
    runs, remarks = usable(runs)
    rows = in_rows(runs)
    if len(rows) < 2 and not controls:
        raise NothingToCompareError(f"one row only: {rows[0].name}", "two or more", "Name another run, or --controls.")
    if not across:
        check_comparable(rows)
    chosen = choose_metrics(rows, metrics)
    base = pick(rows, baseline)
    tests, more = tested(rows, base, chosen)
    below = {name: control_lines(name, rows) if controls else [] for name in chosen}
    lines = [line for name in chosen for line in (*lines_of(name, rows, tests, base.name), *below[name])]
    more += ["no run kept its controls"] if controls and not any(below.values()) else []
    notes = {row.protocol: row.runs[0].note for row in rows}
    return Comparison(tuple(lines), base.name if tests else "", notes, (*remarks, *more), tuple(rows))


def render(found: Comparison, form: Literal["markdown", "csv"]) -> str:
    """The table with what a reader must know of it."""
    if form == "csv":
        return csv_text(found.lines, found.notes)
    return markdown(found.lines, found.baseline, found.reading())


def gather(what: Sequence[str], uri: str) -> list[Recorded]:
    """The runs of each argument in turn: a `--summary` file, else something MLflow knows (see `reader.runs_called`)."""
    found: list[Recorded] = []
    for name in what:
        file = Path(name)
        if file.is_file():
            found += read_summary(file)
        elif file.suffix == ".json":
            near = nearest_hint(file.name, [p.name for p in file.parent.glob("*.json")])
            raise MissingPathError(f"{file} does not exist", "a --summary file", near or "Check the path.")
        else:
            from fedray.tracking.reader import runs_called  # MLflow takes 1.4 s to import

            found += runs_called(uri, name)
    return found


def check_comparable(rows: Sequence[Row]) -> None:
    """Refuse rows whose numbers mean different things."""
    if not alike(rows):
        raise NotComparableError(
            "; ".join(f"{row.name} (protocol {row.protocol}, data {row.data})" for row in rows),
            "one protocol and one data set in a table",
            "Compare them apart, or without tests: --across-protocols.",
        )


def pick(rows: Sequence[Row], wanted: str) -> Row:
    """The row that `wanted` (a row, job, method or run, or the start of a run's id) names; the first by default."""
    if not wanted:
        return rows[0]
    starts = [row for row in rows if any(run.run_id.startswith(wanted) for run in row.runs)]
    found = [row for row in rows if wanted in row.called()] or starts
    if len(found) == 1:
        return found[0]
    if found:
        raise AmbiguousRunError(f"baseline {wanted!r} fits {len(found)} rows", "one", _listed(found))
    near = difflib.get_close_matches(wanted, {name for row in rows for name in row.called()}, n=3, cutoff=0.5)
    mend = f"The nearest are {'; '.join(near)}." if near else _listed(rows)
    raise NoSuchRunError(f"no row is called {wanted!r}", "a row or run of the table", mend)


def choose_metrics(rows: Sequence[Row], wanted: Sequence[str]) -> list[str]:
    """The metrics asked for, checked; else those of `DEFAULT` that there are; else every hr and ndcg."""
    known = list(dict.fromkeys(name for row in rows for run in row.runs for name in run.test))
    for name in wanted:
        if name not in known:
            near = nearest_hint(name, known)
            raise UnknownNameError(f"metric {name!r} is in none of the runs", f"one of {', '.join(known)}", near)
    found = list(dict.fromkeys(wanted)) or [n for n in DEFAULT if n in known]
    found = found or [n for n in known if "hr_at_" in n or "ndcg_at_" in n]
    if not found:
        raise NothingToCompareError("no run has test metrics", "runs that were trained to the end")
    return found


def tested(rows: Sequence[Row], base: Row, metrics: Sequence[str]) -> tuple[Tests, list[str]]:
    """The differences to the baseline of every row whose runs kept their users; and what could not be tested."""
    if not alike(rows):
        return {}, ["no tests: rows of different protocols or data"]
    lost = {row.name: [run.run_id for run in row.runs if not metrics_in(run.users)] for row in rows}
    remarks = [f"no tests for {name}: no users.parquet in {', '.join(ids)}" for name, ids in lost.items() if ids]
    if lost[base.name]:
        return {}, [*remarks, "no tests at all: that is the baseline"] if len(rows) > 1 else remarks
    found = {row.name: differences(row, base, metrics) for row in rows if row is not base and not lost[row.name]}
    missing = [name for name in metrics if found and not any(name in by_metric for by_metric in found.values())]
    return found, [*remarks, *([f"no tests in {', '.join(missing)}: not kept by user"] if missing else [])]


def differences(row: Row, base: Row, metrics: Sequence[str]) -> Mapping[str, Difference]:
    """Of a row to the baseline, in those of the metrics that all their runs kept by user."""
    mine, theirs = ([run.users for run in r.runs] for r in (row, base))
    names = [name for name in metrics if all(name in users for users in (*mine, *theirs))]
    try:
        return compared(mine, theirs, names) if names else {}
    except NotComparableError as error:
        error.where = f"{row.name} against {base.name}"
        raise


def lines_of(metric: str, rows: Sequence[Row], tests: Tests, base: str) -> list[Line]:
    """The rows in one metric, p-values corrected over those that are tested."""
    found = {name: by_metric[metric] for name, by_metric in tests.items() if metric in by_metric}
    ps = zip(holm([d.p_bootstrap for d in found.values()]), holm([d.p_wilcoxon for d in found.values()]), strict=True)
    corrected = dict(zip(found, ps, strict=True))
    lines = [_line(metric, row, [run.test for run in row.runs]) for row in rows]
    return [
        replace(line, baseline=base, difference=found[line.row], holm=corrected[line.row])
        if line.row in found
        else line
        for line in lines
    ]


def control_lines(metric: str, rows: Sequence[Row]) -> list[Line]:
    """Central controls once for each protocol and data (no seed plays a part), those of content too unless the rows'
    features differ; local-only for each row that has it."""
    lines: list[Line] = []
    central: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.runs[0].control:
            central.setdefault((row.protocol, row.data), row)
    for row in central.values():
        lines += [_seedless(metric, row, name, name) for name in CENTRAL if name in row.runs[0].control]
    lines += content_lines(metric, rows)
    for row in rows:
        alone = [run.control["local_only"] for run in row.runs if "local_only" in run.control]
        lines += [_line(metric, replace(row, name=f"local-only {row.name}"), alone)] if alone else []
    return lines


def content_lines(metric: str, rows: Sequence[Row]) -> list[Line]:
    """Content controls once for each protocol, data and feature; under each row's name where its encoders make others
    of one feature."""
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        for name, values in row.runs[0].control.items():
            if name.startswith(PREFIX):
                found.setdefault((row.protocol, row.data, name), {}).setdefault(_spelled(values), row)
    return [
        _seedless(metric, row, name, name if len(by_values) == 1 else f"{name} {row.name}")
        for (_, _, name), by_values in found.items()
        for row in by_values.values()
    ]


def _spelled(values: Mapping[str, float]) -> str:
    """To fewer digits than a store may lose."""
    return " ".join(f"{name}={values[name]:.6f}" for name in sorted(values) if math.isfinite(values[name]))


def _seedless(metric: str, row: Row, control: str, name: str) -> Line:
    return replace(_line(metric, replace(row, name=name), [row.runs[0].control[control]]), seeds=0)


def _line(metric: str, row: Row, found: Sequence[Mapping[str, float]]) -> Line:
    values = [one[metric] for one in found if metric in one]
    mean = statistics.fmean(values) if values else math.nan
    std = statistics.stdev(values) if len(values) > 1 else math.nan
    return Line(metric, row.name, row.protocol, row.data, len(found), mean, std)


def _listed(rows: Sequence[Row]) -> str:
    return f"The rows are: {'; '.join(row.name for row in rows)}."


def _reading(found: Comparison) -> list[str]:
    users = {line.difference.users for line in found.lines if line.difference}
    if not users:
        return []
    return [
        f"difference: to {found.baseline}, over {max(users):,} users, each one's metric averaged over seeds; "
        f"interval: bootstrap over users, {RESAMPLES:,} resamples, {LEVEL:.0%}; "
        "p: two-sided, Holm-corrected over the rows of each table"
    ]
