"""Sweeps on a real Ray of two CPUs: the same at any concurrency, after a kill, and when there is no room."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient
from rich.console import Console

import fedray
from fedray.config import make_config
from fedray.errors import PlacementError, ResumeError, SweepError, TrackingError
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.job import prepare
from fedray.methods import build
from fedray.runtime.checkpoint import NEW, Go
from fedray.search.sweep import make_sweep
from fedray.search.tree import Tree
from fedray.search.tune import tune_sweep

ENV = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
SWEEP = {
    "name": "small",
    "base": {
        "data": {"source": "synthetic", "users": 60, "items": 80},
        "backbone": {"name": "fcf", "dim": 8},
        "train": {"rounds": 9},
        "tracking": {"backend": "none"},
    },
    "space": {"backbone.lr": {"loguniform": [0.01, 1.0]}, "train.negatives": {"choice": [1, 2, 4]}},
    "search": {"name": "random"},
    "scheduler": {"name": "none"},
    "budget": {"trials": 4},
}


@pytest.fixture(scope="module")
def two_cpus():
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def swept(*sets, raw=SWEEP, go=NEW):
    return tune_sweep(make_sweep(raw, sets), Console(quiet=True), go)


def told(book):
    return [(r.number, r.settings, r.state, r.value, r.best, r.points, r.rounds) for r in book.trials]


def test_a_random_sweep_is_the_same_at_any_concurrency(two_cpus, here):
    two = swept("trials.concurrent=2", go=Go("one"))
    assert [r.state for r in two.trials] == ["finished"] * 4
    assert told(two) == told(swept("trials.concurrent=1"))
    assert len({r.value for r in two.trials}) > 1
    assert not [p for p in Path(".fedray/checkpoints").iterdir() if "-t0" in p.name]  # of trials that are over
    with pytest.raises(ResumeError, match="there already"):
        swept(go=Go("one"))
    # A larger budget goes on with the same sweep; nothing is run again.
    more = swept("budget.trials=5", go=Go("one", True))
    assert told(more)[:4] == told(two)
    assert [r.seconds for r in more.trials[:4]] == [r.seconds for r in two.trials]


@pytest.mark.slow
def test_tpe_in_batches_is_the_same_at_any_concurrency(two_cpus, here):
    tpe = ("search={name: tpe, batch: 2, startup: 2}", "budget.trials=6")
    assert told(swept(*tpe, "trials.concurrent=2")) == told(swept(*tpe, "trials.concurrent=1"))


@pytest.mark.slow
def test_a_trial_of_actors_finds_what_a_packed_one_finds(two_cpus, here):
    packed = swept("budget.trials=2", "trials.place=packed")
    actors = swept("budget.trials=2", "trials.place=actors", "runtime.actors=2")
    assert told(packed) == told(actors)


@pytest.mark.slow
def test_eight_at_once_on_two_cpus_come_to_an_end(two_cpus, here):
    small = ("trials.cpus=0.25", "trials.concurrent=8", "budget.trials=8", "train.rounds=3")
    assert len(swept(*small).ended()) == 8
    waiting = ("trials.concurrent=8", "budget.trials=3", "trials.place=actors", "runtime.actors=2", "train.rounds=3")
    assert len(swept(*waiting).ended()) == 3


@pytest.mark.parametrize(
    "sets",
    [("trials.cpus=64",), ("trials.place=actors", "runtime.actors=3", "runtime.device=cuda")],
    ids=["cpus", "gpus"],
)
def test_more_than_there_is_is_refused_at_once(two_cpus, here, sets):
    begun = time.monotonic()
    with pytest.raises(PlacementError, match=r"64 CPU|there is no GPU"):
        swept(*sets)
    assert time.monotonic() - begun < 30


def test_asha_breaks_off_the_poor(two_cpus, here):
    sets = ("scheduler={name: asha, grace: 1, reduction: 3}", "budget.trials=6", "trials.concurrent=1")
    found = swept(*sets, "train.rounds=27").trials
    pruned = [r for r in found if r.state == "pruned"]
    assert pruned and all(r.rounds < 27 for r in pruned)
    assert max(found, key=lambda r: r.value).state == "finished"


def test_a_budget_of_rounds_ends_it(two_cpus, here):
    book = swept("budget={rounds: 20}", "trials.concurrent=2")
    assert 20 <= sum(r.rounds for r in book.trials) < 20 + 2 * 9
    assert {r.state for r in book.trials} == {"finished", "pruned"}  # those under way were broken off
    assert book.best is not None


def test_trials_that_diverge_are_failures_and_the_sweep_goes_on(two_cpus, here):
    wild = {**SWEEP, "space": {"backbone.lr": {"grid": [1e30, 0.1]}}, "search": {"name": "grid"}, "budget": {}}
    book = swept(raw=wild)
    assert [r.state for r in book.trials] == ["failed", "finished"]
    assert "Error" in book.trials[0].error
    with pytest.raises(SweepError, match="none of 1 trials has a result; trial 0: "):
        swept(raw={**wild, "space": {"backbone.lr": {"grid": [1e30]}}})


def test_a_store_that_is_away_at_first_stops_it_early(two_cpus, here, monkeypatch):
    def away(self, *args):
        raise TrackingError("the store does not answer")

    with monkeypatch.context() as patch, pytest.raises(TrackingError, match="the store does not answer"):
        patch.setattr(Tree, "start", away)
        swept("train.rounds=2000", "trials.concurrent=2", go=Go("night"))
    book = swept("train.rounds=2000", "budget.rounds=1", "trials.concurrent=2", go=Go("night", resume=True))
    assert all(r.rounds < 2000 for r in book.trials)


def test_a_setting_that_only_the_method_refuses_fails_its_trial_alone(two_cpus, here):
    gpfedrec = {"name": "gpfedrec", "dim": 4, "hidden": [4], "item_lr_scale": 10.0, "user_lr_scale": 10.0}
    space = {"backbone.reg": {"grid": [1000.0, 0.1]}}
    raw = {**SWEEP, "base": {**SWEEP["base"], "backbone": gpfedrec}, "space": space, "search": {"name": "grid"}}
    book = swept("train.rounds=3", raw={**raw, "budget": {}})
    assert [r.state for r in book.trials] == ["failed", "finished"]
    assert "OutOfRangeError: gpfedrec: a step goes" in book.trials[0].error


PBT = {"scheduler": {"name": "pbt", "population": 3, "interval": 20}, "budget": {}}


def test_a_population_is_the_same_at_any_concurrency_and_its_best_is_a_job(two_cpus, here):
    raw = {**SWEEP, **PBT, "base": {**SWEEP["base"], "train": {"rounds": 12}}}
    sets = ("scheduler.interval=4", "scheduler.population=4", "search.seed=1")
    one, two = (swept(*sets, f"trials.concurrent={n}", raw=raw, go=Go(f"of{n}")) for n in (1, 2))
    assert told(one) == told(two)
    assert [r.begun for r in one.trials] == [0] * 4 + [4] * 4 + [8] * 4
    assert [r.rounds for r in one.trials] == [4] * 4 + [8] * 4 + [12] * 4
    moved = [r for r in one.trials if "changes" in r.settings]
    assert moved and all(r.parent is not None for r in moved)
    assert not list((here / ".fedray" / "checkpoints").glob("*-t*"))  # of trials that are over
    for record in moved:  # from its first round on, as a job of its own
        job = make_config({**make_sweep(raw, sets).raw(record.settings), "runtime": {"executor": "serial"}})
        assert whole(job)[: record.rounds] == [v for _, v in record.points], record


def whole(config):
    """The best validation metric so far, by round, of a run in memory: no checkpoints, the settings just swapped."""
    job = prepare(config)
    run, where = rounds.start(config, job.method), SerialExecutor([make_host(config, job.method, job.data)])
    best = []
    while not rounds.finished(run):
        now = config.at(run.state.round)
        method = build(now, job.data.n_items, job.dataset.features)
        where._hosts = [replace(h, config=now, method=method) for h in where._hosts]
        run, report = rounds.step(replace(run, config=now, method=method), where)
        best.append(max([report.metrics["val/ndcg_at_10"], *best[-1:]]))
    return best


COMMAND = [sys.executable, "-m", "fedray.cli", "tune", "sweep.yaml", "--run-id", "night", "--resume-or-start"]


def started(folder, *args):
    with (folder / "log").open("w") as log:
        return subprocess.Popen([*COMMAND, *args], cwd=folder, stdout=log, stderr=log, env=ENV, start_new_session=True)


def children(folder):
    """What the tracking store says of each trial, and of the sweep."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name.startswith("fedray/")]
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if r.data.tags["fedray.stage"] == "sweep"]
    assert len(parents) == 1
    found = {}
    for run in runs:
        at = client.get_metric_history(run.info.run_id, "val/ndcg_at_10")
        tags = {k: v for k, v in run.data.tags.items() if k in ("fedray.trial", "fedray.trial_state", "pruned")}
        child = run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id
        points = sorted((m.step, m.value) for m in at)
        found[run.info.run_name] = (run.info.status, child, run.data.params, tags, points)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("more", "trials"), [({}, 4), (PBT, 9)], ids=["random", "pbt"])
def test_killed_in_the_middle_and_resumed_it_is_the_same_sweep(tmp_path, more, trials):
    """kill -9 of the whole process group while trials run; MLflow's tree ends as if nothing had been."""
    raw = {**SWEEP, **more, "base": {**SWEEP["base"], "tracking": {"backend": "mlflow"}, "train": {"rounds": 60}}}
    raw["base"]["runtime"] = {"checkpoint": {"every": 5}}
    ends = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "sweep.yaml").write_text(json.dumps(raw))
        if name == "killed":
            process = started(folder)
            await_(folder / f".fedray/checkpoints/night/trials/{trials // 2:05d}", process)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process = started(folder, "--summary", "s.json")
        assert process.wait(240) == 0, (folder / "log").read_text()
        ends[name] = json.loads((folder / "s.json").read_text())
    log = (tmp_path / "killed" / "log").read_text()
    assert "goes on: " in log
    times = {"seconds"}
    assert [{k: v for k, v in t.items() if k not in times} for t in ends["whole"]["trials"]] == [
        {k: v for k, v in t.items() if k not in times} for t in ends["killed"]["trials"]
    ]
    assert ends["whole"]["best"] == ends["killed"]["best"]
    tree = children(tmp_path / "killed")
    assert tree == children(tmp_path / "whole")
    assert sorted(status for status, *_ in tree.values()) == ["FINISHED"] * (trials + 1)
    assert not [p for p in (tmp_path / "killed/.fedray/checkpoints").iterdir() if "-t" in p.name]


def await_(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, (path.parents[4] / "log").read_text()
        assert time.monotonic() < end, f"{path} is not there"
        time.sleep(0.05)


def test_stopped_it_says_how_to_go_on(tmp_path):
    raw = {**SWEEP, "base": {**SWEEP["base"], "train": {"rounds": 2000}}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(raw))
    process = started(tmp_path)
    await_(tmp_path / ".fedray/checkpoints/night/trials/00001", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert "to go on, add: --run-id night --resume-or-start" in log
    # no traceback of ours; Ray may show one where its first copy of its own state meets the last, which we do not read
    assert f'File "{Path(fedray.__file__).parent}' not in log and "broken off" not in log
    there = [json.loads(f.read_text()) for f in (tmp_path / ".fedray/checkpoints/night/trials").glob("*/trial.json")]
    assert {t["state"] for t in there} == {"running"}  # they go on another time
