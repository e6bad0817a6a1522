"""Samples for a loss on pairs: each positive beside its own negatives, and nothing ever comes between the two."""

import numpy as np
import pytest

from fedray.data.blocks import draw_samples, stack
from tests.data.test_blocks import of
from tests.evaluation.naive import clients
from tests.helpers import tiny_data

DATA = tiny_data(clients=15, items=60)


def drawn(data=DATA, round_=0, negatives=3, epochs=2, pairs=True, **more):
    return draw_samples(0, round_, data.client, data.train, data.train, data.n_items, negatives, epochs, pairs, **more)


@pytest.mark.parametrize("negatives", [1, 3])
def test_each_positive_is_paired_with_each_of_its_negatives_in_their_order(negatives):
    """The negatives are those that the same client would draw without pairs: the j-th is of positive j // negatives."""
    paired, plain = drawn(negatives=negatives), drawn(negatives=negatives, pairs=False)
    for c in range(len(DATA)):
        _, items, labels, _ = of(paired, c)
        train, flat = DATA.train.row(c), of(plain, c)[1]
        assert items[::2].tolist() == np.repeat(train, negatives).tolist()
        assert items[1::2].tolist() == flat[len(train) :].tolist()
        assert labels.tolist() == [1.0, 0.0] * (len(train) * negatives)


def test_the_negatives_of_one_positive_are_distinct_and_unknown():
    samples = drawn(negatives=4)
    for c in range(len(DATA)):
        groups = of(samples, c)[1][1::2].reshape(-1, 4)
        assert all(len(set(g)) == 4 for g in groups.tolist())
        assert not set(groups.ravel().tolist()) & set(DATA.train.row(c).tolist())


def test_every_order_is_a_permutation_of_whole_pairs_and_of_its_own():
    samples, later = drawn(), drawn(round_=1)
    for c in range(len(DATA)):
        order = of(samples, c)[3]
        for epoch in order:
            assert np.all(epoch[::2] % 2 == 0)
            assert np.all(epoch[1::2] == epoch[::2] + 1)
            assert np.sort(epoch).tolist() == list(range(len(epoch)))
        assert not np.array_equal(order[0], order[1])
        assert not np.array_equal(order[0], of(later, c)[3][0])


def test_orders_of_pairs_are_uniform():
    """3 pairs have 6 orders; 1800 rounds of one client show each about 300 times."""
    one = clients([[0, 1, 2]], [[]], [[]], 5)
    seen = [tuple(drawn(one, r, negatives=1, epochs=1).order[0]) for r in range(1800)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 300) ** 2 / 300).sum() < 5 + 5 * np.sqrt(10)


def test_rows_are_ascending_and_exactly_those_of_the_pairs():
    samples = drawn()
    for c in range(len(DATA)):
        rows, items, _, _ = of(samples, c)
        assert rows.tolist() == sorted(set(items.tolist()))


def test_who_is_beside_a_client_changes_nothing():
    whole, who = drawn(), np.array([9, 0, 4])
    part = drawn(DATA.take(who))
    for k, c in enumerate(who):
        for a, b in zip(of(part, k), of(whole, c)):
            np.testing.assert_array_equal(a, b)


def test_a_client_that_knows_every_item_has_no_pair_and_one_without_items_neither():
    odd = clients([[0, 1, 2], [], [1], [0, 2]], [[]] * 4, [[]] * 4, 3)
    samples = drawn(odd, negatives=2)
    assert samples.n_samples().tolist() == [0, 0, 4, 8]
    assert samples.n_rows().tolist() == [0, 0, 3, 3]
    assert of(samples, 3)[1].tolist() == [0, 1, 0, 1, 2, 1, 2, 1]  # one unknown item: it comes again
    assert [b.slot[b.slot >= 0].tolist() for b in stack(samples, 8, 32)] == [[2, 3]]


def test_lowest_negatives_are_paired_in_turn_and_a_small_pool_leaves_positives_alone():
    one = clients([[1, 3, 4]], [[]], [[]], 6)  # unknown: 0, 2, 5; three positives want six
    samples = drawn(one, negatives=2, lowest=True)
    assert of(samples, 0)[1].tolist() == [1, 0, 1, 2, 3, 5]


@pytest.mark.parametrize("batch_size", [2, 6, 16, 1000])
def test_padded_blocks_never_part_a_pair(batch_size):
    """Step by step: whole pairs, positive first, and in all as many as there are, once an epoch."""
    samples, seen = drawn(), {}
    for block in stack(samples, batch_size, 32):
        for k in np.flatnonzero(block.slot >= 0):
            c, pairs = int(block.slot[k]), []
            for item, label, mask in zip(block.item[k], block.label[k], block.mask[k]):
                n = int(mask.sum())
                assert n % 2 == 0 and mask[:n].all()
                assert label[:n].tolist() == [1.0, 0.0] * (n // 2)
                pairs += block.rows[k][item[:n]].reshape(-1, 2).tolist()
            seen[c] = pairs
    for c in range(len(DATA)):
        items = of(samples, c)[1].reshape(-1, 2).tolist()
        assert sorted(seen[c]) == sorted(2 * items)
