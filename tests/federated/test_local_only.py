"""The control with federation off: right, blind under honest rules, and clairvoyant under the paper's."""

import numpy as np
import pytest

from fedray.data.negatives import candidates
from fedray.federated.clients import measure, samples_of
from tests.helpers import FEDAVG, PFEDREC, executor, tiny_config, tiny_data
from tests.oracles.naive_loop import one_round
from tests.properties.test_packing import packings

TABLE, WEIGHT, BIAS = "item_embedding", "head_weight", "head_bias"
PAPER = {"protocol": "paper/pfedrec", "k": [5, 10]}


def naive_scores(host, config):
    """Every client as a federation of one, its own whole table carried from round to round."""
    method, scores = host.method, []
    for c in range(len(host.data)):
        table = method.init_server(config.seed)[TABLE]
        head = method.init_clients(config.seed, host.data.client[[c]])
        heads = {host.data.client[c]: (head[WEIGHT][0], head[BIAS][0], table)}
        for round_ in range(config.train.rounds):
            samples = samples_of(host, np.array([c]), round_)
            phases, train = method.phases(round_), config.train
            table = one_round(table, heads, samples, phases, train.batch_size, train.weight_decay)
        w, b, own = heads[host.data.client[c]]
        scores.append(own @ w + b)
    return np.stack(scores).astype(np.float32)


@pytest.mark.parametrize("decay", [0.0, 1e-3])
@pytest.mark.parametrize("path", ["compiled", "vmap"])
@pytest.mark.parametrize("backbone", [PFEDREC, FEDAVG], ids=["pfedrec", "fedavg"])
def test_it_is_each_client_as_a_federation_of_its_own(backbone, path, decay):
    data = tiny_data(clients=8)
    config = tiny_config(backbone, {"path": path, "weight_decay": decay, "local_epochs": 2})
    where = executor(config, data)
    found, host = where.local_only(config.train.rounds), where._hosts[0]
    scores = naive_scores(host, config)
    for split in ("valid", "test"):
        expected = measure(host, np.arange(len(data)), scores, split).means()
        assert found[split].means() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("path", ["compiled", "vmap"])
def test_packing_changes_nothing(path):
    """`score_std` included, which any last bit of a score would move."""
    data = tiny_data(clients=23)
    config = tiny_config(PFEDREC, {"path": path, "weight_decay": 1e-3})
    whole = executor(config, data).local_only(3)
    for parts in packings(23).values():
        assert executor(config, data, parts).local_only(3) == whole


def test_it_leaves_the_federation_as_it_was():
    where = executor(tiny_config(PFEDREC), tiny_data())
    host = where._hosts[0]
    before = {k: v.copy() for k, v in host.store.private.items()}
    first = where.local_only(2)
    assert where.local_only(2) == first
    for k, v in before.items():
        np.testing.assert_array_equal(where._hosts[0].store.private[k], v)


def test_under_clean_rules_a_client_alone_is_near_chance():
    """30 rounds of 400 clients alone; chance is 10 in the items that are ranked."""
    data = tiny_data(clients=400, items=150, longest=12)
    where = executor(tiny_config(PFEDREC, {"batch_size": 64}), data)
    found = where.local_only(30)["test"]
    hr, error = found.means(), found.standard_errors()
    chance = np.mean(10 / (150 - data.train.lengths() - 1))
    assert abs(hr["hr_at_10"] - chance) < 3.5 * error["hr_at_10"]
    sampled = np.mean(10 / (1 + candidates(0, data)["test"].lengths()))
    assert abs(hr["sampled99_hr_at_10"] - sampled) < 3.5 * error["sampled99_hr_at_10"]


def test_under_the_papers_rules_the_same_client_alone_finds_what_its_negatives_spare():
    data = tiny_data(clients=100, items=150, longest=12)
    found = executor(tiny_config(PFEDREC, {"batch_size": 64}, evaluation=PAPER), data).local_only(30)
    assert found["test"].means()["hr_at_10"] > 0.9
    assert found["valid"].means()["hr_at_10"] > 0.9
