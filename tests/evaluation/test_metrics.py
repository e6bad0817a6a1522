import math
import pickle
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.data.protocols import PROTOCOLS
from fedray.errors import AggregateOverflowError
from fedray.evaluation.metrics import MetricSums, client_metrics, evaluate_scores
from tests.evaluation import naive
from tests.evaluation.naive import clients, ragged

CLEAN, PFEDREC = PROTOCOLS["clean"], PROTOCOLS["paper/pfedrec"]
ONE = np.ones(1, np.int64)


def one_client(ranks, k):
    values, weight = client_metrics(np.array(ranks, np.int64), np.array([0, len(ranks)]), [k])
    assert weight.tolist() == [int(len(ranks) > 0)]
    return [values[f"{kind}_at_{k}"][0] for kind in ("hr", "recall", "ndcg", "mrr")]


@pytest.mark.parametrize(
    ("ranks", "k", "expected"),
    [
        ([1], 10, [1, 1, 1, 1]),
        ([2], 10, [1, 1, 1 / math.log2(3), 1 / 2]),
        ([10], 10, [1, 1, 1 / math.log2(11), 1 / 10]),
        ([11], 10, [0, 0, 0, 0]),
        ([3, 1], 5, [1, 1, (1 + 1 / 2) / (1 + 1 / math.log2(3)), 1]),
        ([3, 9], 5, [1, 1 / 2, (1 / 2) / (1 + 1 / math.log2(3)), 1 / 3]),
        ([2, 9], 1, [0, 0, 0, 0]),
        ([1, 2, 3], 2, [1, 2 / 3, 1, 1]),  # the ideal holds min(K, n) targets
        ([3, 1, 2], 3, [1, 1, 1, 1]),
        ([], 10, [0, 0, 0, 0]),
    ],
)
def test_metrics_by_hand(ranks, k, expected):
    assert one_client(ranks, k) == pytest.approx(expected, abs=1e-15)


def test_a_perfect_ranking_is_exactly_one():
    for n in range(1, 60):
        assert one_client(list(range(n, 0, -1)), 50)[2] == 1.0


def test_a_shared_rank_cannot_exceed_one():
    assert one_client([1, 1], 10)[2] == 1.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 30), max_size=6), min_size=1, max_size=8), st.integers(1, 25))
def test_metrics_equal_the_definition(rows, k):
    flat = ragged(*rows)
    values, weight = client_metrics(flat.values, flat.ptr, [k])
    for c, ranks in enumerate(rows):
        mine = [values[f"{kind}_at_{k}"][c] for kind in ("hr", "recall", "ndcg", "mrr")]
        assert weight[c] == (len(ranks) > 0)
        assert mine == pytest.approx(naive.metrics(ranks, k) if ranks else (0, 0, 0, 0), abs=1e-12)


def test_means_and_standard_errors_by_hand():
    x = np.array([0.0, 1.0, 1.0, 0.5, 99.0, np.nan])
    sums = MetricSums.of({"m": x}, np.array([1, 1, 1, 1, 0, 0]))
    assert sums.means() == {"m": 0.625}
    assert sums.weights() == {"m": 4}
    assert sums.standard_errors()["m"] == pytest.approx(np.std(x[:4], ddof=1) / 2, rel=1e-8)


def test_equal_values_have_no_error():
    sums = MetricSums.of({"m": np.full(1000, 0.5)}, np.ones(1000, np.int64))
    assert sums.standard_errors() == {"m": 0.0}


def test_nobody_counted():
    none = MetricSums.of({"m": np.zeros(3)}, np.zeros(3, np.int64), ["m"])
    assert math.isnan(none.means()["m"])
    assert math.isnan(none.standard_errors()["m"])
    assert math.isnan(none.quantiles("m", [0.5])[0.5])
    assert math.isnan(MetricSums.of({"m": np.zeros(1)}, ONE).standard_errors()["m"])
    assert MetricSums.zero().means() == {}


def test_quantiles_by_hand():
    x = np.arange(1, 11) / 10
    sums = MetricSums.of({"m": x, "n": x}, np.ones(10, np.int64), ["m"])
    expected = {0.0: 0.1, 0.1: 0.1, 0.25: 0.3, 0.5: 0.5, 0.51: 0.6, 1.0: 1.0}
    assert sums.quantiles("m", list(expected)) == expected
    with pytest.raises(KeyError):
        sums.quantiles("n", [0.5])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e10])
def test_a_value_off_the_grid_is_named(bad):
    with pytest.raises(AggregateOverflowError):
        MetricSums.of({"m": np.array([bad])}, ONE)


def test_the_largest_sums_do_not_overflow():
    big = MetricSums.of({"m": np.full(1000, 16384.0)}, np.ones(1000, np.int64))
    assert reduce(MetricSums.merge, [big] * 1000).means() == {"m": 16384.0}


SUMS = st.builds(
    lambda xs, other: MetricSums.of(
        {"m": np.array(xs), **({"n": np.array(xs) ** 2} if other else {})},
        np.array([i % 3 > 0 for i in range(len(xs))], np.int64),
        ["m"],
    ),
    st.lists(st.floats(0, 1), max_size=6),
    st.booleans(),
)


@given(SUMS, SUMS, SUMS)
def test_merge_is_a_commutative_monoid(a, b, c):
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(MetricSums.zero()) == a == MetricSums.zero().merge(a)


def problem(n_clients=23, n_items=40):
    """Random scores and disjoint train, valid, test, candidates; some clients lack a target."""
    rng = np.random.Generator(np.random.Philox(3))
    perms = [rng.permutation(n_items) for _ in range(n_clients)]
    data = clients(
        [sorted(p[:5]) for p in perms],
        [sorted(p[5 : 5 + c % 3]) for c, p in enumerate(perms)],
        [sorted(p[10 : 10 + c % 4]) for c, p in enumerate(perms)],
        n_items,
    )
    candidates = ragged(*[sorted(p[20:]) for p in perms])
    return rng.normal(size=(n_clients, n_items)).astype(np.float32), data, candidates


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(23)), st.lists(st.integers(0, 23), max_size=5))
def test_any_packing_of_clients_gives_equal_sums(order, cuts):
    scores, data, candidates = problem()
    whole = evaluate_scores(scores, data, "test", CLEAN, candidates, (1, 5, 10))
    parts = [np.array(p, np.int64) for p in np.split(np.array(order), sorted(cuts))]
    sums = [evaluate_scores(scores[p], data.take(p), "test", CLEAN, candidates.take(p), (1, 5, 10)) for p in parts]
    assert reduce(MetricSums.merge, sums, MetricSums.zero()) == whole


def test_evaluation_by_hand():
    """Two clients, five items; what each split masks decides the ranks."""
    data = clients([[0], [4]], [[1], [0]], [[2], [1]], 5)
    scores = np.array([[9, 8, 7, 6, 5], [1, 2, 2, 0, 9]], np.float32)
    candidates = ragged([3, 4], [3])
    valid = evaluate_scores(scores, data, "valid", CLEAN, candidates, (1, 2)).means()
    test = evaluate_scores(scores, data, "test", CLEAN, candidates, (1, 2)).means()
    # Validation ranks 1 and 3 (training items masked); test ranks 1 and 2 (both known items masked).
    assert (valid["hr_at_1"], valid["hr_at_2"], valid["mrr_at_2"]) == (0.5, 0.5, 0.5)
    assert (test["hr_at_1"], test["hr_at_2"], test["mrr_at_2"]) == (0.5, 1.0, 0.75)
    assert test["ndcg_at_2"] == pytest.approx((1 + 1 / math.log2(3)) / 2, abs=1e-9)
    assert (valid["sampled99_hr_at_1"], test["sampled99_hr_at_1"]) == (1.0, 1.0)
    assert test["score_std"] == pytest.approx((np.std(scores[0]) + np.std(scores[1])) / 2, rel=1e-6)


def test_the_own_ranking_has_the_plain_names():
    scores, data, candidates = problem()
    sums = evaluate_scores(scores, data, "test", PFEDREC, candidates, (10, 50, 100))
    assert "hr_at_10" in sums.means() and "hr_at_50" in sums.means()
    assert not [name for name in sums.means() if "sampled" in name or name.endswith("_100")]
    clean = evaluate_scores(scores, data, "test", CLEAN, candidates, (10, 100)).means()
    assert "hr_at_100" in clean and "sampled99_hr_at_100" not in clean
    assert clean["sampled99_hr_at_10"] == sums.means()["hr_at_10"]


def test_constant_scores_earn_nothing():
    _, data, candidates = problem(n_items=60)
    scores = np.full((23, 60), 0.3, np.float32)
    means = evaluate_scores(scores, data, "test", CLEAN, candidates, (5, 10)).means()
    assert set(means.values()) == {0.0}


def test_nan_scores_count_as_last_and_have_no_spread():
    scores, data, candidates = problem()
    scores[:] = np.nan
    sums = evaluate_scores(scores, data, "test", CLEAN, candidates, (5,))
    assert sums.means()["hr_at_5"] == 0.0
    assert sums.weights()["score_std"] == 0


def test_diverged_scores_do_not_stop_the_evaluation():
    scores, data, candidates = problem()
    sums = evaluate_scores(scores * 1e30, data, "test", CLEAN, candidates, (5,))
    assert sums.means()["score_std"] == 16384.0


def test_sampled_ranking_without_candidates_is_refused():
    scores, data, _ = problem()
    with pytest.raises(ValueError, match="candidates"):
        evaluate_scores(scores, data, "test", CLEAN, None, (5,))
    evaluate_scores(scores, data, "test", replace(CLEAN, rankings=("full",)), None, (5,))


def test_sums_are_small_to_send():
    scores, data, candidates = problem()
    sums = evaluate_scores(scores, data, "test", CLEAN, candidates, (5, 10, 20, 50))
    assert len(pickle.dumps(sums)) < 20_000
    assert pickle.loads(pickle.dumps(sums)) == sums
