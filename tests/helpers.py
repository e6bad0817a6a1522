"""Small federations for tests: made from seeds, no files."""

import numpy as np

from fedray.config import make_config
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.methods import build
from fedray.types import ClientData, ItemFeatures, Ragged

PFEDREC = {"backbone": {"name": "fcf", "dim": 8, "lr": 0.1}, "plugins": {"dualper": {"item_lr_scale": 10}}}
FCF = {"backbone": {"name": "fcf", "dim": 8, "lr": 0.1}}
FEDAVG = {"backbone": {"name": "fedavg", "dim": 8, "lr": 0.5}}
METHODS = {"pfedrec": PFEDREC, "fcf": FCF, "fedavg": FEDAVG}


def tiny_data(clients=20, items=60, seed=0, longest=25):
    """Clients of very different sizes, in two groups with different tastes; one held-out item per split each."""
    rng = np.random.default_rng(seed)
    rows = {"train": [], "valid": [], "test": []}
    for c in range(clients):
        taste = np.where((np.arange(items) % 2) == (c % 2), 5.0, 1.0)
        n = int(rng.integers(2, longest)) + 2
        have = rng.choice(items, size=n, replace=False, p=taste / taste.sum())
        rows["train"] += [(c, i) for i in have[2:]]
        rows["valid"].append((c, have[0]))
        rows["test"].append((c, have[1]))
    parts = {k: Ragged.of(*np.array(v).T, clients) for k, v in rows.items()}
    return ClientData(np.arange(clients), parts["train"], parts["valid"], parts["test"], items)


def tiny_config(method=PFEDREC, train=None, **more):
    """Three rounds of small batches, so that clients take several steps."""
    schedule = {"rounds": 3, "batch_size": 16, "negatives": 4, **(train or {})}
    return make_config({"evaluation": {"k": [5, 10]}, **method, "train": schedule, **more})


def tiny_features(items=60, seed=0, **dims):
    """Random item features, by default text of 6 numbers and images of 9; some items lack one or both."""
    rng = np.random.default_rng(seed)
    sizes = dims or {"image": 9, "text": 6}
    present = {m: rng.random(items) > 0.1 for m in sizes}
    tables = {m: rng.normal(size=(items, d)).astype(np.float32) * present[m][:, None] for m, d in sizes.items()}
    return ItemFeatures(tables, present, f"tiny-{items}-{seed}")


def executor(config, data, parts=None, device="cpu", features=None):
    """A serial executor whose hosts hold the clients at positions `parts[i]` (default: one host with all)."""
    method = build(config, data.n_items, features)
    parts = [np.arange(len(data))] if parts is None else parts
    return SerialExecutor([make_host(config, method, data.take(np.asarray(p)), device) for p in parts])


def first(config, data, features=None):
    """The broadcast before the first round."""
    return rounds.start(config, build(config, data.n_items, features)).broadcast


def run(config, data, parts=None, features=None):
    """(final Run, reports, Outcome, executor) of a whole run."""
    where = executor(config, data, parts, features=features)
    state, reports = rounds.start(config, build(config, data.n_items, features)), []
    while not rounds.finished(state):
        state, report = rounds.step(state, where)
        reports.append(report)
    return state, reports, rounds.finish(state, where), where
