"""A run with content leaves pictures of its clients and tables without its parts."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from fedray.config import make_config
from fedray.evaluation import users
from fedray.job import train

PICTURES = {"figures.router.png", "figures.ablation.png", "figures.content_gain.png"}


def trained(folder, plugins, **evaluation):
    """(Result, what the terminal shows, name -> file beside the run's own)."""
    config = make_config(
        {
            "data": {"source": "synthetic", "users": 40, "items": 60},
            "backbone": {"name": "fcf", "dim": 4},
            "plugins": plugins,
            "train": {"rounds": 2},
            "evaluation": {"controls": False, **evaluation},
            "runtime": {"executor": "serial"},
            "tracking": {"backend": "jsonl", "uri": str(folder)},
        }
    )
    console = Console(file=io.StringIO(), width=120)
    result = train(config, console)
    files = {f.name.split(".", 1)[1]: f for f in folder.iterdir()}
    return result, console.file.getvalue(), files


def test_fedvlr_leaves_all_of_them(tmp_path):
    result, shown, files = trained(tmp_path, {"fedvlr": {"views": ["image", "text"]}}, slices=["cold_users"])
    assert set(files) >= PICTURES and all(files[name].read_bytes().startswith(b"\x89PNG") for name in PICTURES)
    found = users.read(files["users.parquet"])
    assert users.traits_in(found) == ["router/image", "router/text"]
    assert found["router/image"] + found["router/text"] == pytest.approx(1.0)
    end = json.loads(files["jsonl"].read_text().splitlines()[-1])["metrics"]
    summary = result.summary()
    for name in ("without_id", "without_image", "without_text", "without_content"):
        assert end[f"ablation/{name}/ndcg_at_10"] == summary["ablation"][name]["ndcg_at_10"]
        assert "cold_users/ndcg_at_10" in summary["ablation"][name]
    full, less = summary["test"]["ndcg_at_10"], summary["ablation"]["without_content"]["ndcg_at_10"]
    assert end["content_gain/all/ndcg_at_10"] == pytest.approx(full - less, abs=1e-6)
    assert end["content_gain/cold_users/ndcg_at_10"] == summary["content_gain"]["cold_users"]["mean"]
    assert "the same model without a part" in shown and "without" in shown


def test_gfmfr_leaves_pictures_of_its_groups_and_what_they_like(tmp_path):
    result, _, files = trained(tmp_path, {"gfmfr": {"groups": 3, "fit_epochs": 2}})
    pictures = {"figures.groups.png", "figures.groups_map.png", "figures.group_items.png"}
    assert {name for name in files if name.endswith("png")} == pictures
    assert all(files[name].read_bytes().startswith(b"\x89PNG") for name in pictures)
    group = users.read(files["users.parquet"])["group"]
    assert len(group) == 40 and set(group) <= {0, 1, 2}
    text = json.loads(files["jsonl"].read_text().splitlines()[-1])["texts"]["groups.md"]
    largest = np.bincount(result.outcome.groups.group).argmax()
    assert f"## Group {largest} (" in text and "item " not in text  # synthetic items have titles


@pytest.mark.parametrize(
    ("plugins", "settings", "left"),
    [({}, {}, set()), ({"fedvlr": {}}, {"ablation": False}, {"figures.router.png"}),
     ({"mlp": {}}, {}, PICTURES - {"figures.router.png"})],
    ids=["fcf", "asked not to", "mlp"],
)  # fmt: skip
def test_only_what_there_is_to_draw_is_drawn(tmp_path, plugins, settings, left):
    _, shown, files = trained(tmp_path, plugins, **settings)
    assert {name for name in files if name.endswith("png")} == left
    assert ("without a part" in shown) == ("figures.ablation.png" in left)
