"""Round samples and the padded blocks cut from them: every sample once an epoch, nothing else."""

import numpy as np
import pytest

from fedray.data.blocks import bucket, draw_samples, stack
from tests.evaluation.naive import clients
from tests.helpers import tiny_data

DATA = tiny_data(clients=15, items=60)


def drawn(data=DATA, round_=0, negatives=4, epochs=2, seed=0):
    return draw_samples(seed, round_, data.client, data.train, data.train, data.n_items, negatives, epochs)


def of(samples, c):
    """(rows, item ids, labels, orders) of client c."""
    rows = samples.rows[samples.row_ptr[c] : samples.row_ptr[c + 1]]
    own = slice(samples.sample_ptr[c], samples.sample_ptr[c + 1])
    return rows, rows[samples.item[own]], samples.label[own], samples.order[:, own]


@pytest.mark.parametrize("n_items", [60, 500, 5000])
def test_rows_are_ascending_unique_and_exactly_those_touched(n_items):
    """Clients that touch much of the catalogue, and little of it: their rows are found in two ways."""
    samples = drawn(tiny_data(clients=15, items=n_items))
    for c in range(15):
        rows, items, labels, _ = of(samples, c)
        assert rows.tolist() == sorted(set(items.tolist()))
        assert not set(items[labels == 0].tolist()) & set(items[labels == 1].tolist())


def test_positives_come_first_with_label_one_then_four_negatives_each():
    for c in range(len(DATA)):
        _, items, labels, _ = of(drawn(), c)
        n = len(DATA.train.row(c))
        assert labels.tolist() == [1.0] * n + [0.0] * 4 * n
        np.testing.assert_array_equal(items[:n], DATA.train.row(c))
        assert not set(items[n:].tolist()) & set(items[:n].tolist())


def test_each_epoch_visits_every_sample_once_in_an_order_of_its_own():
    again, later = drawn(), drawn(round_=1)
    for c in range(len(DATA)):
        order = of(again, c)[3]
        for epoch in order:
            np.testing.assert_array_equal(np.sort(epoch), np.arange(len(epoch)))
        assert not np.array_equal(order[0], order[1])
        assert not np.array_equal(order[0], of(later, c)[3][0])


def test_orders_are_uniform():
    """3 samples have 6 orders; 3000 rounds of one client show each about 500 times."""
    one = clients([[0, 1, 2]], [[]], [[]], 5)
    seen = [tuple(drawn(one, r, negatives=0, epochs=1).order[0]) for r in range(3000)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 5 + 5 * np.sqrt(10)


def test_a_client_has_the_same_samples_whoever_is_beside_it():
    whole, who = drawn(), np.array([9, 0, 4])
    part = drawn(DATA.take(who))
    for k, c in enumerate(who):
        for a, b in zip(of(part, k), of(whole, c)):
            np.testing.assert_array_equal(a, b)


def test_clients_without_items_or_without_unknown_items():
    odd = clients([[], [0, 1, 2], [1]], [[]] * 3, [[]] * 3, 3)
    s = drawn(odd, negatives=2)
    assert s.n_samples().tolist() == [0, 3, 3]
    assert s.n_rows().tolist() == [0, 3, 3]
    assert of(s, 1)[2].tolist() == [1, 1, 1]
    assert sorted(of(s, 2)[1].tolist()) == [0, 1, 2]
    assert [b.slot[b.slot >= 0].tolist() for b in stack(s, 8, 32)] == [[1, 2]]


def test_zero_negatives_leave_the_positives():
    s = drawn(negatives=0)
    np.testing.assert_array_equal(s.n_samples(), DATA.train.lengths())
    assert s.label.min() == 1


@pytest.mark.parametrize(("n", "size"), [(1, 8), (8, 8), (9, 12), (12, 12), (13, 16), (17, 24), (25, 32), (700, 768)])
def test_padded_sizes_are_powers_of_two_and_their_three_quarters(n, size):
    assert bucket(n) == size


def test_padding_adds_at_most_a_half():
    assert all(n <= bucket(n) <= max(8, 1.5 * n) for n in range(1, 3000))


def unpacked(samples, batch_size, width, extra=0):
    """client -> its (item id, label) sequence as the blocks hold it, step by step; and its padded shape."""
    found = {}
    for block in stack(samples, batch_size, width, extra):
        assert block.mask.shape[0] == width
        for k, c in enumerate(block.slot):
            steps = [
                list(zip(block.rows[k][block.item[k, s][m]].tolist(), block.label[k, s][m].tolist()))
                for s, m in enumerate(block.mask[k])
            ]
            if c < 0:
                assert not any(steps)
            else:
                assert int(c) not in found
                assert block.item[k].max() < block.n_rows[k]
                np.testing.assert_array_equal(block.rows[k, : block.n_rows[k]], of(samples, c)[0])
                found[int(c)] = steps, block.item.shape[1:] + block.rows.shape[1:]
    return found


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 1000])
@pytest.mark.parametrize("width", [4, 32])
def test_blocks_hold_every_sample_once_an_epoch_in_the_clients_order(batch_size, width, extra):
    samples = drawn()
    found = unpacked(samples, batch_size, width, extra)
    assert sorted(found) == list(range(len(DATA)))
    for c, (steps, _) in found.items():
        _, items, labels, orders = of(samples, c)
        expected = []
        for order in orders:
            visits = list(zip(items[order].tolist(), labels[order].tolist()))
            expected += [visits[i : i + batch_size] for i in range(0, len(visits), batch_size)]
        assert steps == expected


def test_padding_depends_on_the_client_alone():
    whole = unpacked(drawn(), 16, 4)
    for c in range(len(DATA)):
        alone = unpacked(drawn(DATA.take(np.array([c]))), 16, 4)
        assert alone[0] == whole[c]


def test_a_batch_larger_than_all_samples_is_one_small_step():
    one = clients([[0, 1]], [[]], [[]], 9)
    (block,) = stack(drawn(one, epochs=1), 256, 32)
    assert block.item.shape == (32, 1, bucket(10))
    assert block.mask.sum() == 10
