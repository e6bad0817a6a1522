"""What is in MLflow after a run, on SQLite: the reader is MLflow's own client."""

import json
import math
import time
import warnings
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from fedray.errors import FedrayWarning, TrackingError
from fedray.tracking import store
from fedray.tracking.mlflow import MlflowTracker
from fedray.tracking.replay import replay
from fedray.tracking.spool import Spool
from tests.tracking.fakes import DATASET, begin, config, end, report

PASSWORD = "s3cr3t"
METRICS = {"train/loss", "val/ndcg_at_10", "val/hr_at_10", "time/round_s", "time/train_s", "comm/mb_down"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One database for the tests that only look, made once: migrations take seconds."""
    folder = tmp_path_factory.mktemp("store")
    store.connect(f"sqlite:///{folder}/mlflow.db")
    return folder


@pytest.fixture
def fresh(tmp_path, place):
    """A database of one's own, a copy of an empty one."""
    import shutil

    shutil.copy(place / "empty.db", tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def _empty(place):
    import sqlite3

    with closing(sqlite3.connect(place / "mlflow.db")) as source, closing(sqlite3.connect(place / "empty.db")) as to:
        source.backup(to)


def tracker(folder, **options):
    return MlflowTracker(f"sqlite:///{folder}/mlflow.db", folder / "spool", **options)


def reader(folder):
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def steps(client, run_id, name):
    return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


def names_of(client, run_id, folder=None):
    found = [f for f in client.list_artifacts(run_id, folder)]
    return {f.path for f in found if not f.is_dir} | {p for f in found if f.is_dir for p in names_of(client, run_id, f.path)}  # fmt: skip  # noqa: E501


@pytest.fixture(scope="module")
def run(place, _empty):
    """A run of six rounds that ended well: (client, run, tracker, slowest log_round in seconds)."""
    t = tracker(place)
    run_id = t.start(begin(3, tags={"fedray.origin": "test"}))
    slowest = 0.0
    for r in range(1, 7):
        begun = time.perf_counter()
        t.log_round(report(r, **({"train/other": math.nan} if r == 2 else {"train/other": 1.0})))
        slowest = max(slowest, time.perf_counter() - begun)
    t.finish(end(**{"test/broken": math.inf}))
    client = reader(place)
    return client, client.get_run(run_id), t, slowest


def test_params_are_flat_and_can_differ_between_runs(run):
    params = run[1].data.params
    assert params["method"] == "dualper(fcf)" and params["plugins.dualper"] == "on"
    assert params["seed"] == "3" and params["backbone.dim"] == "32" and params["evaluation.k"] == "5,10,20,50"
    assert not [k for k in params if k.startswith("tracking.")] and not [v for v in params.values() if v in ("", "{}")]


def test_tags_say_what_ran_on_what(run):
    tags = run[1].data.tags
    assert tags["fedray.data_fingerprint"] == "3f2a91c0d1e2" and tags["fedray.protocol"] == "clean"
    assert tags["fedray.config_fingerprint"] == config(3).fingerprint() and tags["fedray.origin"] == "test"
    assert tags["mlflow.version"] and tags["ray.version"] and tags["fedray.version"]
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert "seed 3" in tags["mlflow.note.content"] and "| ndcg_at_10 | 0.0400 |" in tags["mlflow.note.content"]
    assert tags["fedray.points_not_finite"] == "2" and tags["fedray.flag.x"] == "odd"


def test_each_metric_has_one_point_a_round(run):
    client, found = run[:2]
    assert found.data.metrics.keys() >= METRICS
    for name in METRICS | {"fed/clients_ok"}:
        assert [s for s, _ in steps(client, found.info.run_id, name)] == [1, 2, 3, 4, 5, 6], name
    assert steps(client, found.info.run_id, "val/ndcg_at_10")[3] == (4, pytest.approx(0.03))
    assert steps(client, found.info.run_id, "test/ndcg_at_10") == [(6, 0.04)]
    assert found.data.metrics["control/popularity/ndcg_at_10"] == 0.02


def test_traffic_is_summed_up_and_a_nan_leaves_a_gap(run):
    client, found = run[:2]
    assert steps(client, found.info.run_id, "comm/total_mb_down") == [(r, 2.0 * r) for r in range(1, 7)]
    assert steps(client, found.info.run_id, "comm/total_mb_up") == [(r, 1.0 * r) for r in range(1, 7)]
    assert [s for s, _ in steps(client, found.info.run_id, "train/other")] == [1, 3, 4, 5, 6]
    assert "test/broken" not in found.data.metrics


def test_the_data_are_an_input(run):
    (data,) = run[1].inputs.dataset_inputs
    assert data.dataset.name == "ml100k" and data.dataset.digest == "3f2a91c0d1e2"
    assert json.loads(data.dataset.profile)["num_rows"] == 100_000
    assert {t.key: t.value for t in data.tags} == {"mlflow.data.context": "train"}


def test_artifacts(run, tmp_path):
    client, found = run[:2]
    texts = {"config/resolved.yaml", "plan.txt", "summary.json", "table.md"}
    assert names_of(client, found.info.run_id) == texts | {
        "figures/curves.png",
        "figures/quantiles.png",
        "users.parquet",
    }
    local = client.download_artifacts(found.info.run_id, "config/resolved.yaml", str(tmp_path))
    assert yaml.safe_load(Path(local).read_text())["seed"] == 3
    image = client.download_artifacts(found.info.run_id, "figures/curves.png", str(tmp_path))
    assert Path(image).read_bytes().startswith(b"\x89PNG")
    users = client.download_artifacts(found.info.run_id, "users.parquet", str(tmp_path))
    assert Path(users).read_bytes() == b"PAR1\x00 not text"


def test_the_run_ended_and_says_where_it_is(run, place):
    _, found, t, slowest = run
    assert found.info.status == "FINISHED" and found.info.end_time >= found.info.start_time
    assert found.info.run_name == "pfedrec-s3" and slowest < 0.05
    assert f"fedray ui --uri sqlite:///{place}/mlflow.db" in t.where()
    assert t.run_url() == f"http://127.0.0.1:5000/#/experiments/{found.info.experiment_id}/runs/{found.info.run_id}"
    assert not list((place / "spool").glob("*"))


def test_one_experiment_for_data_and_protocol(run):
    client, found = run[:2]
    experiment = client.get_experiment(found.info.experiment_id)
    assert experiment.name == "fedray/ml100k/clean"
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "val/ndcg_at_10"
    assert experiment.tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "true"
    assert "943 users" in experiment.tags["mlflow.note.content"]


def test_names_of_the_users_own(fresh):
    t = tracker(fresh)
    mine = {"experiment": "mine/all", "run_name": "try"}
    first = t.start(begin(**mine))
    t.finish(end())
    parent = t.start_family(config(**mine), [0, 1], DATASET)
    t.finish_family(parent, {}, "")
    child = t.start(begin(1, parent, **mine))
    t.finish(end())
    found = [reader(fresh).get_run(i) for i in (first, parent, child)]
    assert [run.info.run_name for run in found] == ["try", "try-2-seeds", "try-s1"]
    assert reader(fresh).get_experiment(found[0].info.experiment_id).name == "mine/all"


def test_a_family_is_a_parent_with_children(fresh):
    parent_tracker, child_tracker = tracker(fresh), tracker(fresh)
    parent = parent_tracker.start_family(config(), [0, 1], DATASET)
    children = []
    for seed in (0, 1):
        children.append(child_tracker.start(begin(seed, parent)))
        child_tracker.log_round(report(1))
        child_tracker.finish(end())
    parent_tracker.finish_family(parent, {"mean/test/ndcg_at_10": 0.04, "std/test/x": math.nan}, "| mean |")
    client = reader(fresh)
    found = client.get_run(parent)
    assert found.data.tags["fedray.stage"] == "family" and found.data.tags["fedray.seeds"] == "0,1"
    assert found.data.params["seed"] == "0,1" and found.data.params["method"] == "dualper(fcf)"
    assert found.data.metrics == {"mean/test/ndcg_at_10": 0.04} and found.info.status == "FINISHED"
    assert found.data.tags["mlflow.note.content"] == "| mean |" and names_of(client, parent) == {"table.md"}
    assert {client.get_run(c).data.tags["mlflow.parentRunId"] for c in children} == {parent}
    assert parent in parent_tracker.where()


def test_a_family_that_broke_off(fresh):
    t = tracker(fresh)
    parent = t.start_family(config(), [0, 1], DATASET)
    t.finish_family(parent, {}, "", "KILLED")
    assert reader(fresh).get_run(parent).info.status == "KILLED"


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_status_of_a_run_that_broke_off(fresh, status):
    t = tracker(fresh)
    run_id = t.start(begin())
    t.log_round(report(1))
    begun = time.monotonic()
    t.finish(type(end())(status, tags={"fedray.error": "NonFiniteLossError: round 2"}))
    assert time.monotonic() - begun < 5
    found = reader(fresh).get_run(run_id)
    assert found.info.status == status and found.data.tags["fedray.error"].startswith("NonFinite")
    assert found.data.metrics["val/hr_at_10"] == 0.0


def test_a_run_without_rounds_ends_well(fresh):
    t = tracker(fresh)
    run_id = t.start(begin())
    t.finish(type(end())("FAILED"))
    assert reader(fresh).get_run(run_id).info.status == "FAILED"


def test_calls_out_of_order_are_named(fresh):
    t = tracker(fresh)
    with pytest.raises(TrackingError, match="no run is open"):
        t.log_round(report(1))
    t.start(begin())
    with pytest.raises(TrackingError, match="open already"):
        t.start(begin())
    t.finish(end())


def test_sent_twice_is_there_once(fresh):
    t = tracker(fresh)
    run_id = t.start(begin())
    client = reader(fresh)
    sent = [store.metrics_record({"val/ndcg_at_10": r / 10, "x": 1.0}, r) for r in range(1, 4)]
    for records in (sent, sent, sent[1:], sent[:1]):
        store.send(client, run_id, records)
    assert steps(client, run_id, "val/ndcg_at_10") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    t.finish(end())


def test_a_dead_process_run_becomes_failed_by_replay(fresh):
    """As after kill -9: points on disk, no end. What had arrived and what had not are both in the file."""
    t = tracker(fresh)
    run_id = t.start(begin())
    client = reader(fresh)
    records = [store.metrics_record({"loss": 1.0 / r}, r) for r in range(1, 6)]
    store.send(client, run_id, records[:3])
    t._run.spool.close()  # frees the lock, as a death does
    path = fresh / "spool" / f"{run_id}.jsonl"
    lines = [{"run": run_id, "uri": "sqlite:///elsewhere"}, *records]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert replay(fresh / "spool", f"sqlite:///{fresh}/mlflow.db") == 7
    assert [s for s, _ in steps(client, run_id, "loss")] == [1, 2, 3, 4, 5]
    found = client.get_run(run_id)
    assert found.info.status == "FAILED" and found.data.tags["fedray.ended_by"] == "sync"
    assert replay(fresh / "spool", f"sqlite:///{fresh}/mlflow.db") == 0 and not path.exists()


def test_replay_leaves_live_runs_and_strangers_alone(fresh):
    t = tracker(fresh)
    run_id = t.start(begin())
    uri = f"sqlite:///{fresh}/mlflow.db"
    assert replay(fresh / "spool", uri) == 0 and reader(fresh).get_run(run_id).info.status == "RUNNING"
    t.finish(end())
    stranger = fresh / "spool" / ("0" * 32 + ".jsonl")
    stranger.write_text(json.dumps({"run": "0" * 32, "uri": "http://elsewhere"}) + "\n")
    with pytest.warns(FedrayWarning, match="not in .* but in http://elsewhere"):
        assert replay(fresh / "spool", uri) == 0
    assert stranger.exists()


def test_a_refused_record_is_told_and_the_run_goes_on(fresh):
    t = tracker(fresh)
    run_id = t.start(begin())
    with pytest.warns(FedrayWarning, match="refused"):  # at the next round or at the end, whichever comes later
        t._run.spool.put({"kind": "nonsense"})
        t.log_round(report(1))
        t.finish(end())
    found = reader(fresh).get_run(run_id)
    assert found.info.status == "FINISHED" and found.data.metrics["train/loss"] == 1.0


@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{PASSWORD}@127.0.0.1:9",
        f"mysql+pymysql://me:{PASSWORD}@127.0.0.1:9/db",
        f"nonsense://me:{PASSWORD}@there",
        f"postgresql://127.0.0.1:9/db?user=me&password={PASSWORD}",
    ],
)
def test_no_store_is_a_named_error_within_seconds_and_without_the_password(uri, tmp_path):
    begun = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        MlflowTracker(uri, tmp_path / "spool").start(begin())
    assert time.monotonic() - begun < 10
    assert PASSWORD not in str(caught.value) and "***" in str(caught.value) and "jsonl" in str(caught.value)
    assert caught.value.__cause__ is None


def test_credentials_are_nowhere(fresh):
    """In a config value, a tag, the head of the spool, a warning and the place shown at the end."""
    url = f"https://me:{PASSWORD}@host/x?token={PASSWORD}"
    t = tracker(fresh)
    t._shown_uri = store.redact(url)
    start = begin(tags={"fedray.job": url}, uri=url)
    run_id = t.start(start)
    assert PASSWORD not in (fresh / "spool" / f"{run_id}.jsonl").read_text()
    t._run.spool._notices.append(f"no answer from {url}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        t.log_round(report(1))
    t.finish(type(end())("FAILED", tags={"fedray.error": f"TrackingError: {url}"}, texts={"summary.json": url}))
    assert "***@host" in str(said[0].message) and PASSWORD not in str(said[0].message) + t.where()
    kept = [p for p in fresh.rglob("*") if p.is_file() and PASSWORD.encode() in p.read_bytes()]
    assert kept == []


def test_a_locked_database_delays_and_loses_nothing(fresh):
    import sqlite3

    t = tracker(fresh)
    run_id = t.start(begin())
    with closing(sqlite3.connect(fresh / "mlflow.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        for r in (1, 2, 3):
            begun = time.perf_counter()
            t.log_round(report(r))
            assert time.perf_counter() - begun < 0.05
        time.sleep(0.3)
        other.execute("rollback")
    t.finish(end())
    assert [s for s, _ in steps(reader(fresh), run_id, "train/loss")] == [1, 2, 3]


def test_an_unwritable_spool_is_named(fresh):
    (fresh / "spool").write_text("a file")
    t = tracker(fresh)
    with pytest.raises(TrackingError, match="tracking.spool"):
        t.start(begin())
    (run,) = reader(fresh).search_runs(["1"])
    assert run.info.status == "FAILED"


def test_two_processes_cannot_share_a_run(fresh):
    t = tracker(fresh)
    run_id = t.start(begin())
    with pytest.raises(BlockingIOError):
        Spool(fresh / "spool" / f"{run_id}.jsonl", {}, lambda records: None, lambda error: True)
    t.finish(end())
