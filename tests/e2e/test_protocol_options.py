"""A compatibility choice is written on every table made with it, and such runs keep to themselves in MLflow."""

import json
from contextlib import chdir

import pytest

from fedray import cli
from tests.e2e.test_train_command import JOB, SERIAL

TINY = ["--set", "data.users=60", "--set", "data.items=80", "--set", "train.rounds=3", "--set", "evaluation.k=[10,50]"]
PAPER = ["--set", "evaluation.protocol=paper/gfmfr", "--set", "evaluation.local_only=false"]
INDEX = ["--set", "evaluation.options.ties=index", "--set", "evaluation.options.permute_items=false"]
NAME = "paper/gfmfr + ties=index"
BUT = "BUT ties=index (instead of ties=pessimistic)"


def fedray(*args, cwd):
    """The exit code; in this process, since a new one imports for seconds."""
    with chdir(cwd):
        try:
            return cli.run(list(args))
        except SystemExit as end:
            return end.code


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One run under the paper's rules with another tie rule, kept in a store of its own, and its model."""
    folder = tmp_path_factory.mktemp("options")
    args = ["train", JOB, *TINY, *PAPER, *INDEX, *SERIAL, "--summary", "end.json", "--save", "model"]
    assert fedray(*args, cwd=folder) == 0
    return folder


@pytest.fixture(scope="module")
def summary(place):
    return json.loads((place / "end.json").read_text())


def test_the_summary_says_it_and_has_both_rounds(summary):
    assert summary["protocol"] == NAME and summary["protocol_note"].endswith(BUT)
    assert set(summary["selected_rounds"]) == {"hr_at_50", "ndcg_at_50"}
    assert summary["best_round"] == summary["selected_rounds"]["hr_at_50"]
    assert set(summary["test"]) >= {"hr_at_50", "ndcg_at_50"} and "sampled99_hr_at_10" not in summary["test"]


def test_the_run_in_mlflow_says_it_and_its_experiment_is_not_that_of_the_plain_protocol(place, summary):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
    run = client.get_run(summary["run_id"])
    assert run.data.tags["fedray.protocol"] == run.data.params["protocol"] == NAME
    assert run.data.params["evaluation.options.ties"] == "index"
    assert run.data.tags["fedray.protocol_note"].endswith(BUT)
    assert f"protocol `{NAME}`" in run.data.tags["mlflow.note.content"]
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == f"fedray/synthetic/{NAME}"
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "val/hr_at_50"
    with chdir(place):
        table = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/table.md")
    assert table.startswith(f"protocol `{NAME}`: GFMFR's own rules") and f"{BUT}\n\n| test |" in table


def test_the_terminal_says_it(place, capsys):
    quiet = ["--set", "tracking.backend=none", "--set", "evaluation.controls=false", "--set", "train.rounds=1"]
    assert fedray("train", JOB, *TINY, *PAPER, *INDEX, *SERIAL, *quiet, cwd=place) == 0
    out = capsys.readouterr().out
    assert f"protocol {NAME}: GFMFR" in out and BUT in out
    assert fedray("train", JOB, *TINY, *PAPER, *INDEX, *SERIAL, *quiet, "--seeds", "0..1", cwd=place) == 0
    assert f"seeds 0, 1; protocol `{NAME}`: GFMFR" in capsys.readouterr().out
    assert fedray("evaluate", "model", cwd=place) == 0
    out = capsys.readouterr().out
    assert f"protocol {NAME}: GFMFR" in out and BUT in out and "best by hr_at_50 alone" in out


def test_a_round_chosen_on_the_test_set_is_flagged(place, capsys):
    sets = ["--set", "evaluation.protocol=paper/fedrap", "--set", "tracking.backend=none"]
    assert fedray("train", JOB, *TINY, *sets, *SERIAL, "--summary", "rap.json", cwd=place) == 0
    out = capsys.readouterr().out
    assert "THE ROUND IS CHOSEN BY ITS TEST HR@10" in out and "TEST hr_at_10:" in out
    assert "selected_on_test" in out
    flags = json.loads((place / "rap.json").read_text())["flags"]
    assert "paper/fedrap" in flags["fedray.flag.selected_on_test"]


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["evaluation.options.tie=index"], "Did you mean 'ties'"),
        (["evaluation.options.ties=first"], "'pessimistic', 'index' or 'random'"),
        (["evaluation.protocol=paper/fedvlr", "evaluation.k=[10]"], "the K of hr_at_50"),
        (["evaluation.protocol=paper/gfmfr", "evaluation.k=[10]"], "ndcg_at_50"),
        (["evaluation.options.select_on=full_minus_all_hr_at_10"], "its ranking among full, sampled99"),
        (["evaluation.protocol=paper/fedrap", "evaluation.test=selected"], "select_split: valid"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(tmp_path, capsys, sets, says):
    args = [part for s in sets for part in ("--set", s)]
    assert fedray("train", JOB, *args, cwd=tmp_path) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
