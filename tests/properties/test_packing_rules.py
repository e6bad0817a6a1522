"""How clients are packed changes nothing under the papers' rules and the options either."""

import pytest

from tests.helpers import FCF, PFEDREC, run, tiny_config
from tests.properties.test_packing import DATA, assert_same, everything, packings

FLAT = {"backbone": {"name": "fcf", "dim": 8, "lr": 0.0, "init_std": 0.0}}  # every score is 0: ties decide all


def assert_packed_alike(config):
    whole = run(config, DATA)
    for packing in packings(23).values():
        other = run(config, DATA, packing)
        assert_same(everything(*whole), everything(*other))
        assert other[2].rounds == whole[2].rounds
        assert {k: v.tolist() for k, v in other[2].users.items()} == {k: v.tolist() for k, v in whole[2].users.items()}
    return whole[2]


@pytest.mark.parametrize("rankings", ["full", "sampled99"])
def test_random_ties(rankings):
    options = {"ties": "random", "rankings": rankings}
    outcome = assert_packed_alike(tiny_config(FLAT, evaluation={"k": [5, 10], "options": options}))
    assert outcome.test["score_std"] == 0.0
    assert 0.0 < outcome.test["hr_at_10"] < 1.0
    assert set(outcome.users["hr_at_10"]) == {0.0, 1.0}


@pytest.mark.parametrize("protocol", ["paper/fedrap", "paper/fedvlr", "paper/gfmfr"])
@pytest.mark.parametrize("method", [PFEDREC, FCF], ids=["pfedrec", "fcf"])
def test_the_papers_rules(method, protocol):
    schedule = {"rounds": 4, "clients_per_round": 0.6}
    assert_packed_alike(tiny_config(method, schedule, evaluation={"k": [10, 50], "protocol": protocol}))


def test_the_option_reaches_the_training_negatives():
    """What a client touched in its last round: its training items and the lowest others."""
    evaluation = {"k": [5, 10], "options": {"negatives": "fixed_lowest"}}
    host = run(tiny_config(PFEDREC, {"negatives": 2}, evaluation=evaluation), DATA)[3]._hosts[0]
    tuned = host.store.tuned
    for c in range(len(DATA)):
        train = DATA.train.row(c).tolist()
        lowest = [i for i in range(DATA.n_items) if i not in train][: 2 * len(train)]
        assert tuned.rows[tuned.ptr[c] : tuned.ptr[c + 1]].tolist() == sorted(train + lowest)
