"""Runs beside each other, or one run, as one HTML file: `fedray compare --report`, and `report.html` of every run.

The file needs nothing else: no network, no script (its own policy forbids both). Whatever comes from a run is escaped.
What a run did not keep is said where it would stand.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from fedray.compare import Comparison, compare_runs
from fedray.evaluation.comparison import tables
from fedray.evaluation.significance import over_seeds
from fedray.evaluation.users import Users
from fedray.tracking import charts
from fedray.tracking.courses import LOSS, Course, Curve, by_round, by_traffic, costs, course_of, mean_costs, mean_course
from fedray.tracking.recorded import of_summary
from fedray.tracking.rows import Row
from fedray.types import RoundReport

FILE = "report.html"
PERCENTILES = (10, 25, 50, 75, 90)
PREFERRED = "ndcg_at_10"
Rows = Sequence[tuple[str, Sequence[str]]]
"""Of a table: the first cell, as HTML, and the others, as text."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #57606a; --line: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --soft: #9aa4ae; --line: #3d444d; } }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; margin: .2em 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .2rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p, ul { margin: .3rem 0; max-width: 60rem; } .soft, figcaption, caption { color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.2rem; }
figure { margin: .6rem 0; max-width: 36rem; } figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: inherit !important; }
.wide { overflow-x: auto; margin: .7rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 500; } tbody th { font-weight: 500; }
.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 5rem; }
.key { list-style: none; padding: 0; } .mark { display: inline-flex; gap: .35rem; align-items: center; }
.mark svg { width: 1.9rem; height: .7rem; flex: none; } summary { cursor: pointer; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report(found: Comparison, courses: Mapping[str, Course], title: str) -> str:
    """The page. courses: run id -> how the run went; of those that are not in it there are no curves."""
    metric = read_by(found)
    rows = list(enumerate(found.rows, 1))
    went = {n: [courses.get(run.run_id, {}) for run in row.runs] for n, row in rows}
    notes = [*found.reading(), *found.remarks]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<ul class=key>{''.join(f'<li>{_mark(n, row.name)}</li>' for n, row in rows)}</ul>",
        _section("Test metrics", _SAYS_TABLE, *_test_tables(found), *(_soft(note) for note in notes)),
        _section("Learning curves", _SAYS_CURVES, _curves(went, metric), *_without_course(found, courses)),
        _section("Clients", _says_clients(metric), *_clients(rows, metric)),
        _section("Costs", _SAYS_COSTS, _cost_sheet(rows, went)),
        *_settings(rows),
        _section("Runs", "Every run of each row.", _runs(rows)),
    ]
    return _page(title, "\n".join(parts))


def comparison_report(found: Comparison, uri: str, title: str) -> str:
    """The page, with the curves of those runs that the tracking store at `uri` has."""
    from fedray.tracking.reader import courses  # MLflow takes 1.4 s to import

    run_ids = [run.run_id for row in found.rows for run in row.runs]
    return report(found, courses(uri, run_ids, read_by(found)), title)


def run_report(summary: Mapping[str, Any], users: Users, reports: Sequence[RoundReport]) -> str:
    """The page of one run, beside its controls: from its summary, each user's metrics and its rounds."""
    run = of_summary(summary, users)
    about = summary["about"]
    title = f"{about['name']}: {about['method']} on {about['data']}, seed {about['seed']}"
    return report(compare_runs([run], controls=True), {run.run_id: course_of(reports)}, title)


def read_by(found: Comparison) -> str:
    """The metric that curves and clients are shown in."""
    names = [line.metric for line in found.lines]
    return PREFERRED if PREFERRED in names else names[0]


_SAYS_TABLE = (
    "Means over seeds, ± standard deviation. Where runs kept each client's metrics, a row is tested against the "
    "baseline over clients."
)
_SAYS_CURVES = (
    "Bold: the mean over seeds, as far as all of them went; thin: each seed. The third chart has the same quality "
    "against what was sent: the higher on the left, the less traffic it takes."
)
_SAYS_COSTS = (
    "Per run, means over seeds. MB are of 10^6 bytes, all clients together, over all rounds; seconds of a stage are "
    "summed over the rounds, where actors work side by side those of the slowest."
)


def _says_clients(metric: str) -> str:
    return (
        f"How test {metric} spreads over the clients with a test item, each client's averaged over seeds: a mean can "
        "hide that most clients get nothing. Thin bar: 10th to 90th percentile; thick: 25th to 75th; dot: median."
    )


def _test_tables(found: Comparison) -> list[str]:
    marks = {row.name: _short(n, row) for n, row in enumerate(found.rows, 1)}
    return [
        _table(head, [(marks.get(name, escape(name)), cells) for name, *cells in rows])
        for head, rows in tables(found.lines, found.baseline)
    ]


def _curves(went: Mapping[int, Sequence[Course]], metric: str) -> str:
    name = f"val/{metric}"
    drawn = [
        (f"Validation {metric} by round", _bundles(went, name, by_round), "round", name, True),
        ("Training loss by round, mean over clients", _bundles(went, LOSS, by_round), "round", LOSS, False),
        (f"Validation {metric} against traffic", _bundles(went, name, by_traffic), "MB sent, down and up", name, True),
    ]
    figures = [
        _figure(says, charts.curves(bundles, x, y, from_zero)) for says, bundles, x, y, from_zero in drawn if bundles
    ]
    return f"<div class=charts>{''.join(figures)}</div>" if figures else _soft("Nothing of it was kept.")


def _bundles(went: Mapping[int, Sequence[Course]], name: str, curve: Any) -> list[charts.Bundle]:
    found = []
    for number, courses in went.items():
        there = [course for course in courses if course.get(name)]
        seeds: list[Curve] = [curve(course, name) for course in there]
        mean: Curve = curve(mean_course(there), name)
        found += [charts.Bundle(number, seeds, mean)] if mean[0] else []
    return found


def _without_course(found: Comparison, courses: Mapping[str, Course]) -> list[str]:
    lost = [run.run_id for row in found.rows for run in row.runs if not courses.get(run.run_id)]
    said = f"No rounds of {', '.join(lost)}: --summary files have none, and the store does not know these runs."
    return [_soft(said)] if lost else []


def _clients(rows: Sequence[tuple[int, Row]], metric: str) -> list[str]:
    kept = {n: quantiles(row, metric) for n, row in rows}
    names = dict(rows)
    shown = [(n, found) for n, found in kept.items() if found is not None]
    lost = [names[n].name for n, found in kept.items() if found is None]
    said = [_soft(f"Not kept by client: {'; '.join(lost)}.")] if lost else []
    if not shown:
        return said
    head = ["row", *(f"p{p}" for p in PERCENTILES), "clients at 0"]
    table = _table(head, [(_short(n, names[n]), [*(f"{v:.4f}" for v in q), f"{zero:.0%}"]) for n, (q, zero) in shown])
    chart = charts.spreads([(n, q) for n, (q, _) in shown], f"test {metric}")
    return [_figure(f"Test {metric} of the clients", chart), table, *said]


def quantiles(row: Row, metric: str) -> tuple[list[float], float] | None:
    """The clients' percentiles of a test metric, averaged over seeds first, and the share of clients that have 0."""
    found = [run.users for run in row.runs]
    if not all(metric in users and len(users[metric]) for users in found):
        return None
    _, values = over_seeds(found, metric)
    return np.percentile(values, PERCENTILES).tolist(), float((values == 0).mean())


def _cost_sheet(rows: Sequence[tuple[int, Row]], went: Mapping[int, Sequence[Course]]) -> str:
    taken = {
        n: mean_costs([costs(course, run.other) for run, course in zip(row.runs, went[n], strict=True)])
        for n, row in rows
    }
    head = list(dict.fromkeys(name for found in taken.values() for name in found))
    cells = {n: [f"{found[name]:,.6g}" if name in found else "-" for name in head] for n, found in taken.items()}
    return _table(["row", *head], [(_short(n, row), cells[n]) for n, row in rows])


def _settings(rows: Sequence[tuple[int, Row]]) -> list[str]:
    """Where several rows are: the keys in which they differ; of one: all of its keys."""
    values = {n: _params(row) for n, row in rows}
    names = sorted({name for found in values.values() for name in found})
    if len(rows) == 1:
        every = _table(["setting", "value"], [(escape(name), [values[1][name]]) for name in names], "text")
        return [
            _section("Settings", "As resolved.", f"<details><summary>{len(names)} settings</summary>{every}</details>")
        ]
    differ = [name for name in names if len({found.get(name) for found in values.values()}) > 1]
    table = [(escape(name), [found.get(name, "-") for found in values.values()]) for name in differ]
    head = ["setting", *(f"row {n}" for n in values)]
    return [
        _section("What differs", "The settings in which the rows differ, and only these.", _table(head, table, "text"))
    ]


def _params(row: Row) -> dict[str, str]:
    """Setting -> value, or the values where the row's runs differ in what makes no row."""
    names = {name for run in row.runs for name in run.params} - {"seed"}
    return {name: " / ".join(dict.fromkeys(run.params.get(name, "-") for run in row.runs)) for name in names}


def _runs(rows: Sequence[tuple[int, Row]]) -> str:
    head = ["row", "run", "name", "seed", "status"]
    table = [
        (_short(n, row), [run.run_id, run.params.get("name", "-"), run.seed, run.status])
        for n, row in rows
        for run in row.runs
    ]
    return _table(head, table, "text")


def _short(number: int, row: Row) -> str:
    """In a table: what tells rows of one method apart is in the key."""
    return _mark(number, row.name.partition(", ")[0])


def _mark(number: int, name: str) -> str:
    """The row's line as the charts draw it, its number and its name."""
    colour, dashes = charts.style(number)
    line = f'<line x1="1" y1="5" x2="29" y2="5" stroke="{colour}" stroke-width="3" stroke-dasharray="{dashes}"/>'
    return (
        f'<span class=mark><svg viewBox="0 0 30 10" aria-hidden="true">{line}</svg>'
        f"<span>{number} {escape(name)}</span></span>"
    )


def _table(head: Iterable[str], rows: Rows, kind: str = "") -> str:
    top = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><th scope=row>{first}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for first, cells in rows
    )
    return f'<div class="wide {kind}"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(says: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(says)}</figcaption>{svg}</figure>"


def _soft(text: str) -> str:
    return f"<p class=soft>{escape(text)}</p>"


def _section(title: str, says: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>{_soft(says)}{''.join(parts)}</section>"


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
