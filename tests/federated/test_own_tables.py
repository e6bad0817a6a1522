"""What scores a client that has tables of its own when only some train in a round: private tables beside the broadcast
(FedRAP), or a whole table instead of it (GPFedRec). Against a host that holds this client alone."""

from dataclasses import replace

import numpy as np
import pytest

from fedray.federated import clients, rounds
from fedray.federated.client_store import NEVER
from fedray.federated.cohort import EVERYONE
from fedray.federated.scoring import score_clients
from fedray.types import Broadcast
from tests.helpers import executor, tiny_config, tiny_data

TABLE, PERSONAL, USER = "item_embedding", "personal_item_embedding", "user_embedding"
DATA = tiny_data(clients=30)
FEDRAP = {"name": "fedrap", "dim": 5, "item_lr": 1.0, "personal_lr_scale": 1.0, "personal_init_std": 1.0}
GPFEDREC = {"name": "gpfedrec", "dim": 4, "hidden": [6, 3], "lr": 0.05, "item_lr_scale": 2.0, "user_lr_scale": 10.0}
PART = pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])


def config_of(backbone, ratio, decay=0.0, plugins=None, **more):
    method = {"backbone": backbone, "plugins": plugins or {}}
    return tiny_config(method, {"clients_per_round": ratio, "weight_decay": decay}, **more)


def trained(config, n=3):
    """(the host after n rounds, the current broadcast, client -> the store of a host with this client alone that
    trained in the same rounds, from the same broadcasts and targets)."""
    where = executor(config, DATA)
    run = rounds.start(config, where._hosts[0].method)
    alone = {c: executor(config, DATA, [[c]])._hosts[0] for c in range(len(DATA))}
    for _ in range(n):
        before = run
        run, _ = rounds.step(run, where)
        for c in np.flatnonzero(where._hosts[0].store.last_round == before.state.round):
            down = Broadcast(before.state.round, before.state.params)
            alone[c], _ = clients.train(alone[c], down, EVERYONE, before.targets)
    return where._hosts[0], Broadcast(run.state.round, run.state.params), {c: h.store for c, h in alone.items()}


def scores_of(host, broadcast):
    out = np.empty((len(DATA), DATA.n_items), np.float32)
    for who, found in score_clients(host.method, clients.scored_store(host, "current"), broadcast.params):
        out[who] = found
    return out


def additive(table, own):
    return table @ own["head_weight"] + own["head_bias"]


def tower(table, own):
    """Two hidden layers on [user; item]."""
    h = np.maximum(own[USER] @ own["mlp_1_user_weight"].T + table @ own["mlp_1_item_weight"].T + own["mlp_1_bias"], 0)
    return np.maximum(h @ own["mlp_2_weight"].T + own["mlp_2_bias"], 0) @ own["output_weight"] + own["output_bias"]


def assert_scored(host, broadcast, expected):
    for method in (host.method, host.method._replace(kernel=None)):
        found = scores_of(replace(host, method=method), broadcast)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def assert_some_wait(host, ratio):
    met = (host.store.last_round != NEVER).mean()
    assert met == 1 if ratio == 1 else ratio <= met < 1


@PART
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_a_private_table_stands_beside_the_current_broadcast(ratio, decay):
    config = config_of(FEDRAP, ratio, decay)
    host, now, alone = trained(config)
    start, base = host.method.init_clients(0, DATA.client), host.method.init_private_rows(0)[PERSONAL]
    expected = []
    for c in range(len(DATA)):
        never = host.store.last_round[c] == NEVER
        head = {k: v[c] for k, v in start.items()} if never else {k: v[0] for k, v in alone[c].private.items()}
        own = base if never else alone[c].own[PERSONAL].table(0)
        np.testing.assert_array_equal(host.store.own[PERSONAL].table(c), own)
        expected.append(additive(now.params[TABLE] + own, head))
    assert_some_wait(host, ratio)
    assert_scored(host, now, expected)


@PART
def test_a_whole_table_of_its_own_replaces_the_broadcast(ratio):
    host, now, alone = trained(config_of(GPFEDREC, ratio))
    start = host.method.init_clients(0, DATA.client)
    expected = []
    for c in range(len(DATA)):
        if host.store.last_round[c] == NEVER:
            expected.append(tower(now.params[TABLE], {k: v[c] for k, v in start.items()}))
        else:
            np.testing.assert_array_equal(host.store.whole[TABLE][c], alone[c].whole[TABLE][0])
            expected.append(tower(alone[c].whole[TABLE][0], {k: v[0] for k, v in alone[c].private.items()}))
    assert_some_wait(host, ratio)
    assert_scored(host, now, expected)


@PART
def test_an_aggregating_protocol_leaves_private_tables_and_drops_whole_ones(ratio):
    evaluation = {"k": [5, 10], "options": {"scored_table": "aggregated"}}
    host, now, _ = trained(config_of(FEDRAP, ratio, evaluation=evaluation))
    own = np.stack([host.store.own[PERSONAL].table(c) for c in range(len(DATA))])
    heads = [{k: v[c] for k, v in host.store.private.items()} for c in range(len(DATA))]
    assert_scored(host, now, [additive(now.params[TABLE] + p, head) for p, head in zip(own, heads)])
    host, now, _ = trained(config_of(GPFEDREC, ratio, evaluation=evaluation))
    layers = [{k: v[c] for k, v in host.store.private.items()} for c in range(len(DATA))]
    assert_scored(host, now, [tower(now.params[TABLE], each) for each in layers])


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_dualper_on_fedrap_scores_own_rows_of_both_tables(ratio, decay):
    """Tuned rows of E over the broadcast of the client's last round, P beside them."""
    host, now, alone = trained(config_of(FEDRAP, ratio, decay, {"dualper": {"item_lr_scale": 2.0}}))
    start, base = host.method.init_clients(0, DATA.client), host.method.init_private_rows(0)[PERSONAL]
    expected = []
    for c in range(len(DATA)):
        if host.store.last_round[c] == NEVER:
            expected.append(additive(now.params[TABLE] + base, {k: v[c] for k, v in start.items()}))
            continue
        (then,), tuned = alone[c].bases.values(), alone[c].tuned
        table = then[TABLE] * np.float32(tuned.scale[TABLE][0])
        table[tuned.rows] = tuned.values[TABLE]
        head = {k: v[0] for k, v in alone[c].private.items()}
        expected.append(additive(table + alone[c].own[PERSONAL].table(0), head))
    assert_scored(host, now, expected)


@pytest.mark.parametrize("backbone", [FEDRAP, GPFEDREC], ids=lambda b: b["name"])
def test_saved_hosts_are_loaded_by_hosts_of_another_packing(backbone, tmp_path):
    """Three hosts write after two rounds; one host with the clients in reverse reads, and scores everyone the same."""
    config = config_of(backbone, 0.4)
    where = executor(config, DATA, [[0, 4, 9], np.setdiff1d(np.arange(30), [0, 4, 9, 11]), [11]])
    run = rounds.start(config, where._hosts[0].method)
    for _ in range(2):
        run, _ = rounds.step(run, where)
    hosts = [clients.keep_best(h) for h in where._hosts]
    files = [clients.save(h, tmp_path, i) for i, h in enumerate(hosts)]
    back = clients.load(executor(config, DATA, [np.arange(30)[::-1]])._hosts[0], files)
    wanted = {int(h.data.client[c]): s for h in hosts for c, s in scored(h, run)}
    found = {int(back.data.client[c]): s for c, s in scored(back, run)}
    assert sorted(found) == sorted(wanted) == list(range(30))
    for c, scores in found.items():
        np.testing.assert_array_equal(scores, wanted[c])


def scored(host, run):
    return [
        (c, s) for who, block in score_clients(host.method, host.best, run.state.params) for c, s in zip(who, block)
    ]
