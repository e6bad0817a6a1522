"""A sweep's runs: a parent and its children, whatever the store does."""

import json
from pathlib import Path

import pytest

from fedray.config import make_config
from fedray.errors import FedrayWarning, TrackingError
from fedray.search import tree as trees
from fedray.search.tree import Tree
from fedray.tracking.tracker import JsonlTracker, RunEnd
from fedray.types import RoundReport

DATASET = {"name": "toy", "fingerprint": "f", "users": 2, "items": 3}


def job(tmp_path):
    return make_config({"tracking": {"backend": "jsonl", "uri": str(tmp_path)}, "train": {"rounds": 3}})


def report(round_):
    return RoundReport(round_, {"train/loss": 1.0, "val/ndcg_at_10": 0.1 * round_}, {"round": 0.1}, 10, 20, 2)


def events(tmp_path, run_id):
    return [json.loads(line) for line in (tmp_path / f"{run_id}.jsonl").read_text().splitlines()]


def test_children_know_their_parent(tmp_path):
    tree = Tree("night", DATASET)
    parent = tree.start(job(tmp_path), "small", {}, resume=False)
    tree.open(3, job(tmp_path), {"backbone.lr": 0.5})
    tree.log(3, [report(1), report(2)])
    tree.close(3, RunEnd("FINISHED", {"val/best_ndcg_at_10": 0.2}))
    tree.best(1, {"best/ndcg_at_10": 0.2})
    tree.finish(RunEnd("FINISHED"))
    start, *rounds, end = events(tmp_path, "night-t00003")
    assert start["parent_id"] == parent == "night"
    assert start["tags"] == {
        "fedray.stage": "trial",
        "fedray.trial": "3",
        "fedray.settings": '{"backbone.lr": 0.5}',
    }
    assert [r["round"] for r in rounds] == [1, 2]
    assert end["status"] == "FINISHED"
    assert [e["event"] for e in events(tmp_path, "night")] == ["start", "metrics", "end"]


def test_trials_that_are_not_over_are_broken_off(tmp_path):
    tree = Tree("night", DATASET)
    tree.start(job(tmp_path), "small", {}, resume=False)
    tree.open(0, job(tmp_path), {})
    tree.finish(RunEnd("KILLED"))
    assert events(tmp_path, "night-t00000")[-1]["status"] == "KILLED"


@pytest.fixture
def away(monkeypatch):
    """A store that is away for as many children as it is told."""
    left = [0]

    class Sleeping(JsonlTracker):
        def start(self, start):
            if start.parent_id and left[0]:
                left[0] -= 1
                raise TrackingError("the store does not answer")
            return super().start(start)

    monkeypatch.setattr(trees, "make_tracker", lambda config: Sleeping(Path(config.uri)))
    return left


def test_a_child_that_could_not_be_opened_has_all_it_missed(tmp_path, away):
    tree = Tree("night", DATASET)
    tree.start(job(tmp_path), "small", {}, resume=False)
    away[0] = 1
    with pytest.warns(FedrayWarning, match="trial 0: the store does not answer"):
        tree.open(0, job(tmp_path), {})
    tree.log(0, [report(1)])
    tree.close(0, RunEnd("FINISHED"))
    assert [e["event"] for e in events(tmp_path, "night-t00000")] == ["start", "round", "end"]


def test_a_store_that_stays_away_costs_no_trial(tmp_path, away):
    tree = Tree("night", DATASET)
    tree.start(job(tmp_path), "small", {}, resume=False)
    away[0] = 2
    with pytest.warns(FedrayWarning, match="trial 0"):
        tree.open(0, job(tmp_path), {})
        tree.close(0, RunEnd("FINISHED"))
    tree.finish(RunEnd("FINISHED"))
    assert not (tmp_path / "night-t00000.jsonl").exists()
