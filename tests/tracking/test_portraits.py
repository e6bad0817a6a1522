"""Pictures of clients say what they show, and are not there where there is nothing to show."""

import math

import numpy as np

from fedray.evaluation.ablation import Ablated, Gain
from fedray.tracking.figures import png, quantile_table
from fedray.tracking.portraits import ablation, content_gain, router
from fedray.types import RoundReport

WEIGHTS = {"router/image": [0.2, 0.7, np.nan, 0.4], "router/text": [0.8, 0.3, np.nan, 0.6]}
USERS = {"client": np.arange(4), "ndcg_at_10": np.zeros(4), **{k: np.array(v) for k, v in WEIGHTS.items()}}


def reports(n=3):
    def of(r):
        means = {"router/image": 0.5 + r / 100, "router/text": 0.5 - r / 100}
        spread = {f"{k}_{p}": v + d for k, v in means.items() for p, d in (("p10", -0.1), ("p50", 0), ("p90", 0.1))}
        return RoundReport(r, {**means, **spread}, {}, 0, 0, 1)

    return [of(r) for r in range(1, n + 1)]


def test_the_router_has_a_line_and_a_band_a_view_and_a_step_a_client():
    figure = router(reports(), USERS, 2, "fedvlr")
    drift, people = figure.axes
    assert [line.get_label() for line in drift.lines] == ["image", "text", "all alike", "selected round"]
    assert list(drift.lines[0].get_ydata()) == [0.51, 0.52, 0.53] and len(drift.collections) == 2
    assert len(people.collections) == 2 and people.get_xlim() == (0, 3)
    assert people.get_xlabel() == "3 clients, by weight of image\nheaviest view: image 1, text 2"
    corners = people.collections[0].get_paths()[0].vertices
    assert {(0.0, 0.7), (1.0, 0.7), (1.0, 0.4), (2.0, 0.4), (2.0, 0.2), (3.0, 0.2)} <= set(map(tuple, corners))
    assert png(figure).startswith(b"\x89PNG")
    assert not quantile_table(reports()[0].metrics)  # those of quality alone


def test_nobody_with_weights_or_one_round_can_be_drawn_and_no_router_is_no_picture():
    nobody = {k: v[2:3] for k, v in USERS.items()}
    assert png(router(reports(1), nobody, 1))
    assert router(reports(), {"client": np.arange(4), "ndcg_at_10": np.zeros(4)}, 1) is None


def test_ablation_has_a_bar_a_model_and_a_panel_for_cold_items():
    full = Ablated({"ndcg_at_10": 0.3, "among_cold/ndcg_at_10": 0.2}, {"ndcg_at_10": 0.01})
    parts = {
        f"without_{k}": Ablated({"ndcg_at_10": v}, {"ndcg_at_10": 0.02}) for k, v in (("id", 0.1), ("my_text", 0.2))
    }
    (axes,) = ablation(full, parts, "ndcg_at_10").axes
    assert [b.get_width() for b in axes.patches] == [0.3, 0.1, 0.2]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["full model", "without id", "without my_text"]
    cold = {k: Ablated({**a.test, "among_cold/ndcg_at_10": 0.1}, a.errors) for k, a in parts.items()}
    figure = ablation(full, cold, "ndcg_at_10", "fedvlr")
    assert [b.get_width() for b in figure.axes[1].patches] == [0.2, 0.1, 0.1] and png(figure)
    assert ablation(full, {}, "ndcg_at_10") is None and ablation(full, parts, "") is None


def test_content_gain_has_a_bar_a_group():
    gains = {
        "all": Gain("all users", 9, 0.01, 0.002),
        "activity_q1": Gain("1 to 3", 8, 0.03, 0.01),
        "cold_items": Gain("cold items", 1, -0.02, math.nan),
    }
    (axes,) = (figure := content_gain(gains, "ndcg_at_10", "fedvlr")).axes
    assert [b.get_height() for b in axes.patches] == [0.01, 0.03, -0.02] and png(figure)
    labels = [t.get_text() for t in axes.get_xticklabels()]
    assert labels == ["all users\n(9 users)", "1 to 3\ntraining items\n(8 users)", "cold items\n(1 users)"]
    assert content_gain({}, "ndcg_at_10") is None
