"""Axes, conditions, grids and draws: numbers by hand and laws."""

import itertools
import math

import numpy as np
import pytest

from fedray.errors import ConfigError, OutOfRangeError, UnsupportedError
from fedray.search.space import applies, check, drawn, draws, grid, read_space, settled, spell
from fedray.yamls import laid

BASE = {"data": {"source": "synthetic"}, "backbone": {"name": "fcf", "dim": 8}, "train": {"rounds": 4}}
FUSED = {**BASE, "plugins": {"gfmfr": {}}, "encoders": {"text": {"name": "hashing"}}}


def keys(space):
    return [a.key for a in space]


def test_what_others_depend_on_comes_first():
    space = read_space(
        {
            "backbone.lr": {"choice": [1, 2], "when": {"train.loss": "bpr"}},
            "plugins.gfmfr.groups": {"choice": [2, 3]},
            "train.loss": {"choice": ["bce", "bpr"]},
            "plugins": {"choice": [{}, {"gfmfr": {}}]},
        }
    )
    assert keys(space) == ["train.loss", "backbone.lr", "plugins", "plugins.gfmfr.groups"]


def test_a_circle_is_refused():
    with pytest.raises(UnsupportedError, match=r"train.loss and backbone.lr wait|backbone.lr and train.loss wait"):
        read_space(
            {
                "backbone.lr": {"choice": [1, 2], "when": {"train.loss": "bpr"}},
                "train.loss": {"choice": ["bce", "bpr"], "when": {"backbone.lr": 1}},
            }
        )


def test_a_grid_goes_through_every_point_that_there_is():
    space = read_space(
        {
            "train.loss": {"grid": ["bce", "bpr"]},
            "train.negatives": {"randint": [1, 2]},
            "backbone.lr": {"choice": [0.1, 0.2], "when": {"train.loss": "bpr"}},
        }
    )
    found = [tuple(s.values()) for s in grid(space, BASE)]
    # In the order written, the last one fastest; bce has no learning rates.
    assert found == [("bce", 1), ("bce", 2), ("bpr", 1, 0.1), ("bpr", 1, 0.2), ("bpr", 2, 0.1), ("bpr", 2, 0.2)]


def test_a_range_has_no_grid():
    with pytest.raises(UnsupportedError, match=r"backbone\.lr is a range"):
        grid(read_space({"backbone.lr": {"uniform": [0, 1]}}), BASE)


def test_settings_of_a_plugin_that_a_trial_lacks_are_left_alone():
    (axis,) = read_space({"plugins.gfmfr.weight": {"choice": [0.1, 1]}})
    assert applies(axis, FUSED)
    assert not applies(axis, BASE)
    assert not applies(axis, {**BASE, "plugins": {"gfmfr": None}})


def test_a_condition_reads_defaults_too():
    (axis,) = read_space({"train.batch_size": {"choice": [32, 64], "when": {"train.optimizer": ["sgd"]}}})
    assert applies(axis, BASE)
    assert not applies(axis, laid(BASE, {"train.optimizer": "adam"}))


def test_draws_depend_on_the_seed_and_their_place_alone():
    space = read_space({"backbone.lr": {"loguniform": [1e-3, 1]}, "train.negatives": {"randint": [1, 50]}})
    first = list(itertools.islice(draws(space, BASE, 3), 20))
    assert first == list(itertools.islice(draws(space, BASE, 3), 20))
    assert first != list(itertools.islice(draws(space, BASE, 4), 20))
    (alone,) = read_space({"train.negatives": {"randint": [1, 50]}})
    assert [s["train.negatives"] for s in first] == [drawn(alone, 3, n) for n in range(20)]


def test_each_draw_meets_each_point_of_the_grid():
    space = read_space({"train.loss": {"grid": ["bce", "bpr"]}, "backbone.lr": {"uniform": [0, 1]}})
    found = list(itertools.islice(draws(space, BASE, 0), 6))
    assert [s["train.loss"] for s in found] == ["bce", "bpr"] * 3
    assert [s["backbone.lr"] for s in found][::2] == [s["backbone.lr"] for s in found][1::2]


def test_a_finite_space_ends_and_repeats_nothing():
    space = read_space({"train.negatives": {"randint": [1, 3]}, "train.loss": {"choice": ["bce", "bpr"]}})
    found = list(draws(space, BASE, 0))
    assert len(found) == 6 == len({spell(s) for s in found})


@pytest.mark.parametrize(
    ("kind", "low", "high", "middle"), [("uniform", 2.0, 4.0, 3.0), ("loguniform", 0.01, 100.0, 1.0)]
)
def test_ranges_are_drawn_evenly(kind, low, high, middle):
    (axis,) = read_space({"backbone.lr": {kind: [low, high]}})
    found = np.array([drawn(axis, 0, n) for n in range(2000)])
    assert low <= found.min() and found.max() <= high
    assert abs(np.mean(found < middle) - 0.5) < 4 * math.sqrt(0.25 / 2000)


def test_both_ends_of_randint_are_drawn():
    (axis,) = read_space({"train.negatives": {"randint": [1, 3]}})
    assert {drawn(axis, 0, n) for n in range(60)} == {1, 2, 3}


def test_laying_leaves_the_base_alone():
    out = laid(BASE, {"plugins.dualper.item_lr_scale": 2, "backbone.lr": 0.5})
    assert out["plugins"] == {"dualper": {"item_lr_scale": 2}} and out["backbone"]["lr"] == 0.5
    assert "plugins" not in BASE and "lr" not in BASE["backbone"]


def test_every_value_is_tried_on_the_job_before_anything_starts():
    with pytest.raises(ConfigError, match=r"space\.backbone\.dim, value 0"):
        check(read_space({"backbone.dim": {"choice": [8, 0]}}), BASE)
    with pytest.raises(OutOfRangeError, match=r"space\.plugins\.gfmfr\.groups, value 0"):
        check(read_space({"plugins.gfmfr.groups": {"randint": [0, 5]}}), FUSED)


def test_an_axis_that_never_applies_is_refused():
    with pytest.raises(UnsupportedError, match=r"space\.plugins\.gfmfr\.groups never applies"):
        check(read_space({"plugins.gfmfr.groups": {"randint": [2, 5]}}), BASE)
    with pytest.raises(UnsupportedError, match="never applies"):
        check(read_space({"backbone.lr": {"choice": [1, 2], "when": {"train.loss": "hinge"}}}), BASE)


def test_an_axis_is_checked_where_it_applies():
    space = read_space({"plugins": {"choice": [{}, {"gfmfr": {}}]}, "plugins.gfmfr.groups": {"choice": [2, 3]}})
    check(space, {**FUSED, "plugins": {}})
    assert settled(space, FUSED, lambda a: a.values[1]) == {"plugins": {"gfmfr": {}}, "plugins.gfmfr.groups": 3}
    assert settled(space, FUSED, lambda a: a.values[0]) == {"plugins": {}}
