"""`fedray train` that is killed, stopped or started twice, in real processes: the same end, and one record of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEDRAY = [sys.executable, "-m", "fedray.cli", "train"]
JOB = str(ROOT / "jobs" / "quickstart.yaml")
SMALL = ["data.users=60", "data.items=80", "evaluation.local_only=false", "evaluation.controls=false"]
LONG = [*SMALL, "train.rounds=300", "runtime.executor=serial", "runtime.checkpoint.every=7"]
RUN = ["--run-id", "night", "--resume-or-start"]
ENV = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def command(*args, sets=LONG):
    return [*FEDRAY, JOB, *(part for s in sets for part in ("--set", s)), *args]


def fedray(*args, cwd, sets=LONG):
    return subprocess.run(command(*args, sets=sets), cwd=cwd, capture_output=True, text=True, timeout=240, env=ENV)


def started(*args, cwd, sets=LONG):
    with (cwd / "log").open("w") as log:
        return subprocess.Popen(command(*args, sets=sets), cwd=cwd, stdout=log, stderr=log, env=ENV)


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, (path.parents[3] / "log").read_text()
        assert time.monotonic() < end, f"{path} is not there"
        time.sleep(0.02)


def checkpoint(cwd, round_, run="night"):
    return cwd / ".fedray" / "checkpoints" / run / f"round-{round_:06d}" / "manifest.json"


def end_of(file):
    summary = json.loads(file.read_text())
    return {k: summary[k] for k in ("test", "validation", "best_round", "comm")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("whole")
    done = fedray("--summary", "s.json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert not list((cwd / ".fedray" / "checkpoints").iterdir())  # a run without a name leaves none
    return end_of(cwd / "s.json")


def steps(cwd):
    """Of the one run in the store that has fedray's id: its status and the rounds recorded."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd}/mlflow.db")
    (run,) = client.search_runs(["1"], "tags.`fedray.run_id` = 'night'")
    return run.info.status, [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]


def test_killed_twice_it_ends_as_if_nothing_had_happened_and_mlflow_has_each_round_once(tmp_path, undisturbed):
    for round_ in (70, 140):
        process = started(*RUN, cwd=tmp_path)
        wait_for(checkpoint(tmp_path, round_), process)
        process.kill()
        process.wait()
    done = fedray(*RUN, "--summary", "s.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "goes on after round" in done.stdout
    assert end_of(tmp_path / "s.json") == undisturbed
    status, recorded = steps(tmp_path)
    assert status == "FINISHED" and recorded == list(range(1, 301))


def test_stopped_it_leaves_a_checkpoint_of_its_last_round_and_says_how_to_go_on(tmp_path, undisturbed):
    process = started(*RUN, cwd=tmp_path)
    wait_for(checkpoint(tmp_path, 35), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    said = (tmp_path / "log").read_text()
    (line,) = [line for line in said.splitlines() if "to go on after round" in line]
    assert "--run-id night --resume-or-start" in line
    last = int(line.split("round ")[1].split(",")[0])
    status, recorded = steps(tmp_path)  # a store that is slow may lack the last ones: they wait in the spool
    assert status in ("KILLED", "RUNNING") and recorded == list(range(1, len(recorded) + 1)) and len(recorded) <= last
    done = fedray(*RUN, "--summary", "s.json", cwd=tmp_path)
    assert f"goes on after round {last} of 300" in done.stdout
    assert end_of(tmp_path / "s.json") == undisturbed
    assert steps(tmp_path) == ("FINISHED", list(range(1, 301)))

    again = fedray(*RUN, "--summary", "again.json", cwd=tmp_path)  # there is nothing left to do
    assert again.returncode == 0, again.stderr
    assert end_of(tmp_path / "again.json") == undisturbed
    assert steps(tmp_path) == ("FINISHED", list(range(1, 301)))


def test_a_run_that_is_there_is_refused_and_so_are_other_settings(tmp_path):
    short = [*LONG, "train.rounds=14"]
    assert fedray("--run-id", "night", cwd=tmp_path, sets=short).returncode == 0
    twice = fedray("--run-id", "night", cwd=tmp_path, sets=short)
    assert twice.returncode == 2 and "night is there already, up to round 14" in twice.stderr
    other = fedray(*RUN, cwd=tmp_path, sets=[*short, "backbone.dim=9"])
    assert other.returncode == 2 and "backbone.dim 32 there, 9 here" in other.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("args", "says"),
    [(["--resume-or-start"], "--run-id with it"), (["--run-id", "../x"], "letters, digits")],
)
def test_names_that_cannot_be(tmp_path, args, says):
    done = fedray(*args, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr


@pytest.mark.slow
def test_a_family_goes_on_with_the_seed_that_was_killed(tmp_path):
    sets = [*SMALL, "train.rounds=60", "runtime.executor=serial", "runtime.checkpoint.every=7"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    assert fedray("--seeds", "0..2", "--summary", "s.json", cwd=whole, sets=sets).returncode == 0
    process = started(*RUN, "--seeds", "0..2", cwd=cut, sets=sets)
    wait_for(checkpoint(cut, 14, "night-s1"), process)
    process.kill()
    process.wait()
    done = fedray(*RUN, "--seeds", "0..2", "--summary", "s.json", cwd=cut, sets=sets)
    assert done.returncode == 0, done.stderr
    a, b = (json.loads((folder / "s.json").read_text()) for folder in (whole, cut))
    assert a["test"] == b["test"] and a["std"] == b["std"]
    assert [r["test"] for r in a["runs"]] == [r["test"] for r in b["runs"]]

    from mlflow import MlflowClient

    runs = MlflowClient(f"sqlite:///{cut}/mlflow.db").search_runs(["1"])
    assert len(runs) == 4 and {r.info.status for r in runs} == {"FINISHED"}
    parents = {r.data.tags.get("mlflow.parentRunId") for r in runs} - {None}
    assert len(parents) == 1
