"""Which item table scores a client when only some train in a round: its own one of its last round, or the broadcast."""

from dataclasses import replace

import numpy as np
import pytest

from fedray.federated import clients, rounds
from fedray.federated.client_store import NEVER
from fedray.federated.clients import scored_store
from fedray.federated.scoring import score_clients
from fedray.methods import build
from tests.helpers import METHODS, executor, tiny_config, tiny_data
from tests.toy_ncf import toy_ncf

TABLE = "item_embedding"
DATA = tiny_data(clients=40)
PART = [0.1, 0.5, 1.0]


def trained(config, n=3):
    """(the host after n rounds, the current broadcast, client -> the store of a host that holds this client alone and
    trained it once, from the broadcast and the private parameters of the last round it took part in)."""
    where = executor(config, DATA)
    run, history = rounds.start(config, where._hosts[0].method), {}
    for _ in range(n):
        before, host = run.state, where._hosts[0]
        run, _ = rounds.step(run, where)
        after = where._hosts[0]
        for c in np.flatnonzero(after.store.last_round == before.round):
            one = executor(config, DATA, [[c]])._hosts[0]
            own = {k: v[[c]] for k, v in host.store.private.items()}
            alone = replace(one, store=replace(one.store, private=own))
            alone, _ = clients.train(alone, rounds.Broadcast(before.round, before.params), np.uint64(2**64 - 1))
            history[c] = alone.store
    return where._hosts[0], rounds.Broadcast(run.state.round, run.state.params), history


def table_of(store, broadcast_then):
    """The whole own table of the one client of a store, dense, from the broadcast of its round."""
    table = broadcast_then * np.float32(store.tuned.scale[TABLE][0])
    table[store.tuned.rows] = store.tuned.values[TABLE]
    return table


def scores_of(host, broadcast):
    out = np.empty((len(DATA), DATA.n_items), np.float32)
    for who, found in score_clients(host.method, scored_store(host, "current"), broadcast.params):
        out[who] = found
    return out


@pytest.mark.parametrize("ratio", PART)
@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_own_tables_are_those_of_the_last_round_and_else_the_broadcast(ratio, decay):
    config = tiny_config(METHODS["pfedrec"], {"clients_per_round": ratio, "weight_decay": decay})
    host, now, history = trained(config)
    start, scores = host.method.init_clients(config.seed, DATA.client), scores_of(host, now)
    for c in range(len(DATA)):
        if host.store.last_round[c] == NEVER:
            head, table = {k: v[c] for k, v in start.items()}, now.params[TABLE]
        else:
            (then,) = history[c].bases.values()
            head, table = {k: v[0] for k, v in history[c].private.items()}, table_of(history[c], then[TABLE])
        expected = table @ head["head_weight"] + head["head_bias"]
        np.testing.assert_allclose(scores[c], expected.ravel(), rtol=1e-5, atol=1e-5)
    met = (host.store.last_round != NEVER).mean()
    assert met == 1 if ratio == 1 else ratio <= met < 1
    assert len(set(host.store.last_round.tolist())) > 1 or ratio == 1  # clients of different rounds stand together


@pytest.mark.parametrize(("ratio", "path"), [*((r, "compiled") for r in PART), (0.5, "vmap")])
def test_an_aggregating_protocol_scores_the_broadcast_with_the_clients_own_heads(ratio, path):
    options = {"scored_table": "aggregated"}
    evaluation = {"k": [5, 10], "options": options}
    config = tiny_config(METHODS["pfedrec"], {"clients_per_round": ratio, "path": path}, evaluation=evaluation)
    host, now, _ = trained(config)
    head = host.store.private
    expected = head["head_weight"] @ now.params[TABLE].T + head["head_bias"].reshape(-1, 1)
    np.testing.assert_allclose(scores_of(host, now), expected, rtol=1e-5, atol=1e-5)
    own = replace(host, config=tiny_config(METHODS["pfedrec"]))
    assert not np.allclose(scores_of(own, now), expected, atol=1e-3)


def test_an_aggregating_protocol_scores_methods_without_a_kernel_the_same_way(monkeypatch):
    monkeypatch.setattr("tests.helpers.build", lambda config, n_items, features: toy_ncf(n_items))
    evaluation = {"k": [5, 10], "options": {"scored_table": "aggregated"}}
    config = tiny_config(METHODS["pfedrec"], {"clients_per_round": 0.5, "path": "vmap"}, evaluation=evaluation)
    where = executor(config, DATA)
    run, _ = rounds.step(rounds.start(config, where._hosts[0].method), where)
    host, shared = where._hosts[0], run.state.params
    for c in (0, 7, 39):
        x = np.concatenate([np.tile(host.store.private["user"][c], (DATA.n_items, 1)), shared[TABLE]], axis=1)
        expected = np.maximum(x @ shared["w1"], 0) @ shared["w2"]
        found = scores_of(host, rounds.Broadcast(run.state.round, shared))[c]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fcf", "fedavg"])
def test_methods_that_tune_no_table_are_scored_alike_by_both(name):
    metrics = []
    for table in ("own", "aggregated"):
        evaluation = {"k": [5, 10], "options": {"scored_table": table}}
        config = tiny_config(METHODS[name], {"clients_per_round": 0.5}, evaluation=evaluation)
        where = executor(config, DATA)
        run, report = rounds.step(rounds.start(config, build(config, DATA.n_items)), where)
        metrics.append(report.metrics)
    assert metrics[0] == metrics[1]


def test_a_kept_store_is_scored_by_the_same_rule_and_saved_whole(tmp_path):
    evaluation = {"k": [5, 10], "options": {"scored_table": "aggregated"}}
    config = tiny_config(METHODS["pfedrec"], {"clients_per_round": 0.5, "rounds": 1}, evaluation=evaluation)
    where = executor(config, DATA)
    run, report = rounds.step(rounds.start(config, where._hosts[0].method), where)
    file = clients.save(where._hosts[0], tmp_path, 0)
    again = clients.load(executor(config, DATA)._hosts[0], [file])
    found, _ = clients.evaluate(again, run.best.broadcast, ("valid",), "best")
    assert found["valid"].means()["ndcg_at_10"] == report.metrics["val/ndcg_at_10"]
    assert len(again.store.tuned.rows) == len(where._hosts[0].store.tuned.rows) > 0
