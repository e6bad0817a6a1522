"""What a sweep leaves: tables by hand, a job that trains, pictures of what there is."""

import csv
import io

import numpy as np
import pytest
import yaml

from fedray.config import make_config
from fedray.search import pictures, report
from fedray.search.records import TrialRecord
from fedray.search.sweep import make_sweep
from tests.search.test_sweep import SWEEP, spaced

SWEPT = make_sweep(spaced(backbone__lr={"loguniform": [0.01, 1.0]}, train__loss={"choice": ["bce", "bpr"]}))
TRIALS = [
    TrialRecord(0, {"backbone.lr": 0.1, "train.loss": "bce"}, "finished", 0.2, 9, ((3, 0.1), (9, 0.2)), 9, 2.0),
    TrialRecord(1, {"backbone.lr": 0.5, "train.loss": "bpr"}, "pruned", 0.05, 3, ((3, 0.05),), 3, 1.0),
    TrialRecord(2, {"backbone.lr": 0.9, "train.loss": "bce"}, "failed", None, 0, (), 1, 1.0, "Error: loss is | nan"),
    TrialRecord(3, {"backbone.lr": 0.01, "train.loss": "bpr"}, "finished", 0.25, 6, ((3, 0.2), (6, 0.25)), 9, 4.0),
]


def test_costs_are_counted():
    found = report.costs(TRIALS, wall_s=5.0, at_once=2)
    assert found["overhead"] == pytest.approx(5.0 * 2 / 8.0 - 1)
    assert found["trials_per_hour"] == 4 * 3600 / 5
    assert (found["finished"], found["pruned"], found["failed"], found["rounds"]) == (2, 1, 1, 22)


def test_the_best_job_is_the_base_with_its_settings():
    text = report.job_yaml(SWEPT, TRIALS[3], "night")
    assert text.startswith("# trial 3 of sweep night: validation 0.2500 at round 6\n")
    found = make_config(yaml.safe_load(text))
    assert (found.backbone.lr, found.train.loss, found.name) == (0.01, "bpr", "sweep_best")
    assert found.fingerprint() == make_config({**SWEPT.raw(TRIALS[3].settings), "name": "other"}).fingerprint()
    assert found.evaluation == SWEPT.job.evaluation


def test_the_resolved_sweep_repeats_itself():
    again = make_sweep(yaml.safe_load(report.sweep_yaml(SWEPT)))
    assert again.fingerprint() == SWEPT.fingerprint()
    assert again.space == SWEPT.space


def test_tables_have_the_best_first():
    rows = [line for line in report.sweep_markdown(SWEPT, TRIALS, "ndcg_at_10").splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == ["trial", "3", "0", "1", "2"]
    lines = list(csv.DictReader(io.StringIO(report.trials_csv(SWEPT, TRIALS, "ndcg_at_10"))))
    assert [line["trial"] for line in lines] == ["0", "1", "2", "3"]
    assert lines[2]["ndcg_at_10"] == "" and lines[2]["error"] == "Error: loss is | nan"
    assert float(lines[3]["ndcg_at_10"]) == 0.25


def test_a_line_a_trial():
    line = report.trial_line(TRIALS[1], TRIALS[0], "ndcg_at_10", 2)
    assert "trial 1  broken off at round 3  ndcg_at_10 0.0500 (best 0.2000 by trial 0)  1.0 s" in line
    assert "FAILED" in report.trial_line(TRIALS[2], None, "ndcg_at_10", 3)


def test_all_pictures_are_drawn_and_importance_waits_for_trials():
    assert sorted(pictures.drawn(SWEPT, TRIALS, "ndcg_at_10")) == ["figures/history.png", "figures/parallel.png"]
    rng = np.random.default_rng(0)
    many = [
        TrialRecord(
            n, {"backbone.lr": float(lr), "train.loss": loss}, "finished", float(lr), 9, ((9, float(lr)),), 9, 1.0
        )
        for n, (lr, loss) in enumerate(zip(rng.uniform(0.01, 1, 20), ["bce", "bpr"] * 10, strict=True))
    ]
    weights, round_ = pictures.importance(SWEPT, many)
    assert round_ == 9
    assert list(weights) == ["backbone.lr", "train.loss"]
    assert weights["backbone.lr"] > 0.9 and sum(weights.values()) == pytest.approx(1)
    assert "figures/importance.png" in pictures.drawn(SWEPT, many, "ndcg_at_10")


def test_importance_compares_trials_where_all_of_them_were():
    """A trial that went on is better only for that: at round 3 the two learning rates are alike, the losses are not."""
    trials = [
        TrialRecord(
            n,
            {"backbone.lr": 0.1 + 0.1 * (n % 2), "train.loss": "bce" if n < 5 else "bpr"},
            "finished" if n % 2 else "pruned",
            0.9 if n % 2 else 0.1 + 0.1 * (n < 5),
            3,
            ((3, 0.1 + 0.1 * (n < 5)), *([(9, 0.9)] if n % 2 else [])),
            9,
            1.0,
        )
        for n in range(10)
    ]
    weights, round_ = pictures.importance(SWEPT, trials)
    assert round_ == 3
    assert weights["train.loss"] > 0.8


def test_one_trial_alone_can_be_drawn():
    assert pictures.drawn(
        make_sweep(SWEEP), [TrialRecord(0, {"backbone.lr": 0.1}, "finished", 0.2, 9, ((9, 0.2),), 9, 1.0)], "x"
    )


def test_known_trials_are_listed():
    grid = make_sweep({**spaced(train__loss={"grid": ["bce", "bpr"]}), "search": {"name": "grid"}})
    assert report.listed(grid) == "trial 0  train.loss=bce\ntrial 1  train.loss=bpr\n"
    assert report.listed(SWEPT) == "tpe chooses as it goes\n"
