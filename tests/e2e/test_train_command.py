"""`fedray train` as a user and as a script meet it: real processes, exit codes, files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEDRAY = [sys.executable, "-m", "fedray.cli"]
SMALL = ["--set", "data.users=60", "--set", "data.items=80", "--set", "train.rounds=3"]
SERIAL = ["--set", "runtime.executor=serial"]
JSONL = ["--set", "tracking.backend=jsonl", "--set", "tracking.uri=runs"]
ENV = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
JOB = str(ROOT / "jobs" / "quickstart.yaml")


def fedray(*args, cwd, timeout=240, program=FEDRAY):
    return subprocess.run([*program, *args], cwd=cwd, capture_output=True, text=True, timeout=timeout, env=ENV)


def events(folder):
    (file,) = Path(folder).glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_serial_run_writes_table_summary_and_run(tmp_path):
    done = fedray("train", JOB, *SMALL, *SERIAL, *JSONL, "--summary", "out/s.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "popularity" in done.stdout and "local-only" in done.stdout and "recorded in" in done.stdout
    summary = json.loads((tmp_path / "out/s.json").read_text())
    assert {"test", "validation", "control", "seconds", "comm", "run_id"} <= summary.keys()
    names = {"hr_at_10", "ndcg_at_10", "sampled99_hr_at_10", "sampled99_ndcg_at_10"}
    assert names <= summary["test"].keys() and names <= summary["validation"].keys()
    content = {"content_image", "content_text"}
    assert set(summary["control"]) == {"random", "popularity", "constant", "local_only", "ease"} | content
    assert all(names <= found.keys() for found in summary["control"].values())
    assert [e["event"] for e in events(tmp_path / "runs")] == ["start", "round", "round", "round", "end"]
    (logged,) = (tmp_path / "runs").glob("*.users.parquet")
    assert logged.read_bytes() == (tmp_path / "out/s.users.parquet").read_bytes()


@pytest.mark.ray
def test_ray_run_through_the_job_entrypoint_equals_serial_and_is_in_mlflow(tmp_path):
    import mlflow

    a = fedray("train", JOB, *SMALL, *SERIAL, *JSONL, "--summary", "a.json", cwd=tmp_path)
    program = [sys.executable, str(ROOT / "jobs" / "train.py")]
    b = fedray(JOB, *SMALL, "--summary", "b.json", cwd=tmp_path, program=program)
    assert a.returncode == b.returncode == 0, a.stderr + b.stderr
    serial, on_ray = (json.loads((tmp_path / f).read_text()) for f in ("a.json", "b.json"))
    for part in ("test", "validation", "control", "comm"):
        assert serial[part] == on_ray[part]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(on_ray["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/ndcg_at_10"] == pytest.approx(on_ray["test"]["ndcg_at_10"])
    assert [m.step for m in client.get_metric_history(on_ray["run_id"], "val/ndcg_at_10")] == [1, 2, 3]


def test_seeds_run_under_one_parent_and_report_mean_and_deviation(tmp_path):
    done = fedray("train", JOB, *SMALL, *SERIAL, *JSONL, "--seeds", "0..2", "--summary", "s.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "s.json").read_text())
    each = [r["test"]["ndcg_at_10"] for r in summary["runs"]]
    assert summary["seeds"] == [0, 1, 2] and len(set(each)) > 1
    assert summary["test"]["ndcg_at_10"] == pytest.approx(sum(each) / 3)
    assert len(list((tmp_path / "runs").glob("*.jsonl"))) == 4


def test_a_family_that_fails_is_closed_as_failed(tmp_path):
    fedray("train", JOB, *SMALL, *SERIAL, *JSONL, "--set", "backbone.lr=1e30", "--seeds", "0..1", cwd=tmp_path)
    ends = [json.loads(f.read_text().splitlines()[-1]) for f in (tmp_path / "runs").glob("*.jsonl")]
    assert [e["status"] for e in ends] == ["FAILED", "FAILED"]


def test_nobody_at_the_address_is_said_within_seconds(tmp_path):
    begun = time.monotonic()
    done = fedray("train", JOB, *SMALL, *JSONL, "--set", "runtime.address=127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 3 and "127.0.0.1:9" in done.stderr and time.monotonic() - begun < 20


def test_a_folder_with_brackets_and_a_gone_reader_do_no_harm(tmp_path):
    odd = tmp_path / "we[bold]ird[" / "x]"
    odd.mkdir(parents=True)
    done = fedray("train", JOB, *SMALL, *SERIAL, *JSONL, cwd=odd)
    assert done.returncode == 0 and "we[bold]ird[" in done.stdout
    assert events(odd / "runs")[-1]["status"] == "FINISHED"


def test_dry_run_prints_the_plan_and_starts_nothing(tmp_path):
    done = fedray("train", JOB, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "actors" in done.stdout and "traffic" in done.stdout and "memory" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--set", "train.rouns=3"], 2, "Did you mean 'rounds'"),
        (["--set", "data={source: folder, path: nowhere}"], 2, "nowhere"),
        (["--set", "runtime.memory_limit_gb=0.01"], 3, "GB"),
        (["--set", "backbone.lr=1e30"], 1, "ower backbone.lr"),
        (["--seeds", "3..1"], 2, "--seeds"),
        (["--seeds", "99999999999999999999"], 2, "--seeds"),
        (["--summary", "."], 2, "--summary"),
        (["--save", "file"], 2, "--save"),
        (["--set", "evaluation.k=[5,20]"], 2, "ndcg_at_10"),
        (["--set", "train.optimizer=adam", "--set", "train.weight_decay=0.1"], 2, "adam"),
    ],
)
def test_failures_have_one_line_and_their_exit_code(tmp_path, args, code, says):
    (tmp_path / "file").write_text("")
    done = fedray("train", JOB, *SMALL, *SERIAL, *JSONL, *args, cwd=tmp_path)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr


def test_a_failed_run_is_closed_as_failed(tmp_path):
    fedray("train", JOB, *SMALL, *SERIAL, *JSONL, "--set", "backbone.lr=1e30", cwd=tmp_path)
    assert events(tmp_path / "runs")[-1]["status"] == "FAILED"


@pytest.mark.ray
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_interrupted_runs_end_clean(tmp_path, number):
    args = ["train", JOB, "--set", "train.rounds=100000", *JSONL]
    process = subprocess.Popen(
        [*FEDRAY, *args], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    wait_for(lambda: any('"round"' in f.read_text() for f in tmp_path.glob("runs/*.jsonl")), process)
    session_mates = members(process.pid)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"interrupted" in err and b"Traceback" not in err
    assert events(tmp_path / "runs")[-1]["status"] == "KILLED"
    assert len(session_mates) > 1
    wait_for(lambda: not [p for p in session_mates if Path(f"/proc/{p}").exists()], None, seconds=20)


def wait_for(fact, process, seconds=90):
    end = time.monotonic() + seconds
    while not fact():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "still not so after the wait"
        time.sleep(0.2)


def members(leader):
    """The process and all its descendants: Ray's processes among them."""
    import psutil

    return [leader, *(p.pid for p in psutil.Process(leader).children(recursive=True))]


@pytest.mark.slow
def test_a_saved_model_scores_the_same_when_loaded(tmp_path):
    done = fedray("train", JOB, *SMALL, *SERIAL, *JSONL, "--save", "model", "--summary", "a.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = fedray("evaluate", "model", "--summary", "b.json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    a, b = (json.loads((tmp_path / f).read_text()) for f in ("a.json", "b.json"))
    assert a["test"] == b["test"]
    for other in ("backbone.dim=8", "seed=3", "evaluation.protocol=paper/pfedrec"):
        refused = fedray("evaluate", "model", "--set", other, cwd=tmp_path)
        assert refused.returncode == 2 and "UnsupportedError" in refused.stderr
    (tmp_path / "model" / "server.safetensors").write_bytes(b"torn")
    torn = fedray("evaluate", "model", cwd=tmp_path)
    assert torn.returncode == 2 and "server.safetensors" in torn.stderr


def test_show_config_reproduces_itself_and_doctor_answers(tmp_path):
    shown = fedray("show-config", JOB, "--set", "train.rounds=7", cwd=tmp_path)
    (tmp_path / "again.yaml").write_text(shown.stdout)
    assert "rounds: 7" in shown.stdout
    assert fedray("show-config", "again.yaml", cwd=tmp_path).stdout == shown.stdout
    found = fedray("doctor", cwd=tmp_path)
    assert found.returncode == 0 and "torch" in found.stdout and "memory" in found.stdout
