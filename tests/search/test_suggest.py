"""What is tried next: laws of the search, and that it does not depend on who asks or when."""

from dataclasses import replace

import pytest

from fedray.search.records import TrialRecord
from fedray.search.space import spell
from fedray.search.suggest import suggested
from fedray.search.sweep import make_sweep
from tests.search.test_sweep import SWEEP, spaced


def tpe(**settings):
    return make_sweep({**SWEEP, "budget": {"trials": 40}, "search": {"name": "tpe", "startup": 5, **settings}})


def peak(settings):
    """Best at backbone.lr = 0.1."""
    return 1.0 / (1.0 + 100 * (settings["backbone.lr"] - 0.1) ** 2)


def finished(number, settings, value):
    return TrialRecord(number, settings, "finished", value, 9, ((3, value / 2), (9, value)), 9, 1.0)


def searched(sweep, trials):
    known = []
    for n in range(trials):
        settings = suggested(sweep, sweep.sequence(), n, known)
        known.append(finished(n, settings, peak(settings)))
    return known


def test_tpe_comes_near_the_peak_and_repeats_itself():
    known = searched(tpe(), 25)
    assert known == searched(tpe(), 25)
    assert known != searched(tpe(seed=1), 25)
    early, late = known[:5], known[15:]
    assert sum(r.value for r in late) / 10 > sum(r.value for r in early) / 5


def test_the_order_in_which_answers_came_does_not_matter():
    known = searched(tpe(), 12)
    asked = suggested(tpe(), [], 12, known)
    assert asked == suggested(tpe(), [], 12, list(reversed(known)))


def test_broken_off_and_failed_trials_and_running_ones_are_known():
    known = searched(tpe(), 8)
    known[6] = replace(known[6], state="pruned", points=((3, 0.01),), value=0.01)
    known[7] = replace(known[7], state="failed", value=None, points=())
    running = TrialRecord(8, {"backbone.lr": 0.1})
    found = suggested(tpe(), [], 9, [*known, running])
    assert 0.01 <= found["backbone.lr"] <= 1.0
    assert found != suggested(tpe(), [], 9, searched(tpe(), 8))


def test_tpe_keeps_away_from_where_trials_fail():
    def failing(settings):
        return settings["backbone.lr"] > 0.1

    known = []
    for n in range(30):
        settings = suggested(tpe(), [], n, known)
        done = finished(n, settings, 0.2)
        known.append(replace(done, state="failed", value=None, points=()) if failing(settings) else done)
    # A random draw of the range fails half the time.
    assert sum(failing(r.settings) for r in known[10:]) <= 6


def test_tpe_does_not_repeat_itself_in_a_small_space():
    raw = spaced(train__negatives={"choice": [1, 2, 3]}, train__loss={"choice": ["bce", "bpr"]})
    sweep = make_sweep({**raw, "budget": {"trials": 6}})
    known = []
    for n in range(6):
        settings = suggested(sweep, [], n, known)
        known.append(finished(n, settings, 0.1 * n))
    assert len({spell(r.settings) for r in known}) >= 5


def test_conditions_hold_under_tpe():
    raw = spaced(
        train__loss={"choice": ["bce", "bpr"]},
        backbone__lr={"loguniform": [0.01, 1], "when": {"train.loss": "bpr"}},
    )
    sweep = make_sweep({**raw, "budget": {"trials": 20}})
    known = []
    for n in range(15):
        settings = suggested(sweep, [], n, known)
        assert ("backbone.lr" in settings) == (settings["train.loss"] == "bpr")
        known.append(finished(n, settings, 0.01 * n))
    assert {r.settings["train.loss"] for r in known} == {"bce", "bpr"}


def test_whole_sections_may_be_chosen():
    sections = [{}, {"dualper": {"item_lr_scale": 2}}]
    sweep = make_sweep(spaced(plugins={"choice": sections}))
    known = searched_any(sweep, 3)
    assert all(r.settings["plugins"] in sections for r in known)


def searched_any(sweep, trials):
    known = []
    for n in range(trials):
        settings = suggested(sweep, [], n, known)
        known.append(finished(n, settings, 0.1))
    return known


@pytest.mark.parametrize("name", ["random", "grid"])
def test_lists_end(name):
    raw = spaced(train__negatives={"choice": [1, 2, 3, 4]})
    sweep = make_sweep({**raw, "search": {"name": name}})
    sequence = sweep.sequence()
    assert [suggested(sweep, sequence, n, []) for n in range(5)] == [*sequence, None]
    assert len(sequence) == 4


def test_a_random_search_by_the_hour_has_no_end_of_its_own():
    sweep = make_sweep({**SWEEP, "search": {"name": "random"}, "budget": {"hours": 1}})
    bounded = make_sweep({**SWEEP, "search": {"name": "random"}, "budget": {"trials": 30}})
    assert suggested(sweep, sweep.sequence(), 29, []) == bounded.sequence()[29]
