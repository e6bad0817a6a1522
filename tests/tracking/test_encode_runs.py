"""Runs of `fedray encode` beside training runs: what MLflow keeps of them, and that `compare` passes them over."""

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fedray.config import make_config
from fedray.errors import NoSuchRunError
from fedray.tracking import records, store
from fedray.tracking.mlflow import MlflowTracker
from fedray.tracking.reader import runs_called
from fedray.tracking.rows import identity
from fedray.tracking.tracker import JsonlTracker, NullTracker, RunEnd, RunStart
from tests.tracking.fakes import DATASET, begin, end, report

ENCODERS = {"text": {"name": "hashing"}, "poster": {"name": "hashing", "input": "text"}}
SHEET = {"figures/contact_sheet_image.png": b"\x89PNG\x00 not text"}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database without runs: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    store.connect(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def place(tmp_path, empty):
    shutil.copy(empty, tmp_path / "mlflow.db")
    return tmp_path


def begin_encode(encoders=None, **tracking):
    config = make_config({"name": "films", "seed": 3, "encoders": encoders or {}, "tracking": tracking})
    return RunStart(config, "encode(hashing)", DATASET, stage="encode", plan="1 actor")


def uri(place):
    return f"sqlite:///{place}/mlflow.db"


def ended(place, start, *steps, status="FINISHED"):
    """(client, run) of an encode run with these (step, metrics)."""
    tracker = MlflowTracker(uri(place), place / "spool")
    run_id = tracker.start(start)
    for step, metrics in steps:
        tracker.log_metrics(step, metrics)
    texts = {"report.json": "{}", "problems.csv": "feature,item"}
    tracker.finish(RunEnd(status, {"encode/text/items_per_s": 9.0, "encode/text/present": 5.0}, {}, texts, files=SHEET))
    client = MlflowClient(uri(place))
    return client, client.get_run(run_id)


def trained(place, seed=0, **tracking):
    tracker = MlflowTracker(uri(place), place / "spool")
    run_id = tracker.start(begin(seed, **tracking))
    tracker.log_round(report(1))
    tracker.finish(replace(end(), files={}))
    return run_id


def points(client, run, name):
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def test_an_encode_run_says_what_it_is(place):
    client, run = ended(place, begin_encode())
    tags, params = run.data.tags, run.data.params
    assert run.info.run_name == "films-encode" and run.info.status == "FINISHED"
    assert tags["fedray.stage"] == "encode" and tags["fedray.data_fingerprint"] == "3f2a91c0d1e2"
    assert not {"fedray.method", "fedray.protocol"} & tags.keys()
    assert params["data.source"] == "synthetic" and params["encoding.batch_size"] == "32"
    assert {name.split(".")[0] for name in params} == {"data", "encoding"}
    assert "encoded" in tags["mlflow.note.content"] and "rounds" not in tags["mlflow.note.content"]
    (data,) = run.inputs.dataset_inputs
    assert {t.key: t.value for t in data.tags} == {"mlflow.data.context": "encode"}


def test_it_has_an_experiment_with_instructions_of_its_own(place):
    client, run = ended(place, begin_encode())
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "fedray/ml100k/encoders"
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "encode/items_per_s"
    note = experiment.tags["mlflow.note.content"]
    assert all(word in note for word in ("1,682 items", "fedray encode", "items_per_s", "contact sheet", "content_"))


def test_an_experiment_of_the_users_own_is_described_as_one_of_training(place):
    client, run = ended(place, begin_encode(experiment="mine", run_name="try"))
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "mine" and run.info.run_name == "try-encode"
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "val/ndcg_at_10"
    assert "Protocol `clean`" in experiment.tags["mlflow.note.content"]


def test_steps_end_and_pictures_arrive_and_nothing_of_training_is_drawn(place):
    """The second feature starts at a lower step; the end's metrics still come last."""
    steps = [(32, {"encode/text/items_per_s": 4.0}), (64, {"encode/text/items_per_s": 5.0, "x": math.nan})]
    client, run = ended(place, begin_encode(), *steps, (8, {"encode/image/items_per_s": 2.0}))
    assert points(client, run, "encode/text/items_per_s") == [(32, 4.0), (64, 5.0), (64, 9.0)]
    assert points(client, run, "encode/image/items_per_s") == [(8, 2.0)]
    assert run.data.metrics["encode/text/items_per_s"] == 9.0 and run.data.tags["fedray.points_not_finite"] == "1"
    run_id = run.info.run_id
    assert {f.path for f in client.list_artifacts(run_id)} == {
        "config", "figures", "plan.txt", "problems.csv", "report.json"
    }  # fmt: skip
    assert [f.path for f in client.list_artifacts(run_id, "figures")] == list(SHEET)
    local = client.download_artifacts(run_id, next(iter(SHEET)), str(place))
    assert Path(local).read_bytes() == b"\x89PNG\x00 not text"


def test_a_run_that_logged_nothing_ends_at_step_0(place):
    client, run = ended(place, begin_encode(), status="FAILED")
    assert run.info.status == "FAILED" and points(client, run, "encode/text/present") == [(0, 5.0)]


def test_log_metrics_does_not_wait(place):
    tracker = MlflowTracker(uri(place), place / "spool")
    tracker.start(begin_encode())
    begun = time.perf_counter()
    for step in range(50):
        tracker.log_metrics(step, {"encode/text/done": float(step)})
    assert time.perf_counter() - begun < 0.5
    tracker.finish(RunEnd("FINISHED"))


def test_names_with_encoders():
    start = begin_encode(ENCODERS)
    assert records.primary_metric(start.config, "encode") == "encode/text/items_per_s"
    assert records.run_params(start)["encoders.text.name"] == "hashing"
    assert "`text` by **hashing**, `poster` by **hashing**" in records.run_note(start)


def test_compare_passes_encode_runs_over(place):
    """Under every kind of name: an experiment of both stages, a run name of both, the encode run's own names."""
    mine = {"experiment": "mine", "run_name": "try"}
    run_id = trained(place, **mine)
    _, encoded = ended(place, begin_encode(**mine))
    _, alone = ended(place, begin_encode())
    assert [run.run_id for run in runs_called(uri(place), "mine")] == [run_id]
    assert [run.run_id for run in runs_called(uri(place), "try")] == [run_id]
    for name in ("try-encode", "films-encode", "fedray/ml100k/encoders", alone.info.run_id, encoded.info.run_id[:12]):
        with pytest.raises(NoSuchRunError, match="of `fedray encode` alone"):
            runs_called(uri(place), name)
    with pytest.raises(NoSuchRunError) as caught:
        runs_called(uri(place), "try-encod")
    assert "try-encode" not in str(caught.value) and "try" in str(caught.value)


def test_where_encoders_run_makes_no_row(place):
    """As with `runtime`: the numbers do not depend on it."""
    trained(place)
    (run,) = runs_called(uri(place), "fedray/ml100k/clean")
    assert run.params["encoding.batch_size"] == "32"
    other = replace(run, params={**run.params, "encoding.batch_size": "64", "runtime.actors": "3"})
    assert identity(run) == identity(other) != identity(replace(run, params={**run.params, "train.rounds": "7"}))


def test_without_mlflow(tmp_path):
    tracker = JsonlTracker(tmp_path)
    run_id = tracker.start(begin_encode(ENCODERS))
    tracker.log_metrics(4, {"encode/text/done": 4.0, "x": math.inf})
    tracker.finish(RunEnd("FINISHED", files=SHEET))
    start, step, last = (json.loads(line) for line in (tmp_path / f"{run_id}.jsonl").read_text().splitlines())
    assert start["stage"] == "encode" and {name.split(".")[0] for name in start["params"]} == {
        "data", "encoders", "encoding"
    }  # fmt: skip
    assert step == {"event": "metrics", "step": 4, "metrics": {"encode/text/done": 4.0, "x": None}}
    assert last["files"] == list(SHEET)
    assert (tmp_path / f"{run_id}.figures.contact_sheet_image.png").read_bytes() == b"\x89PNG\x00 not text"
    NullTracker().log_metrics(1, {"x": 1.0})
