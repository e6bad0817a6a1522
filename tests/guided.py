"""Soft labels without a method that makes any: fixed preferences of fixed groups, round whatever method is given."""

import numpy as np

from fedray.federated import rounds
from fedray.federated.clients import make_host, own_targets, samples_of, start_of
from fedray.federated.executor import SerialExecutor
from fedray.federated.local_training import train_clients
from fedray.federated.method import Guide
from fedray.methods import build
from fedray.types import Broadcast

PREFERENCE, GROUP, RATIO = "guide/preference", "guide/group", "guide_ratio"


def guided(method, preference, group, weight=0.7, ema=None):
    """`method` with soft labels; ema: of a ratio, None for a constant weight."""
    kept = {} if ema is None else {"ratio": RATIO, "ema": ema}
    labels = {PREFERENCE: np.float32(preference), GROUP: np.int32(group)}
    at = weight if callable(weight) else lambda round_: weight
    made = method._replace(
        init_server=lambda seed: method.init_server(seed) | labels, guide=Guide(PREFERENCE, GROUP, at, **kept)
    )
    if ema is None:
        return made
    return made._replace(
        private=(*method.private, RATIO),
        init_clients=lambda seed, c: method.init_clients(seed, c) | {RATIO: np.full(len(c), np.nan, np.float32)},
    )


def preferences(items, groups=3, seed=4):
    """Any."""
    return np.random.default_rng(seed).uniform(0.02, 0.98, (groups, items)).astype(np.float32)


def some_groups(clients):
    """Every third client has none, and the array ends before the last two."""
    return (np.arange(clients - 2) % 3) - 1


def made(config, data, features=None, **labels):
    """The configured method, guided if there are labels."""
    method = build(config, data.n_items, features)
    if not labels:
        return method
    return guided(method, **{"preference": preferences(data.n_items), "group": some_groups(len(data)), **labels})


def local(config, data, method):
    """(samples, result) of everybody's first round of local training."""
    host, who = make_host(config, method, data), np.arange(len(data))
    broadcast = Broadcast(0, method.down(method.init_server(config.seed)))
    samples = samples_of(host, who, 0)
    start = start_of(host, who, broadcast, samples, own_targets(host, who, broadcast, None))
    return samples, train_clients(method, config.train, 0, start, samples)


def run(config, data, method, parts=None):
    """As `helpers.run`, of this method."""
    parts = [np.arange(len(data))] if parts is None else parts
    where = SerialExecutor([make_host(config, method, data.take(np.asarray(p))) for p in parts])
    state, reports = rounds.start(config, method), []
    while not rounds.finished(state):
        state, report = rounds.step(state, where)
        reports.append(report)
    return state, reports, rounds.finish(state, where), where
