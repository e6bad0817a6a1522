"""The control with federation off: right, blind under honest rules, and clairvoyant under the paper's."""

import numpy as np
import pytest

from fedray.data.negatives import candidates
from fedray.errors import NonFiniteLossError
from fedray.federated import rounds
from fedray.federated.clients import measure
from fedray.methods import build
from tests.federated.test_against_loop import FEDNCF, FEDRAP, GPFEDREC, of
from tests.helpers import FEDAVG, PFEDREC, executor, first, tiny_config, tiny_data
from tests.oracles.naive_loop import federation
from tests.properties.test_packing import packings

BACKBONES = {
    "pfedrec": PFEDREC,
    "fedavg": FEDAVG,
    "fedncf": FEDNCF,
    "fedrap": of(FEDRAP, 2, item_bias=True),
    "gpfedrec": GPFEDREC,
}
PAPER = {"protocol": "paper/pfedrec", "k": [5, 10]}


def naive_scores(config, data):
    """Every client as a federation of one."""
    alone = [federation(executor(config, data, [[c]])._hosts[0]) for c in range(len(data))]
    return np.stack([one.scores(0) for one in alone]).astype(np.float32)


@pytest.mark.parametrize("decay", [0.0, 1e-3])
@pytest.mark.parametrize("path", ["compiled", "vmap"])
@pytest.mark.parametrize("name", BACKBONES)
def test_it_is_each_client_as_a_federation_of_its_own(name, path, decay):
    data = tiny_data(clients=8)
    config = tiny_config(BACKBONES[name], {"path": path, "weight_decay": decay, "local_epochs": 2})
    where = executor(config, data)
    found = where.local_only(first(config, data), config.train.rounds)
    scores = naive_scores(config, data)
    for split in ("valid", "test"):
        expected = measure(where._hosts[0], np.arange(len(data)), scores, split).means()
        assert found[split].means() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("path", ["compiled", "vmap"])
def test_packing_changes_nothing(path):
    """`score_std` included, which any last bit of a score would move."""
    data = tiny_data(clients=23)
    config = tiny_config(PFEDREC, {"path": path, "weight_decay": 1e-3})
    whole = executor(config, data).local_only(first(config, data), 3)
    for parts in packings(23).values():
        assert executor(config, data, parts).local_only(first(config, data), 3) == whole


def test_it_leaves_the_federation_as_it_was():
    config, data = tiny_config(PFEDREC), tiny_data()
    where, begun = executor(config, data), first(config, data)
    host = where._hosts[0]
    before = {k: v.copy() for k, v in host.store.private.items()}
    once = where.local_only(begun, 2)
    assert where.local_only(begun, 2) == once
    for k, v in before.items():
        np.testing.assert_array_equal(where._hosts[0].store.private[k], v)


def test_under_clean_rules_a_client_alone_is_near_chance():
    """30 rounds of 400 clients alone; chance is 10 in the items that are ranked."""
    data = tiny_data(clients=400, items=150, longest=12)
    config = tiny_config(PFEDREC, {"batch_size": 64})
    found = executor(config, data).local_only(first(config, data), 30)["test"]
    hr, error = found.means(), found.standard_errors()
    chance = np.mean(10 / (150 - data.train.lengths() - 1))
    assert abs(hr["hr_at_10"] - chance) < 3.5 * error["hr_at_10"]
    sampled = np.mean(10 / (1 + candidates(0, data)["test"].lengths()))
    assert abs(hr["sampled99_hr_at_10"] - sampled) < 3.5 * error["sampled99_hr_at_10"]


def test_under_the_papers_rules_the_same_client_alone_finds_what_its_negatives_spare():
    data = tiny_data(clients=100, items=150, longest=12)
    config = tiny_config(PFEDREC, {"batch_size": 64}, evaluation=PAPER)
    found = executor(config, data).local_only(first(config, data), 30)
    assert found["test"].means()["hr_at_10"] > 0.9
    assert found["valid"].means()["hr_at_10"] > 0.9


def test_a_control_that_diverges_costs_the_control_and_not_the_run():
    """Learning rates that the mean over clients tames can be too large for a client alone."""
    config = tiny_config(PFEDREC, evaluation={"k": [5, 10], "local_only": True})
    where = executor(config, tiny_data())
    state = rounds.start(config, build(config, 60))
    while not rounds.finished(state):
        state, _ = rounds.step(state, where)

    def diverge(begun, n):
        raise NonFiniteLossError("the loss of 3 clients is not finite")

    where.local_only = diverge
    outcome = rounds.finish(state, where)
    assert outcome.local_only == {}
    assert outcome.local_only_diverged == "the loss of 3 clients is not finite"
    assert 0 <= outcome.test["ndcg_at_10"] <= 1
