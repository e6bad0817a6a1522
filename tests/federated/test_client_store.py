"""The columnar store against a dict of whole tables, one per client."""

import numpy as np
import pytest

from fedray.federated import client_store, clients
from fedray.federated.client_store import NEVER, TunedRows
from fedray.federated.cohort import threshold
from fedray.federated.scoring import score_clients
from fedray.types import Broadcast
from tests.helpers import PFEDREC, executor, tiny_config, tiny_data

N, M, D = 7, 11, 2


def own_table(store, c):
    """Client c's whole table as the store's rule makes it; None if it never trained."""
    if store.last_round[c] == NEVER:
        return None
    table = store.bases[int(store.last_round[c])]["e"] * store.tuned.scale["e"][c]
    own = slice(store.tuned.ptr[c], store.tuned.ptr[c + 1])
    table[store.tuned.rows[own]] = store.tuned.values["e"][own]
    return table


def a_round(rng, store, round_, who):
    """The store after `who` trained, and what each of them has now: (private vector, whole table)."""
    base = rng.normal(size=(M, D))
    rows = [np.sort(rng.choice(M, rng.integers(0, 5), replace=False)) for _ in who]
    values, scale = rng.normal(size=(sum(map(len, rows)), D)), rng.uniform(0.5, 1, len(who))
    w = rng.normal(size=(len(who), 3))
    ptr = np.cumsum([0] + [len(r) for r in rows])
    flat = np.concatenate([*rows, []]).astype(np.int32)
    tuned = TunedRows(ptr, flat, {"e": values}, {"e": scale})
    new = client_store.updated(store, who, round_, {"w": w}, tuned, {"e": base})
    truth = {}
    for k, c in enumerate(who):
        table = base * scale[k]
        table[rows[k]] = values[ptr[k] : ptr[k + 1]]
        truth[c] = w[k], table
    return new, truth


def some_rounds(seed, n_rounds=8):
    rng = np.random.default_rng(seed)
    store = client_store.fresh({"w": np.zeros((N, 3))}, N, {"e": np.zeros((M, D))})
    truth = {c: (np.zeros(3), None) for c in range(N)}
    for round_ in range(n_rounds):
        who = np.flatnonzero(rng.random(N) < rng.choice([0.1, 0.5, 1.1]))
        store, now = a_round(rng, store, round_, who)
        truth |= now
        yield round_, store, dict(truth)


def assert_holds(store, truth):
    for c, (w, table) in truth.items():
        np.testing.assert_array_equal(store.private["w"][c], w)
        if table is None:
            assert own_table(store, c) is None
        else:
            np.testing.assert_array_equal(own_table(store, c), table)


@pytest.mark.parametrize("seed", range(8))
def test_updates_of_subsets_equal_a_dict_of_whole_tables(seed):
    for _, store, truth in some_rounds(seed):
        assert_holds(store, truth)


@pytest.mark.parametrize("seed", range(3))
def test_bases_are_kept_exactly_while_somebody_refers_to_them(seed):
    for _, store, _ in some_rounds(seed):
        assert set(store.bases) == set(store.last_round.tolist()) - {NEVER}


def test_an_older_store_is_not_changed_by_later_rounds():
    history = list(some_rounds(0))
    for _, store, truth in history:
        assert_holds(store, truth)


def test_without_tuned_tables_no_base_is_kept():
    store = client_store.fresh({"w": np.zeros((N, 3))}, N, {})
    new = client_store.updated(store, np.array([2]), 0, {"w": np.ones((1, 3))}, None, {})
    assert new.tuned is None
    assert not new.bases
    assert new.private["w"].sum(axis=1).tolist() == [0, 0, 3, 0, 0, 0, 0]
    assert new.last_round.tolist() == [NEVER, NEVER, 0, NEVER, NEVER, NEVER, NEVER]
    assert store.private["w"].sum() == 0


@pytest.mark.parametrize("seed", range(4))
def test_files_of_several_parts_are_read_back_in_any_order_of_clients(seed):
    """Three parts with a store each, as three actors write them, read by one host that holds some of the clients."""
    rng = np.random.default_rng(seed)
    ids = np.array_split(rng.permutation(100)[: 3 * N], 3)
    stores = [list(some_rounds(seed))[-1] for _ in ids]
    parts = [{"client": i, **client_store.to_arrays(s)} for i, (_, s, _) in zip(ids, stores)]
    truth = {i: t[c] for part, (_, _, t) in zip(ids, stores) for c, i in enumerate(part)}
    wanted = rng.permutation(np.concatenate(ids))[: 2 * N]
    assert_holds(client_store.from_files(parts, wanted), {k: truth[i] for k, i in enumerate(wanted)})


def trained(host, round_, params):
    limit = threshold(0, round_, host.data.client, 0.5)
    return clients.train(host, Broadcast(round_, params), limit)[0]


def test_the_best_store_is_not_changed_by_later_training():
    host = executor(tiny_config(PFEDREC), tiny_data())._hosts[0]
    params = host.method.init_server(0)
    host = clients.keep_best(trained(host, 0, params))
    before = {k: v.copy() for k, v in client_store.to_arrays(host.best).items()}
    scored = clients.evaluate(host, Broadcast(1, params), ("test",), "best")[0]
    later = trained(trained(host, 1, {k: 2 * v for k, v in params.items()}), 2, params)
    assert later.store.last_round.tolist() != host.store.last_round.tolist()
    after = client_store.to_arrays(later.best)
    assert before.keys() == after.keys()
    for k, v in before.items():
        np.testing.assert_array_equal(v, after[k])
    assert clients.evaluate(later, Broadcast(1, params), ("test",), "best")[0] == scored
    assert clients.evaluate(later, Broadcast(1, params), ("test",), "current")[0] != scored


def scores_by_client(host, params):
    blocks = score_clients(host.method, host.best, params)
    return {int(host.data.client[c]): s for who, scores in blocks for c, s in zip(who, scores)}


def test_saved_hosts_are_loaded_by_hosts_of_another_packing(tmp_path):
    """Three hosts write; one host with the clients in reverse reads, and scores every client the same."""
    data, config = tiny_data(clients=9), tiny_config(PFEDREC)
    parts = executor(config, data, [[0, 4], [8, 1, 2], [3, 5, 6, 7]])._hosts
    params = parts[0].method.init_server(0)
    hosts = [clients.keep_best(trained(h, 0, params)) for h in parts]
    files = [clients.save(h, tmp_path, i) for i, h in enumerate(hosts)]
    back = clients.load(executor(config, data, [np.arange(9)[::-1]])._hosts[0], files)
    wanted = {c: s for h in hosts for c, s in scores_by_client(h, params).items()}
    found = scores_by_client(back, params)
    assert sorted(found) == sorted(wanted) == list(range(9))
    for c, scores in found.items():
        np.testing.assert_array_equal(scores, wanted[c])
