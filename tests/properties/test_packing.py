"""How clients are packed, ordered and padded never changes a bit."""

import numpy as np
import pytest

from fedray.data.blocks import stack
from fedray.federated import clients, rounds
from fedray.federated.executor import SerialExecutor
from fedray.federated.local_training import gather, plan_of, train_block
from fedray.methods import build
from tests.helpers import METHODS, PFEDREC, executor, run, tiny_config, tiny_data
from tests.toy_ncf import toy_ncf

DATA = tiny_data(clients=23)


def packings(n):
    rng = np.random.default_rng(1)
    every = np.arange(n)
    return {
        "one each": [[c] for c in every],
        "sevens": [every[i : i + 7] for i in range(0, n, 7)],
        "two": [every[::2], every[1::2]],
        "five shuffled": np.array_split(rng.permutation(n), 5),
        "all, reversed": [every[::-1]],
    }


def everything(final, reports, outcome, where):
    """All numbers of a run that must not move, private parameters in client order."""
    hosts = where._hosts
    ids = np.concatenate([h.data.client for h in hosts])
    place = np.argsort(ids)
    private = {k: np.concatenate([h.store.private[k] for h in hosts])[place] for k in hosts[0].store.private}
    losses = [{k: v for k, v in r.metrics.items()} for r in reports]
    return {**final.state.params, **private}, losses, dict(outcome.test), [r.bytes_up for r in reports]


def assert_same(a, b):
    for name in a[0]:
        np.testing.assert_array_equal(a[0][name], b[0][name], err_msg=name)
    assert a[1:] == b[1:]


@pytest.mark.parametrize("path", ["compiled", "vmap"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("packing", packings(23))
def test_packing_and_order_change_nothing(name, packing, path):
    config = tiny_config(METHODS[name], {"path": path, "weight_decay": 1e-3})
    whole = run(config, DATA)
    assert_same(everything(*whole), everything(*run(config, DATA, packings(23)[packing])))


@pytest.mark.parametrize("clients_per_round", [0.4, 6])
def test_packing_changes_nothing_under_partial_participation(clients_per_round):
    config = tiny_config(PFEDREC, {"clients_per_round": clients_per_round, "rounds": 6})
    whole = everything(*run(config, DATA))
    for packing in packings(23).values():
        assert_same(whole, everything(*run(config, DATA, packing)))


def test_packing_changes_nothing_for_dense_parameters_and_general_scores(monkeypatch):
    """A method with a shared network, private vectors and tuned rows, through the vmapped paths throughout."""
    monkeypatch.setattr("tests.helpers.build", lambda config, n_items, features: toy_ncf(n_items))
    config = tiny_config(PFEDREC, {"path": "vmap"})
    whole = everything(*run(config, DATA))
    for packing in packings(23).values():
        assert_same(whole, everything(*run(config, DATA, packing)))


@pytest.mark.parametrize("extra", [1, 8, 40])
def test_more_padding_changes_nothing(extra):
    config = tiny_config(PFEDREC)
    host = executor(config, DATA)._hosts[0]
    samples = clients.samples_of(host, np.arange(len(DATA)), 0)
    state = rounds.start(config, host.method).state
    start = clients.start_of(host, np.arange(len(DATA)), rounds.Broadcast(0, state.params), samples)
    plan = plan_of(host.method, config.train, 0)

    def trained(padding):
        found = {}
        for block in stack(samples, 16, config.train.block_width, extra=padding):
            params, _ = gather(start, samples, block, "cpu")
            params, loss, _ = train_block(host.method, plan, config.train, params, block)
            for i, c in enumerate(block.slot):
                if c >= 0:
                    rows = params["item_embedding"][i, : block.n_rows[i]].numpy()
                    found[c] = (rows, params["head_weight"][i].numpy(), float(loss[i]))
        return found

    plain, padded = trained(0), trained(extra)
    assert plain.keys() == padded.keys() and len(plain) == len(DATA)
    for c, (rows, head, loss) in plain.items():
        np.testing.assert_array_equal(rows, padded[c][0])
        np.testing.assert_array_equal(head, padded[c][1])
        assert loss == padded[c][2]


def test_the_same_run_twice_is_the_same_and_another_seed_is_not():
    config = tiny_config(PFEDREC)
    first, again = everything(*run(config, DATA)), everything(*run(config, DATA))
    assert_same(first, again)
    other = everything(*run(config.with_seed(1), DATA))
    assert not np.array_equal(first[0]["item_embedding"], other[0]["item_embedding"])


def test_a_client_without_training_items_neither_trains_nor_counts():
    data = DATA.take(np.arange(5))
    from fedray.types import ClientData, Ragged

    ptr = np.concatenate([data.train.ptr, data.train.ptr[-1:]])
    more = ClientData(
        np.arange(6), Ragged(ptr, data.train.values), data.valid.take(np.array([0, 1, 2, 3, 4, 0])),
        data.test.take(np.array([0, 1, 2, 3, 4, 0])), 60,
    )  # fmt: skip
    config = tiny_config(PFEDREC)
    a, b = run(config, data), run(config, more)
    np.testing.assert_array_equal(a[0].state.params["item_embedding"], b[0].state.params["item_embedding"])
    assert [r.clients_ok for r in b[1]] == [5, 5, 5]


def test_hosts_in_another_executor_order_are_the_same():
    config = tiny_config(PFEDREC)
    method = build(config, DATA.n_items)
    parts = packings(23)["five shuffled"]
    hosts = [clients.make_host(config, method, DATA.take(p)) for p in parts]
    a, b = SerialExecutor(hosts), SerialExecutor(hosts[::-1])
    run_a, _ = rounds.step(rounds.start(config, method), a)
    run_b, _ = rounds.step(rounds.start(config, method), b)
    np.testing.assert_array_equal(run_a.state.params["item_embedding"], run_b.state.params["item_embedding"])


@pytest.mark.parametrize(("dim", "items"), [(7, 83), (33, 61)])
def test_packing_changes_nothing_at_sizes_that_fit_no_vector_register(dim, items):
    """The library under torch picks its code by alignment, which an odd size makes differ from slot to slot."""
    data = tiny_data(clients=23, items=items)
    method = {"backbone": {"name": "fcf", "dim": dim}, "plugins": {"dualper": {"item_lr_scale": 10}}}
    for path in ("compiled", "vmap"):
        config = tiny_config(method, {"path": path}, evaluation={"k": [10], "local_only": True})
        whole = run(config, data)
        for packing in packings(23).values():
            other = run(config, data, packing)
            assert_same(everything(*whole), everything(*other))
            assert other[2].local_only == whole[2].local_only
