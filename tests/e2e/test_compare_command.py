"""`fedray compare` after real runs: from MLflow and from --summary files, the same numbers."""

import csv
import io
import json
from contextlib import chdir

import numpy as np
import pytest

from fedray import cli
from fedray.evaluation import users
from tests.e2e.test_train_command import JOB, SERIAL

TINY = ["--set", "data.users=60", "--set", "data.items=80", "--set", "train.rounds=2", "--set", "evaluation.k=[10,50]"]
QUIET = ["--set", "evaluation.local_only=false"]
FCF = ["--set", "plugins={}", "--set", "name=plain"]


def fedray(*args, cwd):
    """The exit code; in this process, since a new one imports for seconds."""
    with chdir(cwd):
        try:
            return cli.run(list(args))
        except SystemExit as end:
            return end.code


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two families of two seeds each in a store of their own."""
    folder = tmp_path_factory.mktemp("compare")
    for name, sets in (("dual", []), ("plain", FCF)):
        args = ["train", JOB, *TINY, *QUIET, *SERIAL, *sets, "--seeds", "0..1", "--summary", f"out/{name}.json"]
        assert fedray(*args, cwd=folder) == 0
    return folder


def summary(place, name):
    return json.loads((place / f"out/{name}.json").read_text())


@pytest.fixture
def compare(place, capsys):
    """What the command prints."""

    def call(*args):
        assert fedray("compare", *args, cwd=place) == 0
        return capsys.readouterr().out

    return call


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_each_users_metrics_lie_beside_the_summary_and_in_mlflow(place):
    import mlflow

    runs = summary(place, "dual")["runs"]
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
    for seed, run in enumerate(runs):
        kept = users.read(place / f"out/dual.seed{seed}.users.parquet")
        assert len(kept["client"]) == len(set(kept["client"])) <= 60
        for name in users.metrics_in(kept):
            assert np.mean(kept[name]) == pytest.approx(run["test"][name], abs=1e-6)
        logged = users.read(client.download_artifacts(run["run_id"], "users.parquet", str(place)))
        assert {k: v.tolist() for k, v in logged.items()} == {k: v.tolist() for k, v in kept.items()}


def test_mlflow_and_summary_files_give_the_same_table(place, compare):
    dual, plain = (summary(place, name) for name in ("dual", "plain"))
    by_file = rows(compare("out/plain.json", "out/dual.json", "--format", "csv"))
    assert [row["row"] for row in by_file[:2]] == ["fcf on synthetic", "dualper(fcf) on synthetic"]
    assert len(by_file) == 2 * 6 and {row["seeds"] for row in by_file} == {"2"}
    for row in by_file[:2]:
        end = plain if row["row"].startswith("fcf") else dual
        assert float(row["mean"]) == pytest.approx(end["test"][row["metric"]])
        assert float(row["std"]) == pytest.approx(end["std"][row["metric"]])
    ids = [plain["run_id"], dual["runs"][0]["run_id"][:12], "quickstart-s1"]
    by_run = rows(compare(*ids, "--format", "csv"))
    assert numbers(by_run) == numbers(by_file)


def numbers(found):
    """Of each row, to the digits that MLflow keeps."""
    return [{k: round(float(v), 9) if k not in WORDS and v else v for k, v in row.items()} for row in found]


WORDS = ("metric", "row", "protocol", "data", "baseline", "protocol_note")


def test_an_experiment_is_all_its_runs_beside_their_controls(place, compare):
    assert compare("fedray/synthetic/clean", "--baseline", "plain-2-seeds", "--controls", "--out", "t.md") == ""
    table = (place / "t.md").read_text()
    for part in ("| fcf on synthetic | clean | 2 |", "| dualper(fcf) on synthetic | clean | 2 |", "| popularity |"):
        assert part in table
    assert "protocol clean: full ranking" in table and "difference: to fcf on synthetic" in table


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["plain-3-seeds"], "plain-2-seeds"),
        (["fedray/synthetic/claen"], "fedray/synthetic/clean"),
        (["out/dul.json"], "dual.json"),
        (["dual", "--tracking", "sqlite:///nowhere.db"], "nowhere.db"),
        (["plain-2-seeds"], "one row only"),
        (["out/plain.json", "out/dual.json", "--metric", "hr_at_11"], "hr_at_10"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(place, capsys, args, says):
    assert fedray("compare", *args, cwd=place) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not (place / "nowhere.db").exists()
