"""What content is worth, and to whom: worked by hand."""

import math

import numpy as np
import pytest

from fedray.evaluation.ablation import CONTENT, Ablated, activity, gains, metric_of, metrics, with_slices
from fedray.evaluation.table import ablation_markdown
from tests.evaluation.naive import clients as of_lists


def test_quarters_by_activity_with_ties_going_down():
    found = activity(np.array([9, 1, 1, 1, 2, 3, 4, 8]))
    assert {name: (label, mask.nonzero()[0].tolist()) for name, (label, mask) in found.items()} == {
        "activity_q1": ("1", [1, 2, 3]),
        "activity_q2": ("2", [4]),
        "activity_q3": ("3 to 4", [5, 6]),
        "activity_q4": ("8 to 9", [0, 7]),
    }
    assert {name: label for name, (label, _) in activity(np.full(5, 3)).items()} == {"activity_q1": "3"}


def case():
    """Five clients, four with a test item; item 9 is nobody's in training."""
    train = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 5]]
    data = of_lists(train, [[]] * 5, [[9], [3], [9], [5], []], 10)
    full = {"client": np.arange(4), "ndcg_at_10": np.array([0.5, 0.5, 1.0, 0.0])}
    less = {"client": np.arange(4), "ndcg_at_10": np.array([0.0, 0.5, 0.6, 0.3])}
    return data, full, {CONTENT: Ablated({"ndcg_at_10": 0.35}, {}, less)}


def test_gains_are_paired_client_by_client():
    data, full, parts = case()
    found = gains(full, parts, "ndcg_at_10", data, ("cold_items",))
    assert list(found) == ["all", *(f"activity_q{q}" for q in (1, 2, 3, 4)), "cold_items"]
    assert [g.clients for g in found.values()] == [4, 1, 1, 1, 1, 2]
    assert [g.mean for g in found.values()] == pytest.approx([0.15, 0.5, 0.0, 0.4, -0.3, 0.45])
    each = np.array([0.35, -0.15, 0.25, -0.45])
    assert found["all"].error == pytest.approx(math.sqrt((each**2).sum() / 3 / 4))
    assert found["cold_items"].error == pytest.approx(0.05) and math.isnan(found["activity_q1"].error)
    logged = metrics(parts, found, "ndcg_at_10")
    assert logged["ablation/without_content/ndcg_at_10"] == 0.35
    assert logged["content_gain/cold_items/ndcg_at_10"] == pytest.approx(0.45)
    assert logged["content_gain/cold_items/ndcg_at_10_se"] == pytest.approx(0.05)


def test_without_the_ablation_or_anybody_tested_there_is_no_gain():
    data, full, parts = case()
    assert gains(full, {}, "ndcg_at_10", data, ()) == {}
    assert metric_of({"client": np.zeros(0)}, "ndcg_at_10") == ""
    assert gains({"client": np.zeros(0)}, parts, "", data, ()) == {}


@pytest.mark.parametrize(
    ("names", "lead", "found"),
    [(["hr_at_50", "ndcg_at_10"], "hr_at_50", "ndcg_at_10"), (["hr_at_5", "hr_at_50"], "hr_at_50", "hr_at_50"),
     (["hr_at_5"], "mrr_at_50", "hr_at_5")],
)  # fmt: skip
def test_gains_are_read_by_ndcg_at_10_where_there_is_one(names, lead, found):
    assert metric_of({"client": np.zeros(1), **{n: np.zeros(1) for n in names}}, lead) == found


def test_slices_and_the_table_beside_the_full_model():
    data, full, parts = case()
    sliced = with_slices(parts, data, ("cold_items",))
    assert sliced[CONTENT].test["cold_items/ndcg_at_10"] == pytest.approx(0.3)
    text = ablation_markdown({"ndcg_at_10": 0.5}, {CONTENT: parts[CONTENT].test, "without_my_text": {}}, [10])
    lines = text.splitlines()
    assert lines[2] == "| test | this run | without content | without my_text |"
    assert lines[4] == "| ndcg_at_10 | 0.5000 | 0.3500 | - |"
