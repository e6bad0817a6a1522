"""How many threads BLAS may use is no part of a result: an actor on half a CPU has one, a serial run has all."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from fedray.federated.scoring import score_clients
from tests.helpers import run, tiny_config, tiny_data

DATA = tiny_data(clients=8, items=500, longest=120)
WIDE = {"dim": 32, "lr": 0.02, "item_lr_scale": 0.1, "hidden": [256, 64]}


@pytest.mark.parametrize("name", ["fedncf", "gpfedrec"])
def test_products_large_enough_for_many_threads_give_the_same_bits_on_any_number(name):
    found = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            config = tiny_config({"backbone": {"name": name, **WIDE}}, {"batch_size": 2048})
            final, _, _, where = run(config, DATA)
            scores = [s for _, s in score_clients(final.method, where._hosts[0].store, final.state.params)]
        found.append((*final.state.params.values(), *where._hosts[0].store.private.values(), *scores))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
