"""Schedulers that begin anew know the trials that are over."""

import pytest
from ray.tune.schedulers import TrialScheduler

from fedray.search.records import TrialRecord
from fedray.search.sweep import make_sweep
from fedray.search.trial import ROUND, VALUE
from fedray.search.tune import scheduler
from tests.search.test_sweep import SWEEP


class New:
    trial_id = "new"


def past(number, *values):
    points = tuple(enumerate(values, start=1))
    return TrialRecord(number, {"backbone.lr": 0.1}, "finished", max(values), 1, points, len(values), 1.0)


def decided(name, records, round_, value):
    found = scheduler(make_sweep(SWEEP, [f"scheduler={{name: {name}, grace: 2}}"]), records)
    trial = New()
    found.on_trial_add(None, trial)
    return found.on_trial_result(None, trial, {ROUND: round_, VALUE: value, "training_iteration": round_})


GOOD = [past(n, 0.1, 0.3 + 0.01 * n, 0.4) for n in range(4)]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_poor_trial_is_broken_off_by_what_earlier_ones_reached(name):
    assert decided(name, GOOD, 2, 0.01) == TrialScheduler.STOP
    assert decided(name, GOOD, 2, 0.9) == TrialScheduler.CONTINUE
    assert decided(name, [], 2, 0.01) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("name", ["asha", "median", "none"])
def test_within_its_grace_no_trial_is(name):
    assert decided(name, GOOD, 1, 0.0) == TrialScheduler.CONTINUE


def test_without_a_scheduler_no_trial_is():
    assert decided("none", GOOD, 3, 0.0) == TrialScheduler.CONTINUE
