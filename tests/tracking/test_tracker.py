"""The trackers that need no library."""

import json
from dataclasses import replace

import pytest

from fedray.config import make_config
from fedray.errors import TrackingError
from fedray.tracking.tracker import JsonlTracker, NullTracker, RunEnd, RunStart, make_tracker
from fedray.types import RoundReport

START = RunStart(make_config({"name": "job"}), "fcf", {"name": "synthetic", "fingerprint": "abc"})
REPORT = RoundReport(1, {"train/loss": float("nan"), "val/ndcg_at_10": 0.5}, {"round": 0.1}, 10, 20, 3)


def test_jsonl_keeps_start_rounds_and_end(tmp_path):
    tracker = JsonlTracker(tmp_path / "runs")
    run_id = tracker.start(START)
    tracker.log_round(REPORT)
    tracker.finish(RunEnd("FINISHED", {"test/ndcg_at_10": 0.4}))
    lines = [json.loads(line) for line in (tmp_path / "runs" / f"{run_id}.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "round", "end"]
    assert lines[0]["params"]["name"] == "job" and lines[1]["metrics"] == {"train/loss": None, "val/ndcg_at_10": 0.5}
    assert lines[2]["status"] == "FINISHED" and run_id in tracker.where()


def test_jsonl_goes_on_after_a_line_that_a_death_cut_short(tmp_path):
    for again in range(2):
        tracker = JsonlTracker(tmp_path)
        tracker.start(replace(START, run_id="night", resume=True))
        tracker.log_round(REPORT)
        tracker.log_round(replace(REPORT, round=again + 2))
        tracker._file.write('{"event": "round", "round": 9, "metrics": {"a": 1}')
        tracker._file.close()
    tracker = JsonlTracker(tmp_path)
    tracker.start(replace(START, run_id="night", resume=True))
    tracker.finish(RunEnd("FINISHED"))
    lines = [json.loads(line) for line in (tmp_path / "night.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if line["event"] == "round"] == [1, 2, 3]


def test_jsonl_lays_files_beside_the_run(tmp_path):
    tracker = JsonlTracker(tmp_path)
    run_id = tracker.start(START)
    tracker.finish(RunEnd("FINISHED", files={"users.parquet": b"columns"}))
    assert (tmp_path / f"{run_id}.users.parquet").read_bytes() == b"columns"
    end = json.loads((tmp_path / f"{run_id}.jsonl").read_text().splitlines()[-1])
    assert end["files"] == ["users.parquet"]


def test_jsonl_refuses_rounds_without_a_run_and_folders_it_cannot_make(tmp_path):
    with pytest.raises(TrackingError, match="no run is open"):
        JsonlTracker(tmp_path).log_round(REPORT)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="cannot write"):
        JsonlTracker(tmp_path / "file").start(START)


def test_backends_are_chosen_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {b: make_tracker(make_config({"tracking": {"backend": b}}).tracking) for b in ("none", "jsonl", "mlflow")}
    assert isinstance(made["none"], NullTracker) and isinstance(made["jsonl"], JsonlTracker)
    assert type(made["mlflow"]).__name__ == "MlflowTracker"
    run_id = made["none"].start(START)
    made["none"].log_round(REPORT)
    made["none"].finish(RunEnd("KILLED"))
    assert run_id and not list(tmp_path.rglob("*.jsonl"))
