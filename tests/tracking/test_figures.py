"""Figures say what they show."""

from fedray.tracking.figures import curves, png, quantile_table, quantiles
from fedray.types import RoundReport


def reports(n=5):
    return [
        RoundReport(
            r,
            {"train/loss": 1 / r, "val/ndcg_at_10": r / 100, "val/ndcg_at_10_p50": 0.1, "val/ndcg_at_10_p90": 0.4},
            {"train": 0.1, "evaluate": 0.05, "round": 0.2},
            1_000_000,
            500_000,
            10,
        )
        for r in range(1, n + 1)
    ]


def test_curves_have_titles_labels_and_every_control():
    figure = curves(reports(), "ndcg_at_10", {"popularity": 0.02, "ease": 0.08}, "fcf")
    assert len(figure.axes) == 4
    assert all(a.get_title(loc="left") and a.get_xlabel() and a.get_ylabel() for a in figure.axes)
    quality = figure.axes[1]
    assert list(quality.lines[0].get_ydata()) == [0.01, 0.02, 0.03, 0.04, 0.05]
    legend = [t.get_text() for t in quality.get_legend().get_texts()]
    assert legend == ["this run", "ease 0.080", "popularity 0.020"]
    traffic = figure.axes[3].lines[0]
    assert list(traffic.get_xdata()) == [1.5, 3.0, 4.5, 6.0, 7.5]
    assert png(figure).startswith(b"\x89PNG")


def test_a_run_of_one_round_and_one_without_validation_can_be_drawn():
    (one,) = reports(1)
    assert png(curves([one]))
    assert png(curves([RoundReport(1, {"train/loss": 1.0}, {"round": 0.1}, 0, 0, 1)]))


def test_quantiles_are_read_from_names():
    assert quantile_table(reports(1)[0].metrics) == {"val/ndcg_at_10": {50: 0.1, 90: 0.4}}
    figure = quantiles(reports(1)[0].metrics)
    assert figure is not None and [b.get_height() for b in figure.axes[0].patches] == [0.1, 0.4]
    assert quantiles({"val/ndcg_at_10": 0.3}) is None
