"""What groups like, and how well they are served, by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from fedray.evaluation.groups import Served, liked, markdown, names_of, served
from fedray.evaluation.users import with_group

PREFERENCE = np.array([[0.9, 0.8, 0.1], [0.5, 0.5, 0.5], [0.9, 0.2, 0.3]], np.float32)


def test_most_and_more_than_others_by_hand():
    """Group 1 is empty and has no say in the mean, which is (0.9, 0.5, 0.2)."""
    first, second = liked(PREFERENCE, np.array([0, 2, -1, 0]), 2)
    assert (first.group, first.clients, second.group, second.clients) == (0, 2, 2, 1)
    assert [i for i, _ in first.most] == [0, 1] and [i for i, _ in second.most] == [0, 2]
    assert [i for i, _ in first.more] == [1, 0] and first.more[0][1] == pytest.approx(0.3)
    assert [i for i, _ in second.more] == [2, 0] and second.more[0][1] == pytest.approx(0.1)


def test_a_single_group_has_no_others():
    (one,) = liked(PREFERENCE, np.zeros(4, np.int32))
    assert len(one.most) == 3 and not one.more
    assert "| a | 0.9000 |  |  |" in markdown([one], ["a", "b", "c"], "title")


def test_groups_of_clients_and_their_metric():
    users = {"client": np.array([0, 2, 3, 9]), "ndcg_at_10": np.array([0.1, 0.3, 0.5, 1.0])}
    found = with_group(users, np.array([1, 0, 1, 0], np.int32))
    assert found["group"].tolist() == [1, 1, 0, -1]
    none, zero, one = served(found, "ndcg_at_10")
    assert (none.group, none.clients, none.mean, zero.mean) == (-1, 1, 1.0, 0.5) and math.isnan(zero.error)
    assert one == Served(1, 2, pytest.approx(0.2), pytest.approx(0.1))
    assert served(users, "ndcg_at_10") == served(found, "hr_at_5") == ()


def test_titles_or_else_ids():
    items = pd.DataFrame({"item": [7, 8, 9], "title": [" Heat\n(1995) ", None, float("nan")]})
    assert names_of(items) == ["Heat (1995)", "item 8", "item 9"]
    assert names_of(items[["item"]]) == ["item 7", "item 8", "item 9"]


def test_the_table_keeps_its_columns_whatever_the_title():
    text = markdown(liked(PREFERENCE, np.array([0, 2]), 1), ["A|B", "c", "d"], "title")
    assert "## Group 0 (1 clients)" in text and r"| A\|B | 0.9000 | c | +0.3000 |" in text
