"""Private tables kept as touched rows, and tables kept whole, against plain dense arrays [clients, M, d]."""

import numpy as np
import pytest

from fedray.errors import DataError
from fedray.federated import client_store
from fedray.federated.client_store import NEVER, OwnRows, TunedRows
from fedray.federated.kernels.rows import whole_tables

N, M, D = 7, 11, 3


def ragged_rows(rng, n):
    """(ptr, rows): for each of n clients some of the M rows, ascending; now and then none or all."""
    each = [np.flatnonzero(rng.random(M) < rng.choice([0.0, 0.3, 1.0], p=[0.2, 0.6, 0.2])) for _ in range(n)]
    return np.cumsum([0] + [len(r) for r in each]), np.concatenate([*each, []]).astype(np.int32)


def a_round(rng, own, dense):
    """`own` and `dense` after a part of the clients trained some rows, the others shrinking."""
    who = np.flatnonzero(rng.random(N) < rng.choice([0.0, 0.2, 0.6, 1.1]))
    ptr, rows = ragged_rows(rng, len(who))
    values = rng.normal(size=(len(rows), D)).astype(np.float32)
    factor = rng.choice([1.0, 0.9, 0.5], len(who))
    dense = dense.copy()
    for i, c in enumerate(who):
        dense[c] *= np.float32(factor[i])
        dense[c, rows[ptr[i] : ptr[i + 1]]] = values[ptr[i] : ptr[i + 1]]
    return own.updated(who, ptr, rows, values, factor), dense


def history(seed, n_rounds=6):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(M, D)).astype(np.float32)
    own, dense = OwnRows.untouched(N, base), np.repeat(base[None], N, axis=0)
    for _ in range(n_rounds):
        yield rng, own, dense
        own, dense = a_round(rng, own, dense)
    yield rng, own, dense


@pytest.mark.parametrize("seed", range(8))
def test_tables_equal_the_dense_simulation(seed):
    for _, own, dense in history(seed):
        np.testing.assert_allclose([own.table(c) for c in range(N)], dense, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_any_rows_of_any_clients_are_taken_from_the_same_tables(seed):
    for rng, own, dense in history(seed):
        who = rng.permutation(N)[:4]
        ptr, rows = ragged_rows(rng, 4)
        expected = dense[np.repeat(who, np.diff(ptr)), rows]
        np.testing.assert_allclose(own.take(who, ptr, rows), expected.reshape(-1, D), rtol=1e-6)
        tables = np.stack([own.table(int(c)) for c in who])
        np.testing.assert_array_equal(
            own.take(who, ptr, rows), tables[np.repeat(np.arange(4), np.diff(ptr)), rows].reshape(-1, D)
        )


@pytest.mark.parametrize("seed", range(4))
def test_rows_stay_ascending_and_only_ever_grow(seed):
    before = [set() for _ in range(N)]
    for _, own, _ in history(seed):
        for c in range(N):
            rows = own.rows[own.ptr[c] : own.ptr[c + 1]].tolist()
            assert rows == sorted(set(rows))
            assert before[c] <= set(rows)
            before[c] = set(rows)


def test_an_older_store_is_not_changed_by_later_rounds():
    kept = list(history(3))
    for _, own, dense in kept:
        np.testing.assert_allclose([own.table(c) for c in range(N)], dense, rtol=1e-6)


def test_by_hand():
    """Base 1, 2, 3. Client 1 trains row 1 to 9 at factor 1/2, then row 0 to 7 at factor 1/4; client 0 never trains."""
    own = OwnRows.untouched(2, np.float32([[1], [2], [3]]))
    one = np.array([1])
    own = own.updated(one, np.array([0, 1]), np.int32([1]), np.float32([[9]]), np.array([0.5]))
    assert own.table(1).ravel().tolist() == [0.5, 9.0, 1.5]
    own = own.updated(one, np.array([0, 1]), np.int32([0]), np.float32([[7]]), np.array([0.25]))
    assert own.table(1).ravel().tolist() == [7.0, 9 / 4, 3 / 8]
    assert own.table(0).ravel().tolist() == [1.0, 2.0, 3.0]
    assert (own.ptr.tolist(), own.rows.tolist()) == ([0, 0, 2], [0, 1])


def some_store(rng, base):
    """A store with private vectors, tuned, private and whole tables after three rounds."""
    tables = {"e": np.zeros((M, D), np.float32)}
    store = client_store.fresh({"w": np.zeros((N, 2))}, N, tables, {"p": base}, {"f": base})
    for round_ in range(3):
        who = np.flatnonzero(rng.random(N) < 0.6)
        ptr, rows = ragged_rows(rng, len(who))
        new = [rng.normal(size=(len(rows), D)).astype(np.float32) for _ in range(2)]
        factor = rng.uniform(0.5, 1.0, len(who))
        tuned = TunedRows(ptr, rows, {"e": new[0]}, {"e": factor})
        own = {"p": store.own["p"].updated(who, ptr, rows, new[1], factor)}
        whole = {"f": rng.normal(size=(len(who), M, D)).astype(np.float32)}
        shared = {"e": rng.normal(size=(M, D)).astype(np.float32)}
        w = {"w": rng.normal(size=(len(who), 2))}
        store = client_store.updated(store, who, round_, w, tuned, shared, own, whole)
    return store


@pytest.mark.parametrize("seed", range(3))
def test_files_of_several_parts_are_read_back_in_any_order_of_clients(seed):
    rng = np.random.default_rng(seed)
    base, ids = rng.normal(size=(M, D)).astype(np.float32), rng.permutation(50)[: 3 * N]
    stores, places = [some_store(rng, base) for _ in range(3)], np.array_split(ids, 3)
    parts = [{"client": i, **client_store.to_arrays(s)} for i, s in zip(places, stores)]
    wanted = rng.permutation(ids)[: 2 * N]
    found = client_store.from_files(parts, wanted)
    for k, client in enumerate(wanted):
        part = next(j for j in range(3) if client in places[j])
        c = places[part].tolist().index(client)
        np.testing.assert_array_equal(found.own["p"].table(k), stores[part].own["p"].table(c))
        np.testing.assert_array_equal(found.whole["f"][k], stores[part].whole["f"][c])
        np.testing.assert_array_equal(found.private["w"][k], stores[part].private["w"][c])
        assert found.last_round[k] == stores[part].last_round[c]


def test_a_client_that_was_never_saved_is_named():
    store = some_store(np.random.default_rng(0), np.eye(M, D, dtype=np.float32))
    parts = [{"client": np.arange(N), **client_store.to_arrays(store)}]
    with pytest.raises(DataError, match="77"):
        client_store.from_files(parts, np.array([0, 77]))


def test_whole_tables_of_those_that_trained_replace_theirs_alone():
    base = np.float32([[1], [2]])
    store = client_store.fresh({}, 3, {}, {}, {"f": base})
    new = np.float32([[[5], [6]]])
    after = client_store.updated(store, np.array([2]), 4, {}, None, {}, whole={"f": new})
    assert after.whole["f"][..., 0].tolist() == [[1, 2], [1, 2], [5, 6]]
    assert after.last_round.tolist() == [NEVER, NEVER, 4]
    assert store.whole["f"][..., 0].tolist() == [[1, 2]] * 3
    assert client_store.untrained(after).last_round.tolist() == [NEVER] * 3


def test_whole_tables_by_hand():
    """Base (1, 2, 4). First client: f 1/2, target 10 with weight 1/5, row 1 trained to 7. Second: row 2 to 8."""
    base, target = np.float32([[1], [2], [4]]), np.full((2, 3, 1), 10, np.float32)
    trained, ptr = np.float32([[7], [8]]), np.array([0, 1, 2])
    found = whole_tables(base, target, np.array([0.5, 1]), np.array([0.2, 0]), ptr, np.int32([1, 2]), trained)
    assert found[..., 0].tolist() == [[2.5, 7, 4], [1, 2, 8]]


def test_a_target_of_weight_zero_is_not_read():
    """A method may collect tables and pull to none: its target has no numbers."""
    base, none = np.float32([[1], [2]]), np.zeros((1, 0, 0), np.float32)
    found = whole_tables(base, none, np.ones(1), np.zeros(1), np.zeros(2, np.int64), np.zeros(0, np.int32), base[:0])
    assert found[0].tolist() == base.tolist()
    nan = np.full((1, 2, 1), np.nan, np.float32)
    found = whole_tables(base, nan, np.ones(1), np.zeros(1), np.zeros(2, np.int64), np.zeros(0, np.int32), base[:0])
    assert found[0].tolist() == base.tolist()
