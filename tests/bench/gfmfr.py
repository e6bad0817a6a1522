"""What a round of GFMFR costs on KU, stage by stage, beside the naive loop of tests/oracles/grouped.py.

    FEDRAY_DATA=/data python -m tests.bench.gfmfr [backbone ...]

Ours: medians over rounds on one thread, with soft labels. The loop: LOOPED clients, scaled to all, and its fit as in
the authors' code: tuples (group, item) in mini-batches of 256, SGD, whole contents, EPOCHS of the 50, scaled. CPU
seconds on both sides but in ours by stage, which are those of the clock: on a busy machine they are too long.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fedray import seeding
from fedray.config import RunConfig, make_config
from fedray.data.dataset import client_data, load
from fedray.data.protocols import rules_of
from fedray.federated import clients, rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.methods import build
from tests.oracles import grouped as oracle
from tests.oracles.servers import weighted_mean

BACKBONES: dict[str, dict[str, Any]] = {
    "fcf": {"name": "fcf", "dim": 64, "lr": 0.1},
    "fedncf": {"name": "fedncf", "dim": 64, "hidden": [64], "lr": 0.01},
}
DATA = {"source": "folder", "name": "ku", "path": "ku", "split": "given"}
TRAIN = {"rounds": 100, "local_epochs": 5, "batch_size": 256, "negatives": 4}
STAGES = ("samples", "train", "aggregate", "group", "reduce", "fit", "server")
LOOPED, EPOCHS, ROUNDS, BATCH = 20, 10, 5, 256
AUTHORS = {"fit_optimizer": "sgd", "fit_weight_decay": 1e-4, "content_dim": 0, "group_dim": 512}


def config_of(backbone: str, **settings: Any) -> RunConfig:
    """5 groups, a fit of 50 epochs; nothing is evaluated."""
    plugins = {"gfmfr": {"groups": 5, "fit_epochs": 50, **settings}}
    body = {"backbone": BACKBONES[backbone], "plugins": plugins, "data": DATA}
    return make_config({**body, "train": TRAIN, "evaluation": {"every": 1000}})


def prepared(config: RunConfig):
    """(all clients, features)"""
    dataset = load(config.data, rules_of(config.evaluation))
    assert dataset.features is not None
    return client_data(dataset), dataset.features


def stages(config: RunConfig, data, features) -> dict[str, float]:
    """Median seconds by stage of ROUNDS rounds after the first, which has no soft labels; `cpu`: of all."""
    method = build(config, data.n_items, features)
    executor = SerialExecutor([make_host(config, method, data)])
    run, seen = rounds.start(config, method), []
    for _ in range(ROUNDS + 1):
        begun = time.process_time()
        run, report = rounds.step(run, executor)
        seen.append({**report.seconds, "cpu": time.process_time() - begun})
    return {k: statistics.median(s[k] for s in seen[1:]) for k in (*STAGES, "cpu")}


def naive(config: RunConfig, data, features) -> dict[str, float]:
    """CPU seconds by stage of a round of the loop, of all clients."""
    few, method = data.take(np.arange(0, len(data), len(data) // LOOPED)), build(config, data.n_items, features)
    loop, scale = oracle.grouped(make_host(config, method, few), features), len(data) / len(few)
    loop.round(0)  # and so there are groups
    samples = clients.samples_of(loop.host, np.arange(len(few)), 1)
    train = seconds(lambda: [loop.train(c, 1, samples, c) for c in range(len(few))]) * scale
    tables = [loop.table(c) for c in range(len(few))]
    mean = seconds(lambda: [weighted_mean(tables, np.ones(len(few)))]) * scale
    size = sum(loop.client[0][k].size for k in loop.vector())
    vectors = oracle.standardised(np.random.default_rng(0).standard_normal((len(data), size)))
    group = seconds(lambda: oracle.clustered(vectors, 5, "spectral", np.uint64(1)))
    whole = {g: tables[g].astype(np.float64) for g in range(5)}
    return {
        "train": train,
        "aggregate": mean,
        "reduce": mean,
        "group": group,
        "fit": fit_seconds(loop, whole, features),
    }


def fit_seconds(loop: oracle.Grouped, tables: dict[int, np.ndarray], features) -> float:
    """The authors' fit, in float32 as theirs, and what it prefers."""
    s = loop.gfmfr.model_copy(update={"fit_lr": 0.01, **AUTHORS})
    content = {m: (there, x.float()) for m, (there, x) in oracle.content_of(features, s).items()}
    sizes = s.groups, s.group_dim, tables[0].shape[1], s.content_dim
    start = oracle.GroupFusion(s.fusion, features, s.features, *sizes, s.gain).init(0)
    network, rng = oracle.Network(start, s.fusion, content).float(), seeding.generator(np.uint64(0))
    tuples = torch.cartesian_prod(torch.arange(s.groups), torch.arange(len(tables[0]))).T
    epochs = [tuples[:, torch.from_numpy(rng.permutation(tuples.shape[1]))].split(BATCH, dim=1) for _ in range(EPOCHS)]
    network.fit(tables, s, epochs[:1])  # libraries warm up
    return seconds(lambda: network.fit(tables, s, epochs)) * s.fit_epochs / EPOCHS


def seconds(once: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    begun = time.process_time()
    once()
    return time.process_time() - begun


def table(backbones: list[str]) -> str:
    """Milliseconds by stage, ours and the loop's, and their ratio."""
    lines = ["| backbone | | " + " | ".join(STAGES) + " | round, CPU | loop / ours |", "|" + "---|" * (len(STAGES) + 4)]
    for name in backbones:
        config = config_of(name)
        data, features = prepared(config)
        ours, loop = stages(config, data, features), naive(config, data, features)
        total = sum(loop.values())
        mine = " | ".join(f"{1e3 * ours[k]:.1f}" for k in STAGES)
        theirs = " | ".join(f"{1e3 * loop[k]:,.0f}" if k in loop else "" for k in STAGES)
        lines.append(f"| {name} | ours | {mine} | {1e3 * ours['cpu']:.1f} | |")
        lines.append(f"| | loop | {theirs} | {1e3 * total:,.0f} | {total / ours['cpu']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):  # the loop's NumPy, too
        print(table(sys.argv[1:] or list(BACKBONES)))
