"""Negatives and candidates: what may be drawn, how often, and that nobody else matters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray import seeding
from fedray.data.blocks import draw_samples
from fedray.data.negatives import candidates, fill_negatives, known_items, list_unknown, spared, unknown_item
from fedray.data.protocols import PROTOCOLS
from fedray.types import ClientData, Ragged
from tests.helpers import tiny_data

DATA = tiny_data(clients=12, items=80)
CLEAN, PFEDREC = PROTOCOLS["clean"], PROTOCOLS["paper/pfedrec"]


def negatives_of(data, spare, round_=0, n=4, seed=0):
    """Each client's negatives, one row of n per positive."""
    s = draw_samples(seed, round_, data.client, data.train, spare, data.n_items, n, 1)
    own = [
        s.rows[s.row_ptr[c] : s.row_ptr[c + 1]][s.item[s.sample_ptr[c] : s.sample_ptr[c + 1]]] for c in range(len(data))
    ]
    return [x[len(data.train.row(c)) :].reshape(-1, n) for c, x in enumerate(own)]


def pool_of(data, c, spare):
    return set(range(data.n_items)) - set(spare.row(c).tolist())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30).flatmap(lambda m: st.tuples(st.just(m), st.sets(st.integers(0, m - 1)))))
def test_unknown_items_are_the_set_difference_in_order(case):
    m, known = case
    padded = np.array([7, *sorted(known), 3], dtype=np.int64)  # bounds matter: neighbours' items stand beside
    found = [unknown_item(padded, 1, 1 + len(known), j) for j in range(m - len(known))]
    assert found == sorted(set(range(m)) - known)
    listed = np.empty(m, np.int32)
    list_unknown(padded, 1, 1 + len(known), m, listed)
    assert listed[: len(found)].tolist() == found


def test_few_draws_are_the_first_of_many():
    """A short request bisects for each draw, a long one lists the unknown items first."""
    known = np.array([0, 3, 4, 50, 199], dtype=np.int64)
    few, many = np.empty(16, np.int32), np.empty(4000, np.int32)
    for out in (few, many):
        fill_negatives(seeding.key(0, "negatives"), known, 0, 5, 200, 4, out, np.empty(200, np.int32))
    np.testing.assert_array_equal(few, many[:16])


@pytest.mark.parametrize("rules", [CLEAN, PFEDREC], ids=lambda p: p.name)
def test_negatives_avoid_spared_items_and_repeat_none_within_a_positive(rules):
    spare = spared(DATA, rules)
    for round_ in range(20):
        for c, rows in enumerate(negatives_of(DATA, spare, round_)):
            assert len(rows) == len(DATA.train.row(c))
            assert set(rows.ravel().tolist()) <= pool_of(DATA, c, spare)
            assert all(len(set(row)) == 4 for row in rows.tolist())


def test_clean_negatives_may_hit_held_out_items_and_the_papers_never_do():
    hits = {"train": 0, "all": 0}
    for rules in (CLEAN, PFEDREC):
        spare = spared(DATA, rules)
        for round_ in range(20):
            for c, rows in enumerate(negatives_of(DATA, spare, round_)):
                held_out = [*DATA.valid.row(c), *DATA.test.row(c)]
                hits[rules.negatives_spare] += np.isin(rows, held_out).sum()
    drawn = 20 * 4 * DATA.train.lengths()
    expected = (drawn * 2 / (80 - DATA.train.lengths())).sum()
    assert hits["train"] == pytest.approx(expected, abs=5 * np.sqrt(expected))
    assert hits["all"] == 0


def test_negatives_are_uniform_over_the_pool():
    known = np.array([0, 3, 4, 9, 19], dtype=np.int64)
    out = np.empty(60_000, np.int32)
    fill_negatives(seeding.key(0, "negatives"), known, 0, 5, 20, 4, out, np.empty(20, np.int32))
    counts = np.bincount(out, minlength=20)
    assert counts[known].tolist() == [0] * 5
    pool = np.delete(counts, known)
    assert ((pool - 4000) ** 2 / 4000).sum() < 14 + 5 * np.sqrt(28)


def test_each_place_of_a_group_is_uniform_too():
    """Drawing without replacement must not favour anything by position."""
    out = np.empty(40_000, np.int32)
    fill_negatives(seeding.key(1, "negatives"), np.zeros(0, np.int64), 0, 0, 5, 4, out, np.empty(5, np.int32))
    for place in range(4):
        counts = np.bincount(out[place::4], minlength=5)
        assert ((counts - 2000) ** 2 / 2000).sum() < 4 + 5 * np.sqrt(8)


def test_negatives_are_redrawn_every_round_and_with_every_seed():
    first, next_round, next_seed = (negatives_of(DATA, DATA.train, r, seed=s) for r, s in ((0, 0), (1, 0), (0, 1)))
    for a, b, c in zip(first, next_round, next_seed):
        assert not np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_a_client_draws_the_same_whoever_is_beside_it():
    whole = negatives_of(DATA, DATA.train)
    who = np.array([7, 2, 11])
    part = DATA.take(who)
    for c, rows in zip(who, negatives_of(part, part.train)):
        np.testing.assert_array_equal(rows, whole[c])


def tight(n_known, n_items=12):
    """One client that has the first `n_known` items to train on."""
    nothing = Ragged(np.zeros(2, np.int64), np.zeros(0, np.int64))
    return ClientData(np.arange(1), Ragged(np.array([0, n_known]), np.arange(n_known)), nothing, nothing, n_items)


def test_a_pool_smaller_than_the_group_repeats_and_an_empty_one_gives_none():
    (few,) = negatives_of(tight(10), tight(10).train)
    assert few.shape == (10, 4)
    assert set(few.ravel().tolist()) == {10, 11}
    (exactly,) = negatives_of(tight(8), tight(8).train)
    assert all(sorted(row) == [8, 9, 10, 11] for row in exactly.tolist())
    (none,) = negatives_of(tight(12), tight(12).train)
    assert none.shape == (0, 4)


def test_fixed_negatives_are_the_lowest_free_ids_the_same_every_round_and_seed():
    """GFMFR's code: the first entries of the ascending list of items that the client has in no split."""
    spare = spared(DATA, PROTOCOLS["paper/gfmfr"])
    for round_, seed in ((0, 0), (1, 0), (7, 3)):
        s = draw_samples(seed, round_, DATA.client, DATA.train, spare, DATA.n_items, 2, 1, lowest=True)
        for c in range(len(DATA)):
            own = slice(s.sample_ptr[c], s.sample_ptr[c + 1])
            items = s.rows[s.row_ptr[c] : s.row_ptr[c + 1]][s.item[own]].tolist()
            n = len(DATA.train.row(c))
            assert items[:n] == DATA.train.row(c).tolist()
            assert items[n:] == sorted(pool_of(DATA, c, spare))[: 2 * n]
            assert s.label[own].tolist() == [1.0] * n + [0.0] * 2 * n


def test_fixed_negatives_are_at_most_all_there_are_and_respect_what_is_spared():
    def drawn(spare, n):
        s = draw_samples(0, 0, data.client, data.train, spare, 12, n, 1, lowest=True)
        return s.rows[s.item[s.label == 0]].tolist()

    data = ClientData(
        np.array([0]), *(Ragged.of(np.zeros(len(x), int), np.array(x), 1) for x in ([1, 4], [0], [3])), 12
    )
    assert drawn(spared(data, PROTOCOLS["paper/gfmfr"]), 2) == [2, 5, 6, 7]
    assert drawn(spared(data, CLEAN), 2) == [0, 2, 3, 5]
    assert drawn(spared(data, CLEAN), 9) == [0, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert drawn(known_items(tight(12)), 2) == []


def test_fixed_negatives_in_pairs_stand_beside_their_positives():
    data = ClientData(
        np.array([0]), *(Ragged.of(np.zeros(len(x), int), np.array(x), 1) for x in ([1, 4], [0], [3])), 12
    )
    s = draw_samples(0, 0, data.client, data.train, data.train, 12, 2, 1, pairs=True, lowest=True)
    assert s.rows[s.item].tolist() == [1, 0, 1, 2, 4, 3, 4, 5]


def test_known_items_are_the_ascending_union_of_the_splits():
    known = known_items(DATA)
    for c in range(len(DATA)):
        assert known.row(c).tolist() == sorted([*DATA.train.row(c), *DATA.valid.row(c), *DATA.test.row(c)])


def test_candidates_are_two_disjoint_halves_of_unknown_items():
    data = tiny_data(clients=6, items=300)
    found, known = candidates(0, data), known_items(data)
    for c in range(6):
        valid, test = (found[s].row(c).tolist() for s in ("valid", "test"))
        assert len(valid) == len(test) == 99
        assert len({*valid, *test}) == 198
        assert not {*valid, *test} & set(known.row(c).tolist())
        assert max(*valid, *test) < 300


@pytest.mark.parametrize(("n_known", "each"), [(0, 6), (1, 5), (10, 1), (11, 0), (12, 0)])
def test_a_client_with_few_unknown_items_gets_halves_of_what_there_is(n_known, each):
    found = candidates(0, tight(n_known))
    both = [*found["valid"].row(0), *found["test"].row(0)]
    assert found["valid"].lengths().tolist() == found["test"].lengths().tolist() == [each]
    assert len(set(both)) == 2 * each
    assert all(i >= n_known for i in both)


def test_candidates_are_uniform_and_depend_on_client_and_seed_alone():
    """2000 clients that know nothing: each of 400 items is in a client's validation half with chance 99/400."""
    nothing = Ragged(np.zeros(2001, np.int64), np.zeros(0, np.int64))
    data = ClientData(np.arange(2000), nothing, nothing, nothing, 400)
    found = candidates(0, data)
    for half in found.values():
        expected = 2000 * 99 / 400
        assert np.abs(np.bincount(half.values, minlength=400) - expected).max() < 5 * np.sqrt(expected)
    who = np.array([1999, 5])
    np.testing.assert_array_equal(candidates(0, data.take(who))["test"].row(1), found["test"].row(5))
    assert not np.array_equal(candidates(1, data)["test"].row(5), found["test"].row(5))
