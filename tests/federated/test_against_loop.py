"""The fast paths against the naive loop: at most 1e-5 apart after 3 rounds."""

import numpy as np
import pytest

from fedray.federated.clients import samples_of
from fedray.federated.method import Method
from tests.helpers import METHODS, PFEDREC, executor, run, tiny_config, tiny_data
from tests.oracles.naive_loop import one_round

TABLE, WEIGHT, BIAS = "item_embedding", "head_weight", "head_bias"


def loop(config, data, method: Method):
    """Rounds of the oracle; its final table and each client's (w, b, own table)."""
    host = executor(config, data)._hosts[0]
    table = method.init_server(config.seed)[TABLE]
    start = method.init_clients(config.seed, data.client)
    heads = {c: (start[WEIGHT][c], start[BIAS][c], table) for c in range(len(data))}
    for r in range(config.train.rounds):
        samples = samples_of(host, np.arange(len(data)), r)
        table = one_round(
            table, heads, samples, method.phases(r), config.train.batch_size, config.train.weight_decay,
            method.weight(samples.n_samples()), config.train.optimizer,
        )  # fmt: skip
    return table, heads


@pytest.mark.parametrize("path", ["compiled", "vmap"])
@pytest.mark.parametrize("decay", [0.0, 1e-3])
@pytest.mark.parametrize("name", METHODS)
def test_three_rounds_equal_the_naive_loop(name, decay, path):
    data = tiny_data()
    config = tiny_config(METHODS[name], {"weight_decay": decay, "path": path, "local_epochs": 2})
    final, _, _, where = run(config, data)
    table, heads = loop(config, data, final.method)
    store = where._hosts[0].store
    np.testing.assert_allclose(final.state.params[TABLE], table, atol=1e-5)
    np.testing.assert_allclose(store.private[WEIGHT], np.stack([heads[c][0] for c in range(20)]), atol=1e-5)
    np.testing.assert_allclose(store.private[BIAS], np.stack([heads[c][1] for c in range(20)]), atol=1e-5)


def test_adam_equals_the_naive_loop():
    data = tiny_data()
    method = {"backbone": {"name": "fcf", "dim": 8, "lr": 0.01, "item_lr_scale": 1 / 60}}
    config = tiny_config(method, {"optimizer": "adam", "local_epochs": 2})
    final, _, _, _ = run(config, data)
    table, _ = loop(config, data, final.method)
    np.testing.assert_allclose(final.state.params[TABLE], table, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_own_tuned_table_scores_equal_the_loops_whole_table(decay):
    """The stored rows and the rule for the rest are the client's whole own table."""
    from fedray.federated.scoring import score_clients

    data = tiny_data()
    config = tiny_config(PFEDREC, {"weight_decay": decay})
    final, _, _, where = run(config, data)
    _, heads = loop(config, data, final.method)
    expected = np.stack([own @ w + b for w, b, own in (heads[c] for c in range(20))])
    for method in (final.method, final.method._replace(linear_head=None)):
        for who, scores in score_clients(method, where._hosts[0].store, final.state.params):
            np.testing.assert_allclose(scores, expected[who], atol=1e-4)
