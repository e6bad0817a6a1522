"""Packing equality at the size and settings of the paper: ML-100K, d 32, its learning rates."""

import numpy as np
import pytest

from fedray.config import make_config
from fedray.data.dataset import client_data, load
from fedray.data.protocols import protocol
from tests.helpers import run

PAPER = {"backbone": {"name": "fcf", "dim": 32, "lr": 0.1}, "plugins": {"dualper": {}}}


@pytest.mark.data
@pytest.mark.parametrize("path", ["compiled", "vmap"])
def test_one_two_and_five_hosts_give_the_same_bits(real_data, path):
    source = {"source": "folder", "path": str(real_data("ml-100k"))}
    train = {"rounds": 2, "batch_size": 256, "negatives": 4, "path": path}
    config = make_config({**PAPER, "data": source, "train": train})
    data = client_data(load(config.data, protocol("clean")))
    everyone = np.random.default_rng(0).permutation(len(data))
    whole, reports, outcome, _ = run(config, data)
    for hosts in (2, 5):
        split, split_reports, split_outcome, _ = run(config, data, np.array_split(everyone, hosts))
        np.testing.assert_array_equal(split.state.params["item_embedding"], whole.state.params["item_embedding"])
        assert [r.metrics for r in split_reports] == [r.metrics for r in reports]
        assert split_outcome.test == outcome.test
