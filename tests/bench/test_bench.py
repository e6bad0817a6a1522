"""The bench's own functions on a small federation. Bounds are loose: a busy machine must not fail the suite; the real
figures are `make bench`'s."""

import numpy as np
import pytest

from tests.bench import measure

pytestmark = pytest.mark.bench
SMALL = {"source": "synthetic", "users": 150, "items": 400}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(measure, "source", lambda name: SMALL)


@pytest.mark.parametrize("name", [n for n in measure.METHODS if "fedvlr" not in n])
def test_the_compiled_path_is_far_faster_than_the_loop(name):
    """GPFedRec's stage also writes out every client's whole table, which the loop has anyway."""
    assert measure.ratios(name, "ml-100k", 3)["ratio_to_loop"] > (4 if name == "gpfedrec" else 10)


def test_views_are_mixed_faster_than_in_the_loop():
    assert measure.ratios("fcf + fedvlr", "ml-100k", 3)["ratio_to_loop"] > 1.5


def test_the_clients_of_the_loop_stand_for_all_sizes():
    size = np.random.default_rng(1).geometric(0.01, 943)
    who = measure.some_clients(size)
    assert len(np.unique(who)) == measure.LOOPED and size[who].mean() == pytest.approx(size.mean(), rel=0.05)
    assert measure.some_clients(size[:7]).tolist() == list(range(7))


def test_stages_add_up_to_the_round():
    config = measure.config_of("pfedrec", "ml-100k")
    found = measure.stages(config, *measure.prepared(config), repeats=3)
    parts = sum(found[k] for k in ("samples", "train", "aggregate", "store", "server", "evaluate"))
    assert 0.5 * found["round"] < parts <= 1.05 * found["round"]


@pytest.mark.ray
def test_an_empty_round_on_ray_is_cheap():
    assert measure.ray_rounds("ml-100k", 2)["empty_round_s"] < 0.2
