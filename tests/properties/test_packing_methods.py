"""How clients are packed changes nothing for methods with tables of their own, shared layers, noise, a server optimiser
or targets of their own; at sizes that fit no vector register."""

import numpy as np
import pytest

from tests.helpers import run, tiny_config, tiny_data
from tests.properties.test_packing import assert_same, everything, packings

DATA = tiny_data(clients=17, items=61)
N = len(DATA)
FEW = {k: v for k, v in packings(N).items() if k != "sevens"}  # 17, 2, 5 and 1 hosts
BACKBONES = {
    "fedncf": {"name": "fedncf", "dim": 7, "hidden": [9, 5], "item_lr_scale": 0.5},
    "neumf": {"name": "fedncf", "dim": 5, "hidden": [7], "gmf": True, "weighting": "samples", "item_lr_scale": 0.5},
    "fedrap": {"name": "fedrap", "dim": 7, "item_lr": 0.5},
    "gpfedrec": {"name": "gpfedrec", "dim": 7, "hidden": [9, 5], "item_lr_scale": 5.0, "user_lr_scale": 10.0},
    "biased fcf": {"name": "fcf", "dim": 6, "item_bias": True},
}
PLUGINS = {"noise": {"laplace_ldp": {"scale": 0.01}}, "server adam": {"fedopt": {"eps": 1e-3}}}


def own(where):
    """Private and whole tables in client order."""
    found = {}
    for host in where._hosts:
        for i, c in enumerate(host.data.client):
            found[int(c)] = [t.table(i) for t in host.store.own.values()] + [v[i] for v in host.store.whole.values()]
    return [x for c in sorted(found) for x in found[c]]


def assert_packed_alike(config, parts=FEW):
    whole = run(config, DATA)
    for packing in parts.values():
        other = run(config, DATA, packing)
        assert_same(everything(*whole), everything(*other))
        for a, b in zip(own(whole[3]), own(other[3]), strict=True):
            np.testing.assert_array_equal(a, b)
        assert other[2].local_only == whole[2].local_only
        if whole[0].targets is not None:
            np.testing.assert_array_equal(whole[0].targets.client, other[0].targets.client)
            np.testing.assert_array_equal(*(r[0].targets.tables["item_embedding"] for r in (whole, other)))


@pytest.mark.parametrize("path", ["compiled", "vmap"])
@pytest.mark.parametrize("name", BACKBONES)
def test_each_backbone(name, path):
    fast = path == "compiled"
    train = {"path": path, "clients_per_round": 0.6, "weight_decay": 1e-3, "rounds": 3 if fast else 2}
    config = tiny_config({"backbone": BACKBONES[name]}, train, evaluation={"k": [5, 10], "local_only": fast})
    assert_packed_alike(config, FEW if fast else {"five": FEW["five shuffled"]})


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("name", BACKBONES)
def test_each_plugin_on_each_backbone(name, plugin):
    config = tiny_config({"backbone": BACKBONES[name], "plugins": PLUGINS[plugin]}, {"clients_per_round": 0.6})
    assert_packed_alike(config, {k: FEW[k] for k in ("two", "five shuffled")})


@pytest.mark.parametrize("path", ["compiled", "vmap"])
@pytest.mark.parametrize("name", ["fedncf", "fedrap"])
def test_pairs_clipping_and_private_steps(name, path):
    train = {"loss": "bpr", "private_steps": 2, "private_weight_decay": 0.01, "path": path, "rounds": 2}
    plugins = {"laplace_ldp": {"scale": 0.01, "clip": 0.5}}
    config = tiny_config({"backbone": BACKBONES[name], "plugins": plugins}, train)
    assert_packed_alike(config, {"two": FEW["two"]})


@pytest.mark.parametrize("name", BACKBONES)
def test_an_empty_host_changes_nothing(name):
    assert_packed_alike(tiny_config({"backbone": BACKBONES[name]}), {"none": [np.zeros(0, np.int64), np.arange(N)]})
