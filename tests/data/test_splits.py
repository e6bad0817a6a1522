"""Leave-one-out by hand: latest to test, ties by the file, what is without a time by lot."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.data import splits
from fedray.data.splits import leave_one_out
from fedray.types import MISSING_TIME, TEST, TRAIN, VALID
from tests.data import make

NONE = MISSING_TIME


def labels(user, time, seed=0, item=None):
    item = np.arange(len(user)) if item is None else np.asarray(item)
    return leave_one_out(np.array(user), item, np.array(time, dtype=np.int64), seed).tolist()


def test_the_latest_is_test_and_the_one_before_validation():
    assert labels([0, 1, 0, 1, 0, 1], [3, 5, 1, 6, 2, 4]) == [TEST, VALID, TRAIN, TEST, VALID, TRAIN]


def test_among_equal_times_the_first_row_of_the_file_counts_as_latest():
    assert labels([0, 0, 0, 0], [7, 9, 9, 9]) == [TRAIN, TEST, VALID, TRAIN]
    assert labels([0, 0, 0], [1, 1, 1]) == [TEST, VALID, TRAIN]


def test_negative_times_are_times():
    assert labels([0, 0, 0], [-5, -1, -9]) == [VALID, TEST, TRAIN]
    assert labels([0, 0, 0], [NONE, NONE + 1, NONE + 2])[1:] == [VALID, TEST]


def test_fewer_than_three_rows_only_train():
    assert labels([0, 0, 1, 2, 2, 2], [1, 2, 1, 1, 2, 3]) == [TRAIN, TRAIN, TRAIN, TRAIN, VALID, TEST]


def test_a_missing_time_is_never_the_latest():
    for seed in range(20):
        got = labels([0] * 5, [NONE, NONE, 4, NONE, NONE], seed)
        assert got[2] == TEST and got.count(VALID) == 1
        assert labels([0] * 4, [NONE, 2, NONE, 1], seed) == [TRAIN, TEST, TRAIN, VALID]


def test_the_random_validation_item_follows_the_seed_and_is_uniform():
    drawn = np.array([labels([0] * 5, [NONE, NONE, 4, NONE, NONE], seed).index(VALID) for seed in range(400)])
    counts = np.bincount(drawn, minlength=5)
    assert counts[2] == 0
    assert (np.abs(counts[[0, 1, 3, 4]] - 100) < 4 * np.sqrt(75)).all()  # 4 standard deviations
    assert labels([0] * 5, [NONE] * 5, 3) == labels([0] * 5, [NONE] * 5, 3)


def test_two_users_draw_apart():
    user = np.repeat(np.arange(50), 6)
    got = np.array(labels(user, [NONE] * 300, item=np.tile(np.arange(6), 50))).reshape(50, 6)
    assert len({tuple(row) for row in got}) > 10  # of 30 possible
    assert (np.sort(got, axis=1) == [0, 0, 0, 0, VALID, TEST]).all()


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_order_of_rows_does_not_change_a_random_split(random, seed):
    rows = [(u, i, 1 if i == 3 and u % 2 else NONE) for u in range(4) for i in range(5)]

    def split(rows):
        user, item, time = map(np.array, zip(*rows))
        return {(u, i): v for (u, i, _), v in zip(rows, leave_one_out(user, item, time, seed).tolist())}

    shuffled = random.sample(rows, len(rows))
    assert split(shuffled) == split(rows)


def test_other_users_do_not_change_a_users_draw():
    user, item = np.repeat(np.arange(6), 5), np.tile(np.arange(5), 6)
    time = np.full(30, NONE)
    alone = leave_one_out(user[10:15], item[10:15], time[:5], 1)
    assert leave_one_out(user, item, time, 1)[10:15].tolist() == alone.tolist()


def test_the_split_column_is_taken_as_it_stands(tmp_path):
    text = "user,item,timestamp,split\n1,1,9,0\n1,2,1,2\n1,3,2,1\n2,1,9,train\n2,2,8,valid\n2,3,7,test\n"
    dataset = make.read(make.write(tmp_path, text), split="given")
    assert make.rows_of(dataset, TEST) == {"1": ["2"], "2": ["3"]}
    assert make.rows_of(dataset, VALID) == {"1": ["3"], "2": ["2"]}
    by_time = make.read(tmp_path)  # the column stands aside where leave-one-out is asked
    assert make.rows_of(by_time, TEST) == {"1": ["1"], "2": ["1"]}
    assert by_time.interactions.split.tolist() == [0, 2, 1, 0, 1, 2]


def test_the_latest_training_rows_alone_are_kept():
    """User 0 by time: 5, 3, 9, 1 | valid 7 | test 2; its two latest training items are 9 and 1. User 1 has one."""
    user = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    item = np.array([5, 3, 9, 1, 7, 2, 4, 6, 8])
    time = np.array([1, 2, 3, 4, 5, 6, 1, 2, 3])
    label = splits.leave_one_out(user, item, time, 0)
    kept = splits.most_recent(label, user, item, time, 2, 0)
    assert item[(kept == TRAIN) & (user == 0)].tolist() == [9, 1]
    assert item[kept == splits.DROPPED].tolist() == [5, 3]
    np.testing.assert_array_equal(kept[kept != splits.DROPPED], label[kept != splits.DROPPED])
    np.testing.assert_array_equal(splits.most_recent(label, user, item, time, 9, 0), label)
