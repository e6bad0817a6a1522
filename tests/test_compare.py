"""`fedray compare` on --summary files: rows, refusals, tests, text."""

import csv
import io
import json

import numpy as np
import pytest

from fedray.compare import compare, render
from fedray.config import make_config
from fedray.errors import (
    AmbiguousRunError,
    FileFormatError,
    MissingPathError,
    NoSuchRunError,
    NotComparableError,
    NothingToCompareError,
    UnknownNameError,
)
from fedray.evaluation.users import to_parquet
from fedray.outputs import write_end
from fedray.tracking.recorded import Recorded
from fedray.tracking.records import params
from fedray.tracking.rows import in_rows, usable
from tests.helpers import FCF, PFEDREC

METRICS = ("hr_at_10", "ndcg_at_10", "sampled99_hr_at_10", "recall_at_10")
N = 40


def users_at(level, seed):
    """Hits of N users at about this level."""
    hit = (np.random.default_rng(seed).random(N) < level).astype(float)
    return {"client": np.arange(N), **{name: hit for name in METRICS if "recall" not in name}}


def run(method=PFEDREC, seed=0, level=0.5, protocol="clean", data="abc", **more):
    """(summary, users) of one made-up run."""
    config = make_config({"name": "job", "seed": seed, **method, **more})
    name, users = config.method_name(), users_at(level, seed)
    about = {"name": "job", "seed": seed, "method": name, "data": "ku", "data_fingerprint": data, "protocol": protocol}
    about |= {"protocol_note": f"the rules of {protocol}", "params": params(config, name)}
    test = {m: float(users["hr_at_10"].mean()) for m in METRICS}
    control = {c: dict.fromkeys(METRICS, i / 100) for i, c in enumerate(("random", "popularity", "constant", "ease"))}
    control["local_only"] = dict.fromkeys(METRICS, 0.2 + seed / 10)
    return {
        "run_id": f"{name}-{seed}-{protocol}-{data}-{config.backbone.dim}",
        "test": test,
        "control": control,
        "about": about,
    }, users


def single(file, *args, **kwargs):
    summary, users = run(*args, **kwargs)
    write_end(file, summary, {None: users})
    return str(file)


def family(file, seeds, *args, **kwargs):
    runs = {seed: run(*args, seed=seed, **kwargs) for seed in seeds}
    summary = {"run_id": f"family-{file.stem}", "runs": [s for s, _ in runs.values()]}
    write_end(file, summary, {seed: users for seed, (_, users) in runs.items()})
    return str(file)


@pytest.fixture
def two(tmp_path):
    """A family of FCF over three seeds at 0.3, one of PFedRec over two at 0.7."""
    return [family(tmp_path / "fcf.json", [0, 1, 2], FCF, level=0.3), family(tmp_path / "p.json", [0, 1], level=0.7)]


def lines(found, metric="hr_at_10"):
    return {line.row: line for line in found.lines if line.metric == metric}


def test_seeds_of_one_configuration_are_one_row(two):
    found = compare(two, "")
    fcf, mine = lines(found).values()
    assert (fcf.row, fcf.seeds, mine.row, mine.seeds) == ("fcf on ku", 3, "dualper(fcf) on ku", 2)
    values = [users_at(0.3, s)["hr_at_10"].mean() for s in (0, 1, 2)]
    assert (fcf.mean, fcf.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found.baseline == "fcf on ku" and fcf.difference is None
    assert mine.difference.mean == pytest.approx(mine.mean - fcf.mean) and mine.difference.users == N
    assert mine.difference.p_wilcoxon < 0.01 and mine.holm == (mine.difference.p_bootstrap, mine.difference.p_wilcoxon)


def test_single_runs_join_their_family_and_a_run_named_twice_counts_once(two, tmp_path):
    more = single(tmp_path / "later.json", FCF, seed=7, level=0.3)
    found = compare([*two, more, more, two[0]], "")
    assert [line.seeds for line in lines(found).values()] == [4, 2] and found.remarks == ()


def test_colliding_names_say_what_differs_and_only_that(tmp_path):
    small = {"backbone": {"name": "fcf", "dim": 4, "lr": 0.1}}
    files = [single(tmp_path / "a.json", FCF), single(tmp_path / "b.json", small), single(tmp_path / "c.json")]
    names = ["fcf on ku, backbone.dim=8", "fcf on ku, backbone.dim=4", "dualper(fcf) on ku"]
    assert list(lines(compare(files, ""))) == names


def test_where_a_run_took_place_makes_no_row(tmp_path):
    files = [single(tmp_path / f"{i}.json", seed=i, runtime={"actors": i + 1}) for i in range(2)]
    files.append(single(tmp_path / "other.json", FCF))
    assert [line.seeds for line in lines(compare(files, "")).values()] == [2, 1]


@pytest.mark.parametrize("name", ["dualper(fcf) on ku", "dualper(fcf)", "p", "p.json", "family-p", "dualper(fcf)-1"])
def test_the_baseline_goes_by_any_of_its_names(two, name):
    assert compare(two, "", baseline=name).baseline == "dualper(fcf) on ku"


def test_an_unknown_or_ambiguous_baseline_is_refused(two):
    with pytest.raises(NoSuchRunError, match="nearest are .*dualper"):
        compare(two, "", baseline="dualper(fcv)")
    with pytest.raises(NoSuchRunError, match="The rows are: fcf on ku; dualper"):
        compare(two, "", baseline="zzzz")
    with pytest.raises(AmbiguousRunError, match="'job' fits 2 rows"):
        compare(two, "", baseline="job")


def test_holm_is_over_the_rows_of_a_table(two, tmp_path):
    third = {"backbone": {"name": "fedavg", "dim": 8}}
    found = lines(compare([*two, single(tmp_path / "x.json", third, level=0.35)], ""))
    ps = {n: line.difference.p_wilcoxon for n, line in found.items() if line.difference}
    low, high = sorted(ps, key=ps.get)
    assert found[low].holm[1] == pytest.approx(2 * ps[low]) and found[high].holm[1] == pytest.approx(ps[high])


@pytest.mark.parametrize("other", [{"protocol": "paper/pfedrec"}, {"data": "def"}])
def test_other_protocols_and_other_data_are_refused_or_printed_without_tests(tmp_path, other):
    more = {"evaluation": {"protocol": other["protocol"]}} if "protocol" in other else {}
    files = [single(tmp_path / "a.json"), single(tmp_path / "b.json", **other, **more)]
    with pytest.raises(NotComparableError, match="--across-protocols"):
        compare(files, "")
    found = compare(files, "", across=True)
    assert found.baseline == "" and not any(line.difference for line in found.lines)
    assert len(set(lines(found))) == 2 and "no tests" in found.remarks[0]
    text = render(found, "markdown")
    assert "| difference |" not in text and all(v in text for v in other.values())


def test_across_protocols_tests_rows_that_can_be_tested(two):
    assert any(line.difference for line in compare(two, "", across=True).lines)


def test_default_metrics_are_those_there_are_and_others_come_by_name(two):
    assert [n for n in dict.fromkeys(line.metric for line in compare(two, "").lines)] == list(METRICS[:3])
    found = compare(two, "", metrics=["recall_at_10", "ndcg_at_10"])
    assert [line.difference is None for line in found.lines] == [True, True, True, False]
    assert found.remarks == ("no tests in recall_at_10: not kept by user",)
    with pytest.raises(UnknownNameError, match="Did you mean 'ndcg_at_10'"):
        compare(two, "", metrics=["ndgc_at_10"])


def test_a_row_that_lost_its_users_is_not_tested_and_that_is_said(two, tmp_path):
    (tmp_path / "p.seed1.users.parquet").unlink()
    found = compare(two, "")
    assert not any(line.difference for line in found.lines)
    assert "dualper(fcf) on ku: no users.parquet in dualper(fcf)-1" in found.remarks[0]
    other = compare(two, "", baseline="p")
    assert other.baseline == "" and "that is the baseline" in other.remarks[-1]


def test_controls_are_rows_without_tests(two):
    found = lines(compare(two, "", controls=True))
    assert list(found)[2:] == ["random", "popularity", "ease", "local-only fcf on ku", "local-only dualper(fcf) on ku"]
    assert (found["ease"].mean, found["ease"].seeds) == (0.03, 0)
    assert found["local-only fcf on ku"].mean == pytest.approx(0.3) and found["local-only fcf on ku"].seeds == 3
    assert all(found[name].difference is None for name in list(found)[2:])


def with_content(file, values):
    """`file` with content controls in every run: name -> value of every metric."""
    summary = json.loads(file.read_text())
    for run in summary.get("runs", [summary]):
        run["control"] |= {name: dict.fromkeys(METRICS, value) for name, value in values.items()}
    file.write_text(json.dumps(summary))


def test_content_controls_are_one_row_a_feature_unless_the_features_differ(two, tmp_path):
    """The first row has no features. A third has others under one of the two names."""
    with_content(tmp_path / "p.json", {"content_image": 0.11, "content_text": 0.2})
    third = single(tmp_path / "x.json", {"backbone": {"name": "fedavg", "dim": 8}}, level=0.4)
    with_content(tmp_path / "x.json", {"content_image": 0.11, "content_text": 0.26})
    found = lines(compare([*two, third], "", controls=True))
    content = {name: (line.mean, line.seeds) for name, line in found.items() if name.startswith("content")}
    assert content == {
        "content_image": (pytest.approx(0.11), 0),
        "content_text dualper(fcf) on ku": (pytest.approx(0.2), 0),
        "content_text fedavg on ku": (pytest.approx(0.26), 0),
    }
    assert list(found)[3:7] == ["random", "popularity", "ease", "content_image"]


def test_other_users_under_the_same_data_are_refused_by_name(two, tmp_path):
    shifted = {k: v + 1 if k == "client" else v for k, v in users_at(0.7, 0).items()}
    (tmp_path / "p.seed0.users.parquet").write_bytes(to_parquet(shifted))
    (tmp_path / "p.seed1.users.parquet").write_bytes(to_parquet(shifted))
    with pytest.raises(NotComparableError, match=r"dualper\(fcf\) on ku against fcf on ku: .*39 in common"):
        compare(two, "")


def test_one_row_is_no_comparison_but_with_its_controls(two):
    with pytest.raises(NothingToCompareError, match="one row only: fcf on ku"):
        compare(two[:1], "")
    assert "popularity" in render(compare(two[:1], "", controls=True), "markdown")


def test_markdown_has_a_table_per_metric_and_the_protocol_below(two):
    text = render(compare(two, ""), "markdown")
    tables = text.split("\n\n")
    assert [t.splitlines()[0].split(" | ")[3] for t in tables[:3]] == list(METRICS[:3])
    assert {len(line.split(" | ")) for t in tables[:3] for line in t.splitlines()} == {8}
    assert "| fcf on ku | clean | 3 |" in text and "| baseline | - | - | - |" in text
    assert "protocol clean: the rules of clean" in text and "Holm" in text and f"over {N} users" in text


def test_csv_has_all_numbers_and_the_note_in_each_line(two):
    rows = list(csv.DictReader(io.StringIO(render(compare(two, "", controls=True), "csv"))))
    assert len(rows) == 3 * (2 + 3 + 2)
    tested = next(row for row in rows if row["difference"])
    assert tested["baseline"] == "fcf on ku" and float(tested["low"]) < float(tested["difference"])
    assert float(tested["p_wilcoxon_holm"]) == float(tested["p_wilcoxon"]) and int(tested["users"]) == N
    assert {row["protocol_note"] for row in rows} == {"the rules of clean"}


def test_files_that_are_no_summaries_are_named(tmp_path, two):
    with pytest.raises(MissingPathError, match="Did you mean 'fcf.json'"):
        compare([str(tmp_path / "fcv.json")], "")
    (tmp_path / "old.json").write_text(json.dumps({"run_id": "x", "test": {}}))
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    for name in ("old", "torn", "list"):
        with pytest.raises(FileFormatError, match=f"{name}.json: not a summary"):
            compare([str(tmp_path / f"{name}.json")], "")
    (tmp_path / "p.seed0.users.parquet").write_bytes(b"torn")
    with pytest.raises(FileFormatError, match="p.seed0.users.parquet"):
        compare(two, "")


def test_runs_that_did_not_finish_and_older_repeats_are_left_out_aloud():
    def recorded(run_id, status="FINISHED", seed="0", begun=0):
        return Recorded(run_id, seed, "fcf", "ku", "abc", "clean", "", {"seed": seed}, {}, status=status, begun=begun)

    runs = [recorded("new", begun=2), recorded("old", begun=1), recorded("a", "FAILED"), recorded("b", "RUNNING")]
    kept, said = usable(runs)
    assert [run.run_id for run in kept] == ["new"]
    assert said == [
        "left out, because not FINISHED: 1 FAILED, 1 RUNNING",
        "left out, because run again later with the same seed: 1",
    ]
    assert len(in_rows([recorded("x"), recorded("y", seed="1")])) == 1
    with pytest.raises(NothingToCompareError, match="none of 2 runs"):
        usable(runs[2:])
