"""Each client's test metrics at the end of a run: their mean is what is reported, and packing does not change them."""

import numpy as np
import pytest

from fedray.errors import FileFormatError, MissingColumnError
from fedray.evaluation import users
from fedray.federated import clients
from fedray.types import Broadcast
from tests.evaluation.naive import clients as of_lists
from tests.helpers import FCF, METHODS, PFEDREC, executor, run, tiny_config, tiny_data
from tests.properties.test_packing import packings

DATA = tiny_data(clients=23)
PARTS = {"three": np.array_split(np.arange(23), 3), **packings(23)}
PAPERS = {"paper/pfedrec": [5, 10], "paper/gfmfr": [10, 50]}


def settings(protocol, k, **more):
    return {"evaluation": {"protocol": protocol, "k": k, **more}}


def assert_means_are_reported(outcome):
    names = users.metrics_in(outcome.users)
    assert {n for n in outcome.test if "hr_at" in n or "ndcg_at" in n} == set(names)
    for name in names:
        assert np.mean(outcome.users[name]) == pytest.approx(outcome.test[name], abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("packing", PARTS)
def test_packing_changes_nothing(name, packing):
    config = tiny_config(METHODS[name], {"clients_per_round": 0.7})
    whole, packed = (run(config, DATA, parts)[2].users for parts in (None, PARTS[packing]))
    assert whole["client"].tolist() == list(range(23)) and whole.keys() == packed.keys()
    for column in whole:
        np.testing.assert_array_equal(whole[column], packed[column])


@pytest.mark.parametrize("test", ["selected", "every_round"])
@pytest.mark.parametrize("name", METHODS)
def test_their_mean_is_the_reported_metric(name, test):
    outcome = run(tiny_config(METHODS[name], {"rounds": 5}, **settings("clean", [5, 10], test=test)), DATA)[2]
    assert_means_are_reported(outcome)
    assert {"hr_at_5", "ndcg_at_10", "sampled99_hr_at_10"} < outcome.users.keys()
    assert not any("recall" in n or "mrr" in n or n == "score_std" for n in outcome.users)


@pytest.mark.parametrize("protocol", PAPERS)
def test_under_a_papers_rules_too_and_where_it_scores_every_round(protocol):
    config = tiny_config(PFEDREC, {"rounds": 5}, **settings(protocol, PAPERS[protocol]))
    _, reports, outcome, _ = run(config, DATA)
    assert_means_are_reported(outcome)
    assert outcome.users["client"].tolist() == list(range(23))
    if protocol == "paper/pfedrec":
        logged = reports[outcome.best_round - 1].metrics["test/hr_at_10"]
        assert np.mean(outcome.users["hr_at_10"]) == pytest.approx(logged, abs=1e-6)


def test_they_are_of_the_best_round_and_of_clients_with_a_test_item():
    data = of_lists([[0], [1], [2]], [[3], [4], [0]], [[], [5], [6]], 8)
    config = tiny_config(FCF, {"rounds": 4})
    state, _, outcome, where = run(config, data)
    assert outcome.users["client"].tolist() == [1, 2]
    sums = where.evaluate(Broadcast(*state.best.broadcast), ("test",), "best")[0]["test"]
    assert sums.means() == outcome.test


def test_an_empty_host_has_no_users_and_does_no_harm():
    host = executor(tiny_config(FCF), DATA.take(np.zeros(0, np.int64)))._hosts[0]
    assert users.metrics_in(clients.per_client(host, Broadcast(0, host.method.init_server(0)))[1]) == []
    parts = [np.zeros(0, np.int64), np.arange(23)]
    assert_means_are_reported(run(tiny_config(FCF), DATA, parts)[2])


def test_parquet_gives_back_what_was_written_and_names_what_it_cannot_read(tmp_path):
    written = run(tiny_config(FCF), DATA)[2].users
    (tmp_path / "u.parquet").write_bytes(users.to_parquet(written))
    found = users.read(tmp_path / "u.parquet")
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in written.items()}
    (tmp_path / "torn").write_bytes(b"PAR1")
    with pytest.raises(FileFormatError, match="torn"):
        users.read(tmp_path / "torn")
    (tmp_path / "other").write_bytes(users.to_parquet({"user": np.arange(3)}))
    with pytest.raises(MissingColumnError, match="no column client"):
        users.read(tmp_path / "other")
