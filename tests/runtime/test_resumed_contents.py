"""A run goes on with the data and the items' features that it began with, or not at all."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from fedray.config import make_config
from fedray.errors import ResumeError
from fedray.job import prepare, train
from fedray.runtime.checkpoint import Go
from tests.helpers import tiny_features


def test_with_other_features_a_run_does_not_go_on(tmp_path):
    config = make_config(
        {
            "data": {"source": "synthetic", "users": 12, "items": 30},
            "backbone": {"name": "fcf", "dim": 4},
            "train": {"rounds": 4},
            "runtime": {"executor": "serial", "checkpoint": {"path": str(tmp_path), "every": 2}},
            "tracking": {"backend": "none"},
        }
    )
    job, console = prepare(config), Console(file=StringIO())
    one, other = (
        replace(job, dataset=replace(job.dataset, features=tiny_features(30, seed=s, image=9))) for s in (1, 2)
    )
    train(config, console, job=one, go=Go("night"))
    again = train(config, console, job=one, go=Go("night", resume=True))
    assert again.outcome.best_round <= 4
    with pytest.raises(ResumeError, match="other data, or other features of its items"):
        train(config, console, job=other, go=Go("night", resume=True))
    with pytest.raises(ResumeError, match="other features"):
        train(config, console, job=job, go=Go("night", resume=True))
