"""The report page: numbers by hand, what is missing is said, and nothing in it reaches out or runs."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fedray.compare import compare, compare_runs
from fedray.report import comparison_report, quantiles, report, run_report
from fedray.tracking import courses
from fedray.tracking.recorded import of_summary
from fedray.types import RoundReport
from tests.helpers import FCF
from tests.test_compare import run, single

VOID = {"meta", "br", "hr", "link", "img", "input", "path", "use", "rect", "circle", "line"}


class Page(HTMLParser):
    """Tags and text; a tag that is closed in the wrong place is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID and (not self.open or self.open[-1] != tag):
            return
        while self.open and self.open[-1] != tag and self.open[-1] in ("li", "tr", "td", "th", "thead", "tbody", "p"):
            self.open.pop()
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)


def rounds(n, start=0.1):
    return [
        RoundReport(
            r,
            {
                "train/loss": 1.0 / r,
                **({"val/hr_at_10": start * r, "val/ndcg_at_10": start * r / 2} if r % 2 == 0 else {}),
            },
            {"train": 0.5, "evaluate": 0.25, "round": 1.0},
            2_000_000,
            1_000_000,
            5,
        )
        for r in range(1, n + 1)
    ]


def recorded(method=None, seed=0, **more):
    summary, users = run(method, seed=seed, **more) if method else run(seed=seed, **more)
    return of_summary(summary, users)


def test_a_course_is_what_the_rounds_said():
    course = courses.course_of(rounds(4))
    assert courses.by_round(course, "val/hr_at_10") == ([2.0, 4.0], [pytest.approx(0.2), pytest.approx(0.4)])
    # 3 MB a round, down and up together.
    assert courses.by_traffic(course, "val/hr_at_10")[0] == pytest.approx([6.0, 12.0])
    assert courses.stage_seconds(course) == {"evaluate": 1.0, "train": 2.0}


def test_costs_by_hand():
    found = courses.costs(courses.course_of(rounds(4)), {"time/total_s": 9.0, "best_round": 2.0})
    assert found == {
        "rounds": 4.0,
        "selected round": 2.0,
        "clients a round": 5.0,
        "MB down": 8.0,
        "MB up": 4.0,
        "seconds in all": 9.0,
        "evaluate, s": 1.0,
        "train, s": 2.0,
    }
    assert courses.costs({}, {}) == {}


def test_the_mean_goes_as_far_as_all_seeds_went():
    long, short = (courses.course_of(rounds(n, start)) for n, start in ((4, 0.1), (2, 0.3)))
    assert courses.by_round(courses.mean_course([long, short]), "val/hr_at_10") == ([2.0], [pytest.approx(0.4)])
    assert courses.mean_course([]) == {}


def test_quantiles_are_of_each_clients_mean_over_seeds():
    row = compare_runs([recorded(seed=s) for s in (0, 1)] + [recorded(FCF)]).rows[0]
    found, zero = quantiles(row, "hr_at_10")
    values = np.mean([r.users["hr_at_10"] for r in row.runs], axis=0)
    assert found == pytest.approx(np.percentile(values, [10, 25, 50, 75, 90]))
    assert zero == np.mean(values == 0)


def test_a_page_of_two_methods():
    mine, theirs = [recorded(seed=s) for s in (0, 1)], [recorded(FCF, seed=s, level=0.2) for s in (0, 1)]
    went = {r.run_id: courses.course_of(rounds(6)) for r in (*mine, *theirs)}
    text = report(compare_runs([*mine, *theirs]), went, "Compared: a, b")
    page = Page(text)
    for title in ("Test metrics", "Learning curves", "Clients", "Costs", "What differs", "Runs"):
        assert title in " ".join(page.text), title
    assert sum(tag == "figure" for tag, _ in page.tags) == 4  # three curves and the clients
    assert "plugins.dualper" in text and "dualper(fcf)" in text


def test_it_needs_nothing_else_and_runs_nothing():
    runs = [recorded(), recorded(FCF)]
    page = Page(report(compare_runs(runs), {r.run_id: courses.course_of(rounds(6)) for r in runs}, "t"))
    assert not {"script", "iframe", "object", "link", "img"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("href", "src", "xlink:href"):
                assert value.startswith("#"), value
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


def test_what_a_run_is_called_is_text():
    evil = "<script>alert(1)</script>\"'&"
    summary, users = run()
    summary["about"]["method"] = evil
    summary["about"]["params"]["name"] = evil
    text = run_report(summary, users, rounds(4))
    assert "<script" not in text and "&lt;script&gt;" in text
    text = report(compare_runs([recorded(), recorded(FCF)]), {}, evil)
    assert "<script" not in text
    Page(text)


def test_what_is_missing_is_said():
    summary, _ = run()
    bare = of_summary(summary, {})
    text = report(compare_runs([bare, recorded(FCF)]), {}, "t")
    page = " ".join(Page(text).text)
    assert "Nothing of it was kept." in page
    assert "Not kept by client: dualper(fcf) on ku." in page
    assert re.search(r"No rounds of .*dualper", page)


def test_a_run_alone_stands_beside_its_controls():
    summary, users = run()
    text = run_report(summary, users, rounds(4))
    page = " ".join(Page(text).text)
    assert "job: dualper(fcf) on ku, seed 0" in page
    assert "popularity" in page and "ease" in page.lower()


def test_summary_files_have_no_curves_and_a_store_that_is_not_there_is_none(tmp_path):
    files = [single(tmp_path / "a.json"), single(tmp_path / "b.json", FCF)]
    text = comparison_report(compare(files, ""), f"sqlite:///{tmp_path}/none.db", "t")
    assert "Nothing of it was kept." in text
    assert not (tmp_path / "none.db").exists()
