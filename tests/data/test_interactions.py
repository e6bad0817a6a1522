"""Cleaning, by hand-worked numbers: pairs once, the k-core, users too short to split, ids and times."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.data.interactions import as_ids, clean, k_core
from fedray.data.sources import RawData
from fedray.types import MISSING_TIME
from tests.data import make


def cleaned(rows, columns=("user", "item", "time"), **settings_):
    frame = pd.DataFrame(rows, columns=list(columns), index=range(2, 2 + len(rows)))
    raw = RawData(frame, pd.DataFrame({"item": []}), "x", "x.csv")
    return clean(raw, make.settings("unused", **{"short_users": "keep", **settings_}))


def test_of_a_pair_the_latest_row_stays_and_the_others_are_counted():
    frame, counts = cleaned([(1, 1, 5), (1, 2, 5), (1, 1, 9), (1, 1, 7)])
    assert frame.index.tolist() == [3, 4]  # rows of the file; still in its order
    assert frame["time"].tolist() == [5, 9]
    assert (counts["rows_read"], counts["duplicates_dropped"]) == (4, 2)


def test_among_equal_times_the_first_row_stays():
    assert cleaned([(1, 1, 5), (2, 1, 5), (1, 1, 5)])[0].index.tolist() == [2, 3]


def test_a_row_with_a_time_is_later_than_one_without():
    frame, _ = cleaned([(1, 1, None), (1, 1, -3), (2, 1, None), (2, 1, None)])
    assert frame.index.tolist() == [3, 4]
    assert frame["time"].tolist() == [-3, MISSING_TIME]


def test_without_a_time_column_the_first_row_stays():
    frame, counts = cleaned([(1, 1), (1, 2), (1, 1)], ("user", "item"))
    assert frame.index.tolist() == [2, 3]
    assert counts["rows_without_time"] == 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2) | st.none()), min_size=1))
def test_unique_pairs_agree_with_a_plain_loop(rows):
    best = {}
    for n, (user, item, time) in enumerate(rows):
        rank = -1 if time is None else time
        if (user, item) not in best or rank > best[user, item][0]:
            best[user, item] = (rank, n + 2)
    frame, counts = cleaned(rows)
    assert frame.index.tolist() == sorted(n for _, n in best.values())
    assert counts["duplicates_dropped"] == len(rows) - len(best)


def test_k_core_repeats_until_nothing_changes():
    # Item 9 has one row: it goes, user 3 keeps one row and goes, item 2 keeps one row and goes.
    user = np.array([1, 1, 2, 2, 3, 3, 1])
    item = np.array([0, 1, 0, 1, 2, 9, 2])
    assert k_core(user, item, 2, 2).tolist() == [True] * 4 + [False] * 3
    assert k_core(user, item, 0, 0).all()
    assert not k_core(user, item, 3, 3).any()


def test_the_k_core_is_counted():
    rows = [(1, 0), (1, 1), (2, 0), (2, 1), (3, 2), (3, 9), (1, 2)]
    settings_ = {"min_user_interactions": 2, "min_item_interactions": 2}
    frame, counts = cleaned(rows, ("user", "item"), **settings_)
    assert frame[["user", "item"]].to_numpy().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert (counts["users_dropped"], counts["items_dropped"], counts["interactions_dropped"]) == (1, 2, 3)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1), st.integers(0, 3), st.integers(0, 3))
def test_the_k_core_is_stable_and_the_largest(pairs, least_user, least_item):
    left = set(pairs)
    while True:  # one row at a time, in any order, gives the same core
        bad = [
            (u, i)
            for u, i in left
            if sum(a == u for a, _ in left) < least_user or sum(b == i for _, b in left) < least_item
        ]
        if not bad:
            break
        left.remove(bad[0])
    user, item = np.array(sorted(pairs)).T
    assert set(zip(*(x[k_core(user, item, least_user, least_item)].tolist() for x in (user, item)))) == left


SHORT = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 4)]


@pytest.mark.parametrize(
    "policy, users, dropped, kept", [("drop", [1, 1, 1], 2, 0), ("keep", [1, 1, 1, 2, 2, 3], 0, 2)]
)
def test_users_too_short_to_split(policy, users, dropped, kept):
    frame, counts = cleaned(SHORT, ("user", "item"), short_users=policy)
    assert frame["user"].tolist() == users
    assert (counts["short_users_dropped"], counts["short_users_kept"], counts["users_dropped"]) == (dropped, kept, 0)


def test_with_a_given_split_no_user_is_too_short():
    rows = [(1, 1, "train"), (1, 2, "1"), (2, 1, " TEST ")]
    frame, counts = cleaned(rows, ("user", "item", "split"), split="given", short_users="drop")
    assert frame["split"].tolist() == [0, 1, 2]
    assert counts["short_users_dropped"] == 0


@pytest.mark.parametrize(
    "column, ids",
    [
        (["3", " 10 ", "0"], [3, 10, 0]),
        (["3", "007"], ["3", "007"]),  # an unusual spelling is no number: nothing is lost
        (["3", "x"], ["3", "x"]),
        ([3.0, 4.0], [3, 4]),
        ([3, "x"], ["3", "x"]),
        (pd.array([2**62, 1], dtype="Int64"), [2**62, 1]),
        (["9" * 30], ["9" * 30]),
        (pd.Categorical(["b", "a"]), ["b", "a"]),
    ],
)
def test_ids_are_integers_where_all_are_and_else_text(column, ids):
    assert as_ids(pd.Series(column), "user", "x").tolist() == ids


@pytest.mark.parametrize(
    "column, times",
    [
        (["5", None], [5, MISSING_TIME]),
        ([5.0, np.nan], [5, MISSING_TIME]),
        ([0.5, 2.0], [500_000, 2_000_000]),  # fractions: the whole column in microseconds
        (pd.to_datetime(["1970-01-02", None]), [86_400_000_000, MISSING_TIME]),
        (pd.to_datetime(["1970-01-01T01:00+01:00"]), [0]),
        ([None, None], [MISSING_TIME] * 2),
        (["nan", "7"], [MISSING_TIME, 7]),
    ],
)
def test_times_become_int64(column, times):
    frame = pd.DataFrame({"user": 1, "item": range(len(column)), "time": column})
    raw = RawData(frame, pd.DataFrame({"item": []}), "x", "x.csv")
    assert clean(raw, make.settings("unused", short_users="keep"))[0]["time"].tolist() == times


def test_a_million_rows_are_cleaned_and_split_in_seconds():
    import time

    from fedray.data.splits import leave_one_out

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user": rng.integers(6000, size=10**6), "item": rng.integers(3700, size=10**6)})
    frame["time"] = rng.integers(10**9, size=10**6)
    raw = RawData(frame.set_axis(np.arange(2, 2 + 10**6)), pd.DataFrame({"item": []}), "x", "x.csv")
    started = time.perf_counter()
    out, _ = clean(raw, make.settings("unused"))
    leave_one_out(out["user"].to_numpy(), out["item"].to_numpy(), out["time"].to_numpy(), 0)
    assert time.perf_counter() - started < 8  # 1 s on an idle core
