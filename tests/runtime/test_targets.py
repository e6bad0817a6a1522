"""Tables of single clients on Ray: the serial executor's bits, and to each actor those of its own clients alone."""

import numpy as np
import pytest

from fedray.federated import rounds
from fedray.federated.method import Uploads
from fedray.methods import build
from fedray.runtime.executor import RayExecutor, get
from tests.helpers import run, tiny_config, tiny_data
from tests.runtime.test_ray import crew_of, numbers, ray_run

pytestmark = pytest.mark.ray
DATA = tiny_data(clients=11)
GPFEDREC = {
    "backbone": {"name": "gpfedrec", "dim": 5, "hidden": [6], "lr": 0.05, "item_lr_scale": 2.0},
    "plugins": {"laplace_ldp": {"scale": 0.01}},
}
TRAIN = {"clients_per_round": 0.7}


def config_of(actors):
    return tiny_config(GPFEDREC, TRAIN, runtime={"actors": actors})


@pytest.mark.slow
def test_one_two_and_five_actors_equal_serial(ray_cluster):
    _, reports, outcome, _ = run(tiny_config(GPFEDREC, TRAIN), DATA)
    for actors in (1, 2, 5):
        assert numbers(*ray_run(config_of(actors), DATA)) == numbers(reports, outcome)


def test_targets_reach_the_actor_of_their_client_alone(ray_cluster, monkeypatch):
    """What is put for an actor: the last cohort's clients that are its own, each with its own table."""
    import ray

    put, real = [], ray.put
    config = config_of(2)
    with crew_of(config, DATA) as crew:
        executor = RayExecutor(crew.clients, DATA.client, build(config, DATA.n_items))
        homes = [set(get(a.members.remote()).tolist()) for a in crew.clients]
        state, _ = rounds.step(rounds.start(config, build(config, DATA.n_items)), executor)
        monkeypatch.setattr(ray, "put", lambda value: put.append(value) or real(value))
        _, report = rounds.step(state, executor)
    parts, sent = [p for p in put if isinstance(p, Uploads)], state.targets
    assert report.clients_ok == 7 == len(sent.client)
    assert [set(p.client.tolist()) for p in parts] == [home & set(sent.client.tolist()) for home in homes]
    for part in parts:
        where = np.searchsorted(sent.client, part.client)
        np.testing.assert_array_equal(part.tables["item_embedding"], sent.tables["item_embedding"][where])
