"""Population based training as a function of what is known: who goes on from whom, and with what."""

import numpy as np
import pytest

from fedray.search.population import explored, member, parent_of, step, until
from fedray.search.records import Records, TrialRecord
from fedray.search.space import Axis, current
from fedray.search.sweep import make_sweep
from fedray.storage import Storage

RAW = {
    "name": "people",
    "base": {"backbone": {"name": "fcf"}, "train": {"rounds": 25}},
    "space": {
        "backbone.lr": {"loguniform": [0.01, 1.0]},
        "train.negatives": {"randint": [1, 8]},
        "train.batch_size": {"choice": [16, 32, 64]},
        "backbone.dim": {"choice": [4, 8]},
    },
    "search": {"name": "random"},
    "scheduler": {"name": "pbt", "population": 8, "interval": 10},
}
SWEEP = make_sweep(RAW)
FIRST = SWEEP.sequence()


def generation(n, lasts, settings=FIRST):
    return [TrialRecord(8 * n + i, dict(settings[i]), "finished", v, last=v) for i, v in enumerate(lasts)]


LASTS = [0.3, 0.8, 0.1, 0.5, 0.9, 0.2, 0.6, 0.7]


def test_generations_end_where_they_should():
    assert [until(SWEEP, n) for n in (0, 7, 8, 16, 23)] == [10, 10, 20, 25, 25]
    assert member(SWEEP, FIRST, 24, generation(2, LASTS)) is None
    assert until(make_sweep({**RAW, "scheduler": {"name": "none"}, "budget": {"trials": 3}}), 2) == 25


def test_the_first_generation_is_drawn_and_no_two_are_alike():
    first = [member(SWEEP, FIRST, n, []) for n in range(8)]
    assert [m.settings for m in first] == FIRST and len({str(s) for s in FIRST}) == 8
    assert {(m.parent, m.begun) for m in first} == {(None, 0)}


def test_the_worst_quarter_goes_on_from_the_best_quarter_and_nobody_else_moves():
    before = generation(0, LASTS)
    found = [parent_of(SWEEP, before, place) for place in range(8)]
    assert [moves for _, moves in found] == [False, False, True, False, False, True, False, False]
    assert {found[place][0].number for place in (2, 5)} <= {4, 1}
    assert all(found[place][0].number == place for place in (0, 1, 3, 4, 6, 7))
    made = [member(SWEEP, FIRST, 8 + place, before) for place in range(8)]
    assert [m.begun for m in made] == [10] * 8
    assert made[4].settings == FIRST[4] and made[4].parent == 4
    assert list(made[2].settings["changes"]) == [10]
    assert made[2].settings["backbone.dim"] == FIRST[made[2].parent]["backbone.dim"]  # what may not change is handed on
    assert "backbone.dim" not in made[2].settings["changes"][10]


def test_failures_are_the_worst_and_each_of_the_best_has_its_turn():
    lasts = [None, 0.5, 0.5, 0.5, 0.5, 0.9, 0.5, 0.8]
    before = [TrialRecord(r.number, r.settings, "failed" if r.last is None else "finished", r.last, last=r.last)
              for r in generation(0, lasts)]  # fmt: skip
    assert parent_of(SWEEP, before, 0)[0].number in (5, 7)
    chosen = {
        parent_of(make_sweep({**RAW, "search": {"name": "random", "seed": s}}), before, 0)[0].number for s in range(20)
    }
    assert chosen == {5, 7}


def test_who_failed_late_is_no_parent_and_all_failed_is_the_end():
    before = generation(0, LASTS)
    before[4] = TrialRecord(4, before[4].settings, "failed", 0.9, last=0.9, error="it diverged")
    found = [parent_of(SWEEP, before, place) for place in range(8)]
    assert found[4][1] and 4 not in {parent.number for parent, _ in found}
    gone = [TrialRecord(r.number, r.settings, "failed", r.value, last=r.last) for r in before]
    assert parent_of(SWEEP, gone, 0) == (None, False) and member(SWEEP, FIRST, 8, gone) is None
    one = [*gone[:7], generation(0, LASTS)[7]]
    assert all(parent_of(SWEEP, one, place)[0] == one[7] for place in range(8))


def test_a_generation_stands_on_the_one_before_alone():
    second = generation(1, LASTS[::-1])
    both = member(SWEEP, FIRST, 16, [*generation(0, LASTS), *second])
    assert both == member(SWEEP, FIRST, 16, second)
    assert both.begun == 20


def test_changes_add_up_and_survive_the_disk(tmp_path):
    settings = {**FIRST[0], "changes": {10: {"backbone.lr": 0.5}}}
    before = generation(1, LASTS, [settings] * 8)
    found = member(SWEEP, FIRST, 18, before).settings
    assert list(found["changes"]) == [10, 20] and current(found) != current(settings)
    job = SWEEP.trial(found)
    assert job.at(9).backbone.lr == FIRST[0]["backbone.lr"] and job.at(10).backbone.lr == 0.5
    assert job.at(20).backbone.lr == found["changes"][20]["backbone.lr"]
    records = Records(Storage(str(tmp_path)), "r", "f")
    records.open(False)
    records.put(TrialRecord(18, found, last=0.5, parent=10, begun=20))
    assert records.open(True) == [TrialRecord(18, found, last=0.5, parent=10, begun=20)]


@pytest.mark.parametrize(
    ("axis", "value", "up", "down"),
    [
        (Axis("backbone.lr", "loguniform", (0.01, 1.0)), 0.5, 0.6, 0.5 / 1.2),
        (Axis("backbone.lr", "uniform", (0.1, 0.55)), 0.5, 0.55, 0.5 / 1.2),
        (Axis("train.negatives", "randint", (1, 8)), 1, 2, 1),
        (Axis("train.negatives", "randint", (1, 80)), 40, 48, 33),
        (Axis("train.batch_size", "choice", (16, 32, 64)), 32, 64, 16),
        (Axis("train.batch_size", "choice", (16, 32, 64)), 64, 64, 32),
    ],
)
def test_steps_by_hand(axis, value, up, down):
    assert step(axis, value, True) == pytest.approx(up) and step(axis, value, False) == pytest.approx(down)


def test_moves_stay_in_range_reach_both_ways_and_come_again():
    moved = [explored(SWEEP, FIRST[0], 1, place) for place in range(400)]
    assert moved == [explored(SWEEP, FIRST[0], 1, place) for place in range(400)]
    rates = np.array([m["backbone.lr"] for m in moved])
    assert ((rates >= 0.01) & (rates <= 1.0)).all()
    up, down = FIRST[0]["backbone.lr"] * 1.2, max(0.01, FIRST[0]["backbone.lr"] / 1.2)
    steps = np.isclose(rates, up) | np.isclose(rates, down)
    assert 0.65 < steps.mean() < 0.85  # a quarter is drawn anew
    assert {m["train.batch_size"] for m in moved} == {16, 32, 64}
    assert {m["train.negatives"] for m in moved} == set(range(1, 9))
    assert set(moved[0]) == {"backbone.lr", "train.negatives", "train.batch_size"}
