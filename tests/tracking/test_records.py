"""Names in MLflow under a protocol with options: nothing mixes with the plain protocol's."""

import pytest

from fedray.config import make_config
from fedray.tracking import records


def config(protocol="clean", **options):
    return make_config({"evaluation": {"protocol": protocol, "options": options}})


@pytest.mark.parametrize(
    ("made", "experiment", "metric"),
    [
        (config(), "fedray/ku/clean", "val/ndcg_at_10"),
        (config(ties="pessimistic"), "fedray/ku/clean", "val/ndcg_at_10"),
        (config(ties="index"), "fedray/ku/clean + ties=index", "val/ndcg_at_10"),
        (config("paper/gfmfr"), "fedray/ku/paper/gfmfr", "val/hr_at_50"),
        (config("paper/fedrap"), "fedray/ku/paper/fedrap", "test/hr_at_10"),
        (config(select_split="test"), "fedray/ku/clean + select_split=test", "test/ndcg_at_10"),
    ],
)
def test_experiment_and_primary_metric(made, experiment, metric):
    assert records.experiment_name(made, "ku") == experiment
    assert records.primary_metric(made) == metric


def test_params_and_notes_name_protocol_and_options():
    made = config("paper/fedvlr", mask_item0=True)
    params = records.params(made, "fcf")
    name = "paper/fedvlr + mask_item0=true"
    assert params["protocol"] == name and params["evaluation.options.mask_item0"] == "True"
    assert "evaluation.options.ties" not in params
    note = records.experiment_note(made, {"name": "ku"})
    assert f"`{name}`" in note and "BUT mask_item0=true (instead of mask_item0=false)" in note
