"""A run written between two rounds and read again, on other hosts, goes on as if nothing had happened."""

import numpy as np
import pytest

from fedray.errors import DataError
from fedray.federated import client_snapshots, rounds, run_snapshots
from fedray.methods import build
from fedray.storage import Storage
from tests import helpers
from tests.helpers import FCF, PFEDREC, tiny_config, tiny_data, tiny_features

DATA, FEATURES = tiny_data(), tiny_features()
THREE = [np.arange(k, 20, 3) for k in range(3)]
TWO = [np.arange(20)[::-1][:9], np.arange(11)]
GPFEDREC = {"backbone": {"name": "gpfedrec", "dim": 5, "item_lr_scale": 10.0, "user_lr_scale": 10.0}}
FEDRAP = {"backbone": {"name": "fedrap", "dim": 5, "item_lr": 0.5}}
ADAM = {**FCF, "plugins": {"fedopt": {"optimizer": "adam", "eps": 1e-3}}}
GROUPED = {**FCF, "plugins": {"fedvlr": {"gain": 1.0}, "gfmfr": {"groups": 3, "fit_epochs": 2, "ratio": "client"}}}
METHODS = {"pfedrec": PFEDREC, "gpfedrec": GPFEDREC, "fedrap": FEDRAP, "fedopt": ADAM, "fedvlr, gfmfr": GROUPED}
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
RULES = {
    "last round is not the best": {"clients_per_round": 0.6},
    "everybody": {},
}


def written(run, where, folder):
    return run_snapshots.of_run(run), where.snapshot(folder)


def rest(run, where):
    reports = []
    while not rounds.finished(run):
        run, report = rounds.step(run, where)
        reports.append(report)
    return run, [(r.round, r.metrics, r.bytes_up, r.bytes_down) for r in reports], rounds.finish(run, where)


def half(config, parts, n=3):
    where = helpers.executor(config, DATA, parts, features=FEATURES)
    run = rounds.start(config, build(config, DATA.n_items, FEATURES))
    for _ in range(n):
        run, _ = rounds.step(run, where)
    return run, where


@EACH
@pytest.mark.parametrize("train", RULES.values(), ids=RULES)
def test_a_run_that_is_read_on_other_hosts_goes_on_bit_by_bit(method, train, tmp_path):
    config = tiny_config(method, {"rounds": 6, **train}, evaluation={"k": [5, 10], "every": 2})
    run, where = half(config, THREE)
    snapshot, files = written(run, where, Storage.at(str(tmp_path)))
    expected = rest(run, where)

    again = helpers.executor(config, DATA, TWO, features=FEATURES)
    again.restore(Storage.at(str(tmp_path)), files, 3)
    read = run_snapshots.run_of(config, build(config, DATA.n_items, FEATURES), snapshot)
    found = rest(read, again)
    assert found[1:] == expected[1:]
    for k, v in expected[0].state.params.items():
        np.testing.assert_array_equal(found[0].state.params[k], v)
    assert found[0].state.extra.keys() == expected[0].state.extra.keys()


def test_several_kept_rounds_come_back(tmp_path):
    options = {"select_on": ["hr_at_5", "ndcg_at_5"], "ties": "random"}
    rules = {"evaluation": {"protocol": "paper/gfmfr", "k": [5], "options": options}}
    config = tiny_config(PFEDREC, {"rounds": 6}, **rules)
    run, where = half(config, THREE, 5)
    snapshot, files = written(run, where, Storage.at(str(tmp_path)))
    again = helpers.executor(config, DATA, TWO)
    again.restore(Storage.at(str(tmp_path)), files, 5)
    read = run_snapshots.run_of(config, build(config, DATA.n_items), snapshot)
    assert rest(read, again)[1:] == rest(run, where)[1:]


def test_one_state_and_one_store_are_written_once(tmp_path):
    """The best round is the last: half the size."""
    config = tiny_config(PFEDREC)
    run, where = half(config, THREE, 1)
    snapshot, _ = written(run, where, Storage.at(str(tmp_path)))
    host = where._hosts[0]
    assert len(snapshot.body["states"]) == 1 and host.best is host.store
    arrays = client_snapshots.of_host(host)
    assert not [k for k in arrays if k.startswith("1/")]
    back = client_snapshots.host_of(host, [arrays])
    assert back.best is back.store


def test_a_restored_executor_without_files_is_a_fresh_one(tmp_path):
    config = tiny_config(PFEDREC, {"rounds": 4})
    run, where = half(config, THREE, 2)
    where.restore(Storage.at(str(tmp_path)), [], 0)
    expected = helpers.run(config, DATA)
    assert rest(rounds.start(config, run.method), where)[2] == expected[2]


def test_clients_that_nobody_wrote_are_named(tmp_path):
    config = tiny_config(PFEDREC)
    run, where = half(config, [np.arange(10)])
    files = where.snapshot(Storage.at(str(tmp_path)))
    again = helpers.executor(config, DATA, THREE)
    with pytest.raises(DataError, match="no saved state of clients"):
        again.restore(Storage.at(str(tmp_path)), files, 3)
