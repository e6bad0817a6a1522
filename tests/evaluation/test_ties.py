"""Equal scores under each rule: by hand, against the definition, and fair where they are random."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray import seeding
from fedray.data.protocols import PROTOCOLS
from fedray.evaluation.metrics import score_metrics, summed
from fedray.evaluation.ranking import candidate_ranks, full_ranks
from tests.evaluation.naive import clients, level, ragged
from tests.evaluation.test_ranking import f32, problems

CLEAN = PROTOCOLS["clean"]
NAN = np.nan
KEY = seeding.keys(0, "ties", 0, np.array([5]))


@pytest.mark.parametrize(
    ("row", "targets", "masked", "expected"),
    [
        ([3, 3, 3, 3, 3], [0], [], [1]),
        ([3, 3, 3, 3, 3], [4], [], [5]),
        ([3, 3, 3, 3, 3], [4], [0, 1], [3]),
        ([3, 3, 3, 3, 3], [1, 3], [], [2, 4]),  # targets stand in line with the others
        ([9, 3, 3, 3, 1], [2], [], [3]),  # behind the better one and the equal one with the lower id
        ([9, 3, 3, 3, 1], [1], [], [2]),
        ([5, 4, 3, 2, 1], [2], [0], [2]),  # no ties, no difference
        ([NAN, 4, NAN, 2, 1], [3], [], [2]),
        ([1, NAN, 3, NAN, -np.inf], [1], [], [4]),  # NaN behind everything, in line among themselves
        ([1, NAN, 3, NAN, -np.inf], [3], [], [5]),
        ([0.0, -0.0, 0.0], [1], [], [2]),
    ],
)
def test_index_ties_by_hand(row, targets, masked, expected):
    assert full_ranks(f32(row), ragged(targets), ragged(masked), "index").tolist() == expected


def test_each_rule_among_candidates_by_hand():
    scores, targets, others = f32([2, 2, 2, 2, 1]), ragged([1]), ragged([0, 2, 3, 4])
    assert candidate_ranks(scores, targets, others).tolist() == [4]
    assert candidate_ranks(scores, targets, others, "index").tolist() == [2]
    place = [int(seeding.draw(KEY[0], np.uint64(i))) for i in range(4)]
    assert candidate_ranks(scores, targets, others, "random", KEY).tolist() == [1 + sorted(place).index(place[1])]


def naive_ranks(scores, targets, masked, place):
    """1 + the unmasked others that score more, or the same and have a lower place(client, item)."""
    out = []
    for c, row in enumerate(scores):
        hidden = set(masked.row(c).tolist())
        for t in targets.row(c):
            mine = (level(row[t]), -place(c, t))
            others = [i for i in range(len(row)) if i != t and i not in hidden]
            out.append(1 + sum((level(row[i]), -place(c, i)) > mine for i in others))
    return out


@settings(max_examples=100, deadline=None)
@given(problems())
def test_kernels_equal_the_definition(problem):
    scores, targets, others = problem
    keys = seeding.keys(3, "ties", 0, np.arange(len(scores)))
    everything = np.arange(scores.shape[1])
    for ties, place in (("index", lambda c, i: i), ("random", lambda c, i: int(seeding.draw(keys[c], np.uint64(i))))):
        assert full_ranks(*problem, ties, keys).tolist() == naive_ranks(*problem, place)
        found = candidate_ranks(*problem, ties, keys).tolist()
        for c in range(len(scores)):  # among candidates: all that is neither target nor candidate is masked
            for t, rank in zip(targets.row(c), found[targets.ptr[c] : targets.ptr[c + 1]]):
                rest = np.setdiff1d(everything, [t, *others.row(c)])
                one = scores[[c]], ragged([t]), ragged(rest)
                assert naive_ranks(*one, lambda _, i, c=c, place=place: place(c, i)) == [rank]


@settings(max_examples=50, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_a_client_depends_on_itself_only(problem, random):
    scores, targets, masked = problem
    keys = seeding.keys(0, "ties", 0, np.arange(len(scores)))
    order = np.array(random.sample(range(len(scores)), random.randint(1, len(scores))))
    whole = full_ranks(*problem, "random", keys)
    part = full_ranks(scores[order], targets.take(order), masked.take(order), "random", keys[order])
    assert part.tolist() == [r for c in order for r in whole[targets.ptr[c] : targets.ptr[c + 1]]]


def test_random_ties_are_fair_and_differ_between_clients():
    """4000 clients with equal scores: each rank of 10 as often as another, whatever the item."""
    n = 4000
    keys = seeding.keys(0, "ties", 0, np.arange(n))
    for item in (0, 9):
        nothing = ragged(*[[]] * n)
        ranks = full_ranks(np.zeros((n, 10), np.float32), ragged(*[[item]] * n), nothing, "random", keys)
        counts = np.bincount(ranks, minlength=11)[1:]
        assert ((counts - 400) ** 2 / 400).sum() < 9 + 5 * np.sqrt(18)


def test_random_ties_without_keys_are_refused():
    with pytest.raises(ValueError, match="key"):
        full_ranks(f32([1, 1]), ragged([0]), ragged([]), "random")


def test_without_ties_the_rules_agree():
    rng = np.random.default_rng(2)
    scores = rng.permutation(50 * 8).reshape(8, 50).astype(np.float32)
    data = clients([[c] for c in range(8)], [[c + 10] for c in range(8)], [[c + 20] for c in range(8)], 50)
    others = ragged(*[[30, 31, 45]] * 8)
    found = [
        summed(score_metrics(scores, data, "test", replace(CLEAN, ties=ties), others, (1, 5, 10)))
        for ties in ("pessimistic", "index", "random")
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("ties", ["index", "random"])
def test_constant_scores_earn_what_the_rule_gives_away(ties):
    """40 items, item 3 held out of 400 clients: second by id behind item 2, anywhere at random."""
    n, rules = 400, replace(CLEAN, ties=ties, rankings=("full",))
    data = clients([[0]] * n, [[1]] * n, [[3]] * n, 40)
    hr = summed(score_metrics(np.zeros((n, 40), np.float32), data, "test", rules, None, (1, 2, 10))).means()
    if ties == "index":
        assert (hr["hr_at_1"], hr["hr_at_2"]) == (0.0, 1.0)
    else:
        assert hr["hr_at_10"] == pytest.approx(10 / 38, abs=4 * np.sqrt(0.26 * 0.74 / n))
