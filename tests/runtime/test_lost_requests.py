"""A request whose answer nobody waits for is not lost unseen."""

import numpy as np
import pytest

from fedray.errors import FedrayError
from fedray.federated import rounds
from fedray.methods import build
from fedray.runtime import executor
from fedray.runtime.executor import RayExecutor
from tests import helpers
from tests.helpers import PFEDREC, tiny_config, tiny_data
from tests.runtime.stand_in_actors import StandInRay, stand_ins

DATA = tiny_data()
PARTS = [np.arange(0, 20, 2), np.arange(1, 20, 2)]
CONFIG = tiny_config(PFEDREC, {"rounds": 5})


def run(monkeypatch, most_restarts, lost_after):
    """The outcome on stand-ins, of which one does not hear that it is to remember its state after that round."""
    method = build(CONFIG, DATA.n_items, None)
    actors, births = stand_ins(CONFIG, method, DATA, PARTS)
    ray = StandInRay(actors)
    monkeypatch.setattr(executor, "ray", ray)
    monkeypatch.setattr(executor, "get", ray.get)
    found, now = RayExecutor(actors, DATA.client, method, births, most_restarts), rounds.start(CONFIG, method)
    while not rounds.finished(now):
        if now.state.round == lost_after:
            actors[1].unheard = ["keep_best"]
        now, _ = rounds.step(now, found)
    return rounds.finish(now, found), found.restarts


@pytest.mark.parametrize("after", range(5))
def test_an_actor_that_did_not_hear_what_to_remember_is_restored(monkeypatch, after):
    _, _, expected, _ = helpers.run(CONFIG, DATA)
    found, restarts = run(monkeypatch, 3, after)
    assert found == expected
    assert restarts == 1  # the metric rises in every round of so short a run


def test_where_nothing_is_restored_that_is_an_error(monkeypatch):
    with pytest.raises(FedrayError, match="gone"):
        run(monkeypatch, 0, 1)
