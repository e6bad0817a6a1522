"""What scorers without any learning earn under `paper/fedvlr`: on KU the figures measured with its authors' files, two
of which equal the best results published for it; on a small twin the same, from the definition."""

import math

import numpy as np
import pytest

from fedray.config import make_config
from fedray.data.dataset import client_data, load
from fedray.data.protocols import rules_of
from fedray.evaluation.controls import controls
from tests.data import make
from tests.evaluation.naive import clients
from tests.evaluation.test_controls import dataset

MASKED, HONEST = {"mask_item0": True}, {"ties": "pessimistic"}


def rules(**options):
    return rules_of(make_config({"evaluation": {"protocol": "paper/fedvlr", "options": options}}).evaluation)


def measured(data, table, k, **options):
    """Control -> split -> (HR@k, NDCG@k)."""
    found = controls(table, data, rules(**options), (k, 50), {}, None)
    return {
        name: {split: (m[f"hr_at_{k}"], m[f"ndcg_at_{k}"]) for split, m in by_split.items()}
        for name, by_split in found.items()
    }


@pytest.fixture(scope="module")
def ku(request):
    """`ku(**options)`: all controls on KU at K 50, items numbered as in its files."""
    folder = request.getfixturevalue("real_data")("ku")
    table = make.read(folder, "paper/fedvlr", split="given")
    assert table.interactions.item_ids.tolist() == list(range(560))
    return lambda **options: measured(client_data(table), table, 50, **options)


@pytest.mark.data
@pytest.mark.parametrize(
    ("options", "split", "hr", "ndcg"),
    [
        ({}, "test", 55.39, 15.97),  # published for FCF + FedVLR
        (MASKED, "test", 54.90, 16.04),  # published for FedAvg + FedVLR
        (MASKED, "valid", 36.76, 12.40),  # published for FCF + MLP
    ],
)
def test_a_constant_score_on_ku_equals_published_results(ku, options, split, hr, ndcg):
    found = ku(**options)["constant"][split]
    assert [round(100 * x, 2) for x in found] == [hr, ndcg]


@pytest.mark.data
def test_a_constant_score_on_ku_earns_nothing_under_pessimistic_ties_and_chance_under_random_ones(ku):
    assert ku(**HONEST)["constant"] == {"valid": (0.0, 0.0), "test": (0.0, 0.0)}
    chance = ku(ties="random")["constant"]["test"]
    assert chance[0] == pytest.approx(0.093, abs=4 * math.sqrt(0.093 * 0.907 / 204))


@pytest.mark.data
def test_random_item_numbers_take_away_what_the_files_order_gave(real_data):
    """One permutation is one draw: between two thirds of chance and twice as much, far from 0.55."""
    options = {"permute_items": True}
    folder = make.settings(real_data("ku"), split="given")
    table = load(folder, rules(**options))
    hr, _ = measured(client_data(table), table, 50, **options)["constant"]["test"]
    assert 0.05 < hr < 0.2


@pytest.mark.data
def test_random_and_popular_items_on_ku(ku):
    found = ku()
    hr, ndcg = found["random"]["test"]
    assert hr == pytest.approx(0.0929, abs=3 * math.sqrt(0.093 * 0.907 / 204 / 8)) and 0.022 < ndcg < 0.030
    hr, ndcg = found["popularity"]["test"]
    assert round(100 * hr, 1) == 20.1 and 0.055 <= ndcg <= 0.058


# The twin: 300 clients, 90 items; held-out items have low numbers, training items any.


def twin(n=300, items=90):
    rng = np.random.default_rng(8)
    train, valid, test = [], [], []
    for _ in range(n):
        early = rng.choice(items, size=2, replace=False, p=(w := 0.93 ** np.arange(items)) / w.sum())
        free = np.setdiff1d(np.arange(items), early)
        train.append(sorted(rng.choice(free, size=rng.integers(3, 12), replace=False).tolist()))
        valid.append([int(early[0])])
        test.append([int(early[1])])
    return clients(train, valid, test, items)


def naive(data, k, scores, mask0=False, index=True):
    """HR and NDCG at k on the test split, from the definition: training items out, one target a client."""
    gains = []
    for c in range(len(data)):
        (target,) = data.test.row(c)
        there = set(range(data.n_items)) - set(data.train.row(c).tolist()) - ({0} if mask0 else set())
        ahead = sum(
            scores[i] > scores[target] or (scores[i] == scores[target] and (not index or i < target))
            for i in there - {int(target)}
        )
        hit = ahead < k and target in there
        gains.append((hit, hit / math.log2(2 + ahead)))
    return tuple(np.mean(gains, axis=0))


DATA = twin()
FLAT, POPULAR = np.zeros(90), np.bincount(DATA.train.values, minlength=90)


@pytest.fixture(scope="module")
def found():
    return {
        name: measured(DATA, dataset(DATA), 20, **options)
        for name, options in (("plain", {}), ("masked", MASKED), ("honest", HONEST), ("random", {"ties": "random"}))
    }


def test_the_twin_has_item_numbers_that_give_away_much_and_targets_at_0(found):
    assert (DATA.test.values == 0).sum() > 5
    assert found["plain"]["constant"]["test"][0] > 0.6 > 2 * found["plain"]["random"]["test"][0]


def test_constant_and_popular_items_on_the_twin_are_those_of_the_definition(found):
    assert found["plain"]["constant"]["test"] == pytest.approx(naive(DATA, 20, FLAT), abs=1e-6)
    assert found["masked"]["constant"]["test"] == pytest.approx(naive(DATA, 20, FLAT, mask0=True), abs=1e-6)
    assert found["plain"]["popularity"]["test"] == pytest.approx(naive(DATA, 20, POPULAR), abs=1e-6)
    assert found["honest"]["popularity"]["test"] == pytest.approx(naive(DATA, 20, POPULAR, index=False), abs=1e-6)


def test_a_constant_score_on_the_twin_earns_nothing_under_pessimistic_ties_and_chance_under_random_ones(found):
    chance = np.mean(20 / (90 - DATA.train.lengths()))
    assert found["honest"]["constant"] == {"valid": (0.0, 0.0), "test": (0.0, 0.0)}
    assert found["random"]["constant"]["test"][0] == pytest.approx(chance, abs=4 * math.sqrt(0.18 / 300))
    assert found["plain"]["random"]["test"][0] == pytest.approx(chance, abs=4 * math.sqrt(0.18 / 300 / 8))
