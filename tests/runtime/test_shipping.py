"""What goes with a job, and what may not: nothing is sent."""

import shlex
import subprocess
import sys

import pytest

from fedray.config import load_config, make_config
from fedray.errors import JobError, NotShippableError
from fedray.runtime import shipping
from fedray.runtime.local_jobs import surroundings
from fedray.runtime.shipping import MIB
from fedray.search.sweep import load_sweep
from fedray.submit import Submission, read_job


def config_of(**more):
    return make_config({"name": "tiny", **more})


def sparse(file, mib):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as f:
        f.truncate(mib * MIB)


SWEEP = """
base: {data: {source: synthetic}, train: {rounds: 9}}
space:
  backbone.lr: {loguniform: [0.01, 1.0]}
budget: {trials: 4}
"""


def files(folder):
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


def test_a_folder_by_default_holds_an_entrypoint_and_a_job(tmp_path):
    config = config_of(train={"rounds": 7})
    shipping.write_folder(tmp_path, shipping.training(config), "r1")
    assert files(tmp_path) == {"jobs/train.py", "jobs/tiny.yaml"}
    assert load_config(tmp_path / "jobs" / "tiny.yaml") == config
    assert sum(f.stat().st_size for f in tmp_path.rglob("*")) < 20_000
    done = subprocess.run([sys.executable, tmp_path / "jobs/train.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--set" in done.stdout


def test_two_runs_of_one_job_have_different_folders_and_two_attempts_the_same(tmp_path):
    for name, run_id in [("a", "r1"), ("b", "r1"), ("c", "r2")]:
        shipping.write_folder(tmp_path / name, shipping.training(config_of()), run_id)
    a, b, c = ((tmp_path / name / "jobs/tiny.yaml").read_bytes() for name in "abc")
    assert a == b != c


def test_a_folder_of_ones_own_goes_along_but_for_what_is_hidden_and_links_to_folders(tmp_path):
    own, outside = tmp_path / "own", tmp_path / "outside"
    for name in ("data/x.csv", ".git/config", ".env", "jobs/train.py", "a/__pycache__/x.pyc", "a/b.py"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("mine")
    sparse(outside / "big", 200)
    (own / "link").symlink_to(outside)
    (own / "nowhere").symlink_to(tmp_path / "gone")
    shipping.check_size(own)
    shipping.write_folder(tmp_path / "sent", shipping.training(config_of()), "r1", own)
    assert files(tmp_path / "sent") == {"data/x.csv", "jobs/train.py", "jobs/tiny.yaml", "a/b.py"}
    assert (tmp_path / "sent/jobs/train.py").read_text() == "mine"
    with pytest.raises(NotShippableError):
        shipping.check_paths(config_of(data={"source": "folder", "path": "link"}), own, {})


def test_what_is_too_big_is_named(tmp_path):
    for at, mib in enumerate([11, 40, 3, 30, 2, 20]):
        sparse(tmp_path / "deep" / f"f{at}.npy", mib)
    with pytest.raises(NotShippableError, match="weighs 106 MiB") as found:
        shipping.check_size(tmp_path)
    text = str(found.value)
    order = [text.index(f"deep/f{at}.npy") for at in (1, 3, 5, 0, 2)]
    assert order == sorted(order) and "f4.npy" not in text and "(40 MiB)" in text and "data.path" in text
    (tmp_path / "deep" / "f1.npy").unlink()
    remarks = shipping.check_size(tmp_path)
    assert [r.split()[0] for r in remarks] == ["deep/f3.npy", "deep/f5.npy", "deep/f0.npy"]


def test_a_working_dir_must_be_a_folder(tmp_path):
    with pytest.raises(NotShippableError, match="no folder"):
        shipping.check_folder(tmp_path / "gone")
    shipping.check_folder(None)


@pytest.mark.parametrize("path", ["/data/ml-100k", "s3://bucket/ml-100k", "$DATA/ml-100k", "~/ml-100k"])
def test_paths_that_the_cluster_may_know_pass(path):
    shipping.check_paths(config_of(data={"source": "folder", "path": path}), None, {})


def test_relative_paths_pass_where_they_go_along(tmp_path):
    config = config_of(data={"source": "folder", "path": "data/mine"})
    with pytest.raises(NotShippableError, match="data.path 'data/mine' is relative.*--working-dir"):
        shipping.check_paths(config, None, {})
    with pytest.raises(NotShippableError):
        shipping.check_paths(config, tmp_path, {})
    shipping.check_paths(config, None, {"FEDRAY_DATA": "/data"})
    (tmp_path / "data" / "mine").mkdir(parents=True)
    shipping.check_paths(config, tmp_path, {})


def test_features_of_ones_own_are_looked_at_too():
    encoders = {"text": {"name": "precomputed", "path": "text.npy"}}
    with pytest.raises(NotShippableError, match="encoders.text.path 'text.npy'"):
        shipping.check_paths(config_of(encoders=encoders), None, {})


def test_what_ray_would_remove_with_the_job_is_named():
    none = {"checkpoint": {"every": 0}}
    checkpoints = "runtime.checkpoint.path=.fedray/checkpoints"
    assert shipping.goes_away(config_of()) == ["tracking.uri=sqlite:///mlflow.db", checkpoints]
    assert shipping.goes_away(config_of(runtime=none)) == ["tracking.uri=sqlite:///mlflow.db"]
    away = shipping.goes_away(config_of(encoders={"text": {"name": "hashing"}}, tracking={"backend": "none"}))
    assert away == ["encoding.store=.fedray/embeddings", checkpoints]
    for uri in ("http://mlflow:5000", "sqlite:////shared/mlflow.db"):
        assert shipping.goes_away(config_of(tracking={"uri": uri}, runtime=none)) == []
    for path in ("s3://bucket/fedray", "/shared/fedray"):
        away = shipping.goes_away(config_of(tracking={"backend": "none"}, runtime={"checkpoint": {"path": path}}))
        assert away == []


def test_the_command_survives_a_shell():
    job = shipping.training(config_of())._replace(file="jobs/it's $HOME.yaml")
    argv = shipping.command(job, "r;1", "0..4")
    assert shlex.split(shlex.join(argv)) == argv
    assert argv == ["jobs/train.py", "jobs/it's $HOME.yaml", "--run-id", "r;1", "--resume-or-start", "--seeds", "0..4"]
    assert "--seeds" not in shipping.command(job, "r")
    without = shipping.training(config_of(runtime={"checkpoint": {"every": 0}}))
    assert shipping.command(without, "r")[2:] == ["--run-id", "r"]  # there is nothing to go on from


def test_a_sweep_goes_with_an_entrypoint_of_its_own(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text(SWEEP)
    job = read_job(Submission(file, ["budget.trials=3"]))
    shipping.write_folder(tmp_path / "sent", job, "r1")
    assert files(tmp_path / "sent") == {"jobs/tune.py", "tune_configs/some.yaml"}
    sent = load_sweep(tmp_path / "sent/tune_configs/some.yaml")
    assert sent.config.budget.trials == 3
    assert sent.fingerprint() == load_sweep(file).fingerprint()
    assert shipping.command(job, "r")[:2] == ["jobs/tune.py", "tune_configs/some.yaml"]
    done = subprocess.run([sys.executable, tmp_path / "sent/jobs/tune.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--resume-or-start" in done.stdout
    with pytest.raises(JobError, match="refit.seeds"):
        read_job(Submission(file, seeds="0..2"))


def test_only_named_variables_go_along():
    here = {
        "MLFLOW_TRACKING_TOKEN": "t",
        "RAY_AUTH_TOKEN": "no",
        "AWS_SECRET": "no",
        "HOME": "/x",
        "FEDRAY_DATA": "/mine",
    }
    assert shipping.job_env([], here) == {"RAY_JOB_STOP_WAIT_TIME_S": "60", "MLFLOW_TRACKING_TOKEN": "t"}
    asked = shipping.job_env(["AWS_SECRET", "A=b=c", "E=", "RAY_JOB_STOP_WAIT_TIME_S=90"], here)
    assert asked == {
        "RAY_JOB_STOP_WAIT_TIME_S": "90",
        "MLFLOW_TRACKING_TOKEN": "t",
        "AWS_SECRET": "no",
        "A": "b=c",
        "E": "",
    }


@pytest.mark.parametrize(
    ("asked", "says"), [("GONE", "--env GONE: not set here"), ("a b=hidden", "no variable's name")]
)
def test_variables_that_are_none_are_refused_and_no_value_is_said(asked, says):
    with pytest.raises(JobError, match=says) as found:
        shipping.job_env([asked], {})
    assert "hidden" not in str(found.value)


def test_a_local_job_is_not_told_of_a_dashboard():
    assert surroundings({"RAY_ADDRESS": "http://h:8265", "A": "1"}, {"B": "2"}) == {"A": "1", "B": "2"}
    for address in ("ray://h:10001", "h:6379", "auto"):
        assert surroundings({"RAY_ADDRESS": address}, {}) == {"RAY_ADDRESS": address}
