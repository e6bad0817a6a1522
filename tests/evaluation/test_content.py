"""Content controls: by hand, against plain loops, and where features are missing."""

import math

import numpy as np
import pytest

from fedray.evaluation.content import MISSING, content_scorer, content_scorers, directions
from fedray.types import ItemFeatures
from tests.evaluation.naive import ragged

HALF = math.sqrt(0.5)


def features(**tables):
    """Every item has every feature, but those whose row is None."""
    present = {name: np.array([row is not None for row in rows]) for name, rows in tables.items()}
    width = {name: max(len(row) for row in [[0], *filter(None, rows)]) for name, rows in tables.items()}
    filled = {n: np.array([row or [0] * width[n] for row in rows], np.float32) for n, rows in tables.items()}
    return ItemFeatures(filled, present, "f")


def scores(table, present, train, rows=None):
    rows = np.arange(len(train.ptr) - 1) if rows is None else np.asarray(rows)
    return content_scorer(table, present, train)(rows)


def naive(table, present, train):
    """The same, an item and a client at a time, in doubles."""
    there = [i for i in range(len(table)) if present[i]]
    mean = [sum(float(table[i][j]) for i in there) / len(there) for j in range(table.shape[1])]
    away = {i: [float(x) - m for x, m in zip(table[i], mean)] for i in there}
    unit = {i: [x / math.hypot(*v) for x in v] for i, v in away.items()}
    out = np.full((len(train.ptr) - 1, len(table)), -2.0)
    for c in range(len(out)):
        mine = [j for j in train.row(c) if present[j]]
        for i in there:
            cosines = [sum(a * b for a, b in zip(unit[i], unit[j])) for j in mine]
            out[c, i] = sum(cosines) / len(mine) if mine else 0.0
    return out


def test_three_items_by_hand():
    """Their mean is (1, 1): the directions from it are down left, down right and up."""
    found = features(text=[[0, 0], [2, 0], [1, 3]])
    expected = np.array([[-HALF, -HALF], [HALF, -HALF], [0, 1]])
    np.testing.assert_allclose(directions(found.tables["text"], found.present["text"]), expected, atol=1e-6)
    by_hand = [[1, 0, -HALF], [(1 - HALF) / 2, -HALF / 2, (1 - HALF) / 2], [0, 0, 0]]
    made = content_scorers(found, ragged([0], [0, 2], []))
    assert list(made) == ["content_text"]
    np.testing.assert_allclose(made["content_text"](np.arange(3)), by_hand, atol=1e-6)


def test_the_common_part_and_the_scale_of_the_vectors_do_not_matter():
    found = features(a=[[0, 0], [2, 0], [1, 3]], b=[[10, 100], [30, 100], [20, 130]])
    a, b = (scorer(np.arange(2)) for scorer in content_scorers(found, ragged([0], [1, 2])).values())
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_against_plain_loops(share):
    rng = np.random.Generator(np.random.Philox(3))
    table = (rng.normal(size=(40, 6)) + 5 * rng.normal(size=6)).astype(np.float32)
    present = rng.random(40) < share
    train = ragged(*[np.sort(rng.choice(40, int(n), replace=False)) for n in rng.integers(0, 9, size=25)])
    found = scores(table, present, train)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive(table, present, train), atol=1e-5)
    order = np.array([7, 0, 24])
    np.testing.assert_allclose(scores(table, present, train, order), found[order], atol=1e-6)


def test_missing_items_come_last_and_play_no_part():
    """Item 1 is missing; what stands in its row changes nothing. The client with that item alone likes nothing."""
    table = np.array([[0, 0], [9, 9], [2, 0], [1, 3]], np.float32)
    present = np.array([True, False, True, True])
    train = ragged([0, 1], [0], [1])
    found = scores(table, present, train)
    assert np.all(found[:, 1] == MISSING) and np.all(found[:, present] >= -1)
    assert np.array_equal(found[0], found[1]) and np.all(found[2, present] == 0)
    table[1] = -7
    assert np.array_equal(scores(table, present, train), found)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 3e38])
def test_items_that_are_all_the_same_score_the_same(value):
    """Not what rounding left of their differences, blown up to unit length."""
    table = np.full((7, 3), value, np.float32)
    assert np.all(scores(table, np.ones(7, bool), ragged([0, 3])) == 0)
    assert np.all(scores(table[:1], np.ones(1, bool), ragged([0])) == 0)


def test_large_and_small_numbers_stay_finite():
    table = np.array([[3e38, -3e38], [-3e38, 3e38], [3e38, 3e38]], np.float32)
    for scale in (1, 1e-60):
        found = scores((table * np.float64(scale)).astype(np.float32), np.ones(3, bool), ragged([0], [1, 2]))
        assert np.isfinite(found).all() and np.abs(found).max() == pytest.approx(1)


def test_a_feature_that_no_item_has_and_a_dataset_without_features_give_no_control():
    assert content_scorers(None, ragged([0])) == {}
    found = features(text=[[1], [2]], image=[None, None])
    assert list(content_scorers(found, ragged([0]))) == ["content_text"]
