import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.evaluation.ranking import candidate_ranks, full_ranks, joined, score_spread
from tests.evaluation import naive
from tests.evaluation.naive import ragged

NAN = np.nan


def f32(*rows):
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize(
    ("row", "targets", "masked", "expected"),
    [
        ([5, 4, 3, 2, 1], [2], [], [3]),
        ([5, 4, 3, 2, 1], [2], [0], [2]),  # a better item is masked
        ([5, 4, 3, 2, 1], [2], [0, 1, 4], [1]),  # a masked item behind changes nothing
        ([3, 3, 3, 3, 3], [0], [], [5]),  # ties are pessimistic, wherever the target stands
        ([3, 3, 3, 3, 3], [4], [], [5]),
        ([3, 3, 3, 3, 3], [4], [0, 1], [3]),
        ([5, 4, 3, 2, 1], [0, 1], [], [1, 2]),  # several targets rank against each other
        ([5, 4, 3, 2, 1], [1, 3], [0], [1, 3]),
        ([2, 9, 2, 1, 1], [0, 2], [], [2, 3]),  # equal targets: the list decides
        ([2, 2, 2, 2, 2], [1, 3], [], [4, 5]),
        ([NAN, 4, NAN, 2, 1], [3], [], [2]),  # other NaN are behind a number
        ([1, NAN, 3, NAN, -np.inf], [1], [], [5]),  # a NaN target is behind everything
        ([1, NAN, 3, NAN, -np.inf], [1], [0, 3], [3]),
        ([1, NAN, 3, NAN, 0], [1, 3], [], [4, 5]),
        ([np.inf, 1, -np.inf, 0, 0], [2], [], [5]),
        ([5, 4, 3, 2, 1], [], [0], []),
    ],
)
def test_full_ranks_by_hand(row, targets, masked, expected):
    assert full_ranks(f32(row), ragged(targets), ragged(masked)).tolist() == expected


def test_candidate_ranks_by_hand():
    scores = f32([5, 4, 3, 3, 1], [0, 0, 0, 0, 0], [1, NAN, 2, NAN, 3])
    ranks = candidate_ranks(scores, ragged([2], [1], [1, 0]), ragged([0, 3, 4], [3], [2, 3]))
    assert ranks.tolist() == [3, 2, 3, 2]


def test_no_candidates_is_rank_one():
    assert candidate_ranks(f32([1, 2]), ragged([0]), ragged([])).tolist() == [1]


def test_spread_by_hand():
    scores = f32([1, 1, 1, 1, 1], [0, 2, 0, 2, 1], [NAN, 1, 3, np.inf, -np.inf], [NAN] * 5)
    assert score_spread(scores) == pytest.approx([0, np.sqrt(0.8), 1, NAN], nan_ok=True)


def test_spread_of_equal_scores_is_exactly_zero():
    assert score_spread(np.full((1, 3707), 0.1, np.float32))[0] == 0.0


def test_joined_by_hand():
    both = joined(ragged([1, 5], [], [2]), ragged([0, 3, 9], [], []))
    assert [both.row(i).tolist() for i in range(3)] == [[0, 1, 3, 5, 9], [], [2]]


# Few distinct values, so that ties are the rule.
VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, 0.5, NAN, np.inf, -np.inf])


@st.composite
def problems(draw):
    n_clients, n_items = draw(st.integers(1, 5)), draw(st.integers(1, 20))
    cell = st.lists(VALUES, min_size=n_items, max_size=n_items)
    scores = np.array(draw(st.lists(cell, min_size=n_clients, max_size=n_clients)), dtype=np.float32)
    role = st.lists(st.sampled_from("tm..."), min_size=n_items, max_size=n_items)
    roles = [draw(role) for _ in range(n_clients)]
    targets = ragged(*[[i for i, r in enumerate(row) if r == "t"] for row in roles])
    masked = ragged(*[[i for i, r in enumerate(row) if r == "m"] for row in roles])
    return scores, targets, masked


@settings(max_examples=150, deadline=None)
@given(problems())
def test_kernels_equal_the_definition(problem):
    scores, targets, others = problem
    assert full_ranks(scores, targets, others).tolist() == naive.full_ranks(*problem).tolist()
    assert candidate_ranks(scores, targets, others).tolist() == naive.candidate_ranks(*problem).tolist()
    finite = [row[np.isfinite(row)].astype(np.float64) for row in scores]
    spread = [row.std() if len(row) else NAN for row in finite]
    assert score_spread(scores) == pytest.approx(spread, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_a_client_depends_on_itself_only(problem, random):
    """Neither its slot in the block nor the other clients matter, to the bit."""
    scores, targets, masked = problem
    order = np.array(random.sample(range(len(scores)), random.randint(1, len(scores))))
    part = scores[order], targets.take(order), masked.take(order)
    whole = full_ranks(*problem)
    expected = [r for c in order for r in whole[targets.ptr[c] : targets.ptr[c + 1]]]
    assert full_ranks(*part).tolist() == expected
    assert score_spread(part[0]).tobytes() == score_spread(scores)[order].tobytes()


def test_other_layouts_of_scores_give_the_same():
    rng = np.random.Generator(np.random.Philox(7))
    scores = rng.normal(size=(6, 31)).astype(np.float32)
    targets, masked = ragged(*[[i] for i in range(6)]), ragged(*[[i + 9, i + 12] for i in range(6)])
    expected = full_ranks(scores, targets, masked)
    readonly = np.asfortranarray(scores)
    readonly.flags.writeable = False
    assert np.array_equal(full_ranks(readonly, targets, masked), expected)
    assert np.array_equal(full_ranks(np.repeat(scores, 2, axis=1)[:, ::2], targets, masked), expected)
