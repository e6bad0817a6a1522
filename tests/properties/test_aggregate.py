"""`Aggregate` is a commutative monoid to the bit, and its mean is the mean of whole tables."""

import itertools
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray import fixed_point
from fedray.errors import AggregateOverflowError
from fedray.federated.aggregate import ZERO, Aggregate, RowSum, merge, sum_dense, sum_rows, sum_scalars, weighted_mean
from fedray.types import ServerState

M, D = 9, 3
FEW = settings(max_examples=60, deadline=None)


@st.composite
def row_sums(draw):
    values = np.array(draw(st.lists(st.integers(-(2**40), 2**40), min_size=M * D, max_size=M * D))).reshape(M, D)
    if draw(st.booleans()):
        return RowSum(M, None, values)
    ids = np.array(sorted(draw(st.sets(st.integers(0, M - 1)))), dtype=np.int64)
    return RowSum(M, ids, values[: len(ids)])


@st.composite
def aggregates(draw):
    names = st.sampled_from(["a", "b"])
    rows = draw(st.dictionaries(names, row_sums()))
    dense = {k: np.array(draw(st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=2))) for k in rows}
    scalars = draw(st.dictionaries(st.sampled_from(["loss", "weight/a"]), st.integers(-(2**70), 2**70)))
    return Aggregate(rows, dense, scalars, draw(st.dictionaries(names, st.integers(0, 2**60 - 1))))


def plain(a):
    """An aggregate as comparable lists, whatever its form."""
    rows = {k: v.dense().tolist() for k, v in a.rows.items()}
    return rows, {k: v.tolist() for k, v in a.dense.items()}, dict(a.scalars), dict(a.peak)


@FEW
@given(aggregates(), aggregates(), aggregates())
def test_merge_is_associative_and_commutative_with_a_neutral_element(a, b, c):
    assert plain(merge(merge(a, b), c)) == plain(merge(a, merge(b, c)))
    assert plain(merge(a, b)) == plain(merge(b, a))
    assert plain(merge(a, ZERO)) == plain(merge(ZERO, a)) == plain(a)


@FEW
@given(aggregates(), aggregates())
def test_compact_changes_nothing_and_neither_side_is_written_to(a, b):
    before = plain(a), plain(b)
    assert plain(a.compact()) == before[0]
    assert plain(merge(a.compact(), b.compact())) == plain(merge(a, b))
    assert (plain(a), plain(b)) == before


def test_compact_keeps_only_touched_rows_of_a_sparse_sum():
    values = np.zeros((M, D), np.int64)
    values[[2, 7], 1] = 5, -5
    small = RowSum(M, None, values).compact()
    assert small.ids.tolist() == [2, 7]
    assert small.values.tolist() == [[0, 5, 0], [0, -5, 0]]


def uploads(seed, clients=12):
    """Clients that moved some rows of one table: (E, E_u [C, M, D], sum of any subset of them, weights)."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(M, D)).astype(np.float32)
    decay = rng.uniform(0.9, 1.0, clients) if seed % 2 else np.ones(clients)
    weight = rng.integers(0, 6, clients)
    touched = [
        np.sort(rng.choice(M - 2, rng.integers(0, 5), replace=False)) for _ in range(clients)
    ]  # never the last 2
    own = table.astype(np.float64) * decay[:, None, None]
    for c, rows in enumerate(touched):
        own[c, rows] = (table[rows] + rng.normal(size=(len(rows), D))).astype(np.float32)

    def total(who):
        rows = np.concatenate([touched[c] for c in who]).astype(np.int32)
        trained = np.concatenate([own[c, touched[c]] for c in who]).astype(np.float32)
        ptr = np.cumsum([0] + [len(touched[c]) for c in who])
        return sum_rows("e", table, trained, rows, ptr, decay[who], weight[who])

    return table, own, total, weight


@pytest.mark.parametrize("seed", range(6))
def test_any_split_of_the_clients_gives_the_same_sum(seed):
    _, _, total, _ = uploads(seed)
    whole = plain(total(np.arange(12)))
    rng = np.random.default_rng(seed)
    for parts in (1, 3, 12):
        split = np.array_split(rng.permutation(12), parts)
        assert plain(reduce(merge, (total(who).compact() for who in split), ZERO)) == whole


@pytest.mark.parametrize("seed", range(6))
def test_weighted_mean_is_the_mean_of_the_clients_whole_tables(seed):
    """Odd seeds with a weight-decay factor per client; weights are small integers, some 0."""
    table, own, total, weight = uploads(seed)
    state = weighted_mean(ServerState(4, {"e": table}), total(np.arange(12)))
    expected = (own * weight[:, None, None]).sum(axis=0) / weight.sum()
    np.testing.assert_allclose(state.params["e"], expected, atol=2e-7, rtol=2e-7)
    assert state.params["e"].dtype == np.float32
    assert state.round == 5


def test_without_decay_untouched_rows_keep_their_bits():
    table, _, total, _ = uploads(0)
    new = weighted_mean(ServerState(0, {"e": table}), total(np.arange(12))).params["e"]
    np.testing.assert_array_equal(new[-2:], table[-2:])
    assert not np.array_equal(new[:-2], table[:-2])


def test_weighted_mean_of_a_dense_parameter():
    base, trained = np.array([1.0, 2.0], np.float32), np.array([[2.0, 2.0], [4.0, 6.0]], np.float32)
    total = sum_dense("w", base, trained, np.array([1, 3]))
    new = weighted_mean(ServerState(0, {"w": base}), total).params["w"]
    assert new.tolist() == [(2 + 3 * 4) / 4, (2 + 3 * 6) / 4]


def test_clients_of_weight_zero_and_empty_sums_leave_the_parameters_alone():
    table = np.ones((M, D), np.float32)
    nobody = sum_rows(
        "e", table, table[:1] * 5, np.zeros(1, np.int32), np.array([0, 1]), np.ones(1), np.zeros(1, np.int64)
    )
    for total in (ZERO, nobody):
        np.testing.assert_array_equal(weighted_mean(ServerState(0, {"e": table}), total).params["e"], table)


def one_row(values, weight=1):
    """Clients that each moved the same single number from 0."""
    n = len(values)
    rows, ptr = np.zeros(n, np.int32), np.arange(n + 1)
    base, trained = np.zeros((1, 1), np.float32), np.array(values, np.float32).reshape(n, 1)
    return sum_rows("e", base, trained, rows, ptr, np.ones(n), np.full(n, weight))


def one_dense(values, weight=1):
    trained = np.array(values, np.float32).reshape(-1, 1)
    return sum_dense("w", np.zeros(1, np.float32), trained, np.full(len(trained), weight))


@pytest.mark.parametrize("make", [one_row, one_dense])
@pytest.mark.parametrize("bad", [2.0**30, -(2.0**30), np.inf, np.nan])
def test_a_value_that_does_not_fit_is_the_named_error(make, bad):
    with pytest.raises(AggregateOverflowError):
        make([0.0, bad])


@pytest.mark.parametrize("make", [one_row, one_dense])
@pytest.mark.parametrize("clients", [2, 4, 5, 8, 9])
def test_a_sum_that_does_not_fit_is_the_named_error_even_where_int64_wraps_to_a_small_number(make, clients):
    """Five times almost 2^62 is almost 2^62 again in int64."""
    almost = 2.0**30 - 64
    with pytest.raises(AggregateOverflowError):
        make([almost] * clients)
    with pytest.raises(AggregateOverflowError):
        reduce(merge, [make([almost])] * clients, ZERO)


def test_the_weight_counts_towards_the_limit():
    assert one_row([2.0**20], weight=2**9).peak == {"e": 2**61}
    with pytest.raises(AggregateOverflowError):
        one_row([2.0**20], weight=2**10)


def test_opposite_updates_cancel_in_the_sum_and_not_in_the_peak():
    a = one_row([3.0, -3.0])
    assert a.rows["e"].dense().tolist() == [[0]]
    assert a.peak == {"e": 6 << 32}


def test_scalar_sums_exceed_int64_exactly():
    values = np.full(10, 5e8)
    assert sum_scalars({"loss": values}).scalar("loss") == 5e9
    with pytest.raises(AggregateOverflowError):
        sum_scalars({"loss": np.array([np.inf])})


def test_scalars_are_the_same_in_every_order():
    values = np.random.default_rng(0).normal(size=5)
    found = {sum_scalars({"x": values[list(p)]}).scalars["x"] for p in itertools.permutations(range(5))}
    assert len(found) == 1
    assert fixed_point.restore(np.array(found.pop())) == pytest.approx(values.sum(), abs=1e-9)
