"""The smallest federations, on every backbone and loss: nothing to train, nothing to draw, nobody beside one."""

import numpy as np
import pytest

from tests.evaluation.naive import clients
from tests.helpers import run, tiny_config
from tests.properties.test_packing_methods import BACKBONES

DATA = {
    "one item": clients([[0]], [[]], [[]], 1),
    "a client that knows every item": clients([[0, 1, 2], [0]], [[], [1]], [[], [2]], 3),
    "one client": clients([[0, 1]], [[2]], [[3]], 10),
    "nobody has training items": clients([[], []], [[1], [2]], [[3], [4]], 6),
}


@pytest.mark.parametrize("path", ["compiled", "vmap"])
@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("name", BACKBONES)
def test_they_run_to_the_end_with_finite_numbers(name, loss, path):
    train = {"path": path, "loss": loss, "weight_decay": 1e-3, "rounds": 2}
    plugins = {"laplace_ldp": {"scale": 0.01}, "fedopt": {"eps": 1e-3}}
    config = tiny_config({"backbone": BACKBONES[name], "plugins": plugins}, train)
    for data in DATA.values():
        final, _, _, where = run(config, data)
        store = where._hosts[0].store
        assert all(np.isfinite(v).all() for v in [*final.state.params.values(), *store.private.values()])
        assert final.state.round == 2


@pytest.mark.parametrize("name", BACKBONES)
def test_a_client_without_pairs_changes_nothing_for_the_others(name):
    """It knows every item, so under a loss on pairs it has no sample: no weight in the mean, nothing of it moves."""
    full = clients([[0, 1, 2, 3], [0, 2]], [[], [1]], [[], [3]], 4)
    config = tiny_config({"backbone": BACKBONES[name]}, {"loss": "bpr", "rounds": 1})
    both, alone = run(config, full), run(config, full.take(np.array([1])))
    store = both[3]._hosts[0].store
    start = both[0].method.init_clients(0, np.arange(2))
    for k, v in store.private.items():
        np.testing.assert_array_equal(v[0], start[k][0])
        np.testing.assert_array_equal(v[1], alone[3]._hosts[0].store.private[k][0])
    if name != "gpfedrec":  # whose server means the tables of all that took part
        for k, v in alone[0].state.params.items():
            np.testing.assert_array_equal(both[0].state.params[k], v)
