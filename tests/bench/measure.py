"""What the bench measures: ratios within one run on one machine, medians of several repeats, one thread each."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fedray.config import RunConfig, make_config
from fedray.data.dataset import client_data, load
from fedray.data.protocols import rules_of
from fedray.federated import clients, cohort, rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.federated.local_training import train_clients
from fedray.methods import build
from fedray.types import Broadcast, ItemFeatures
from tests.oracles.fused import loop_of

ROOT = Path(__file__).parents[2]
PAPER = {"rounds": 1000, "batch_size": 256, "negatives": 4}
NCF = {"name": "fedncf", "dim": 32, "lr": 0.01}
METHODS = {
    "pfedrec": {"backbone": {"name": "fcf", "dim": 32}, "plugins": {"dualper": {}}},
    "fcf": {"backbone": {"name": "fcf", "dim": 32, "lr": 0.01}},
    "fedavg": {"backbone": {"name": "fedavg", "dim": 32}},
    "fedncf": {"backbone": NCF},
    "fedncf + dualper": {"backbone": NCF, "plugins": {"dualper": {}}},
    "fedrap": {"backbone": {"name": "fedrap", "dim": 32}, "train": {"local_epochs": 10, "batch_size": 2048}},
    "gpfedrec": {"backbone": {"name": "gpfedrec", "dim": 32}},
}
FUSED = ("fcf", "fedavg", "fedncf", "fedrap", "gpfedrec")
METHODS |= {f"{name} + fedvlr": {**METHODS[name], "plugins": {"fedvlr": {}}} for name in FUSED}
CONTENT = {"genres": 64, "text": 384}
"""Widths of the random item features that `fedvlr` is given."""
LOOPED = 100
"""So many clients are timed in the naive loop."""


def data_root() -> Path:
    """Where the real data are, if they are."""
    return Path(os.environ.get("FEDRAY_DATA", ROOT.parent / "shared" / "data"))


def source(name: str) -> dict:
    """The real set, or a synthetic one of its size."""
    if (data_root() / name).is_dir():
        return {"source": "folder", "name": name.replace("-", ""), "path": str(data_root() / name)}
    users, items = {"ml-100k": (943, 1682), "ml-1m": (6040, 3706)}[name]
    return {"source": "synthetic", "users": users, "items": items, "interactions": 105}


def config_of(method: str, data: str, path: str = "auto", rules: str = "paper/pfedrec") -> RunConfig:
    """One method on one data set, 99 candidates at validation and test."""
    body = {**METHODS[method], "data": source(data), "evaluation": {"protocol": rules, "k": [10]}}
    return make_config({**body, "train": {**PAPER, **METHODS[method].get("train", {}), "path": path}})


def prepared(config: RunConfig):
    """(all clients, method)"""
    dataset = load(config.data, rules_of(config.evaluation))
    n_items = dataset.interactions.n_items
    return client_data(dataset), build(config, n_items, features_of(n_items))


def features_of(n_items: int) -> ItemFeatures:
    """Random numbers, of every item: what a round costs does not depend on what they are."""
    rng = np.random.default_rng(0)
    tables = {m: rng.standard_normal((n_items, d), dtype=np.float32) for m, d in CONTENT.items()}
    return ItemFeatures(tables, {m: np.ones(n_items, bool) for m in tables}, f"random-{n_items}")


def stages(config: RunConfig, data, method, repeats: int) -> dict[str, float]:
    """Median seconds per stage of a whole round in this process on one thread."""
    executor = SerialExecutor([make_host(config, method, data)])
    run, reports = rounds.start(config, method), []
    for _ in range(repeats + 1):
        run, report = rounds.step(run, executor)
        reports.append(report)
    found = {k: statistics.median(r.seconds[k] for r in reports[1:]) for k in reports[0].seconds}
    return {**found, "bytes_up": reports[-1].bytes_up, "bytes_down": reports[-1].bytes_down}


def median_seconds(once: Callable[[], None], repeats: int, budget_s: float = 20.0) -> float:
    """Median of `repeats` calls after a first one, of fewer where they take longer than the budget. CPU seconds: on one
    thread of a quiet machine those of the clock, and on a busy one what they would be on a quiet one."""
    took: list[float] = []
    while len(took) <= repeats and sum(took) < budget_s:
        begun = time.process_time()
        once()
        took.append(time.process_time() - begun)
    return statistics.median(took[1:] or took)


def training_seconds(config: RunConfig, data, method, repeats: int) -> float:
    """The training stage of a round: gathering the rows (and targets), training, and whole tables where they are
    kept; what the loop's time is compared with."""
    host = make_host(config, method, data)
    state = Broadcast(0, method.down(method.init_server(0)))
    everyone = np.arange(len(data))
    samples = clients.samples_of(host, everyone, 0)

    def once() -> None:
        own = clients.own_targets(host, everyone, state, None)
        start = clients.start_of(host, everyone, state, samples, own)
        result = train_clients(method, config.train, 0, start, samples)
        clients.whole_of(method, state, samples, result, own)

    return median_seconds(once, repeats)


def loop_seconds(config: RunConfig, data, method, repeats: int) -> float:
    """The naive loop over some of the same clients, with the same samples and start, scaled to all of them."""
    who = some_clients(data.train.lengths())
    host = make_host(config, method, data.take(who))
    samples, loop = clients.samples_of(host, np.arange(len(who)), 0), loop_of(host, features_of(data.n_items))

    def once() -> None:
        for i in range(len(who)):
            loop.train(i, 0, samples, i)

    return median_seconds(once, repeats) * len(data) / len(who)


def some_clients(size: np.ndarray) -> np.ndarray:
    """LOOPED random clients that stand for all: in order of size, every so many-th from a random first."""
    every, first = len(size) / min(LOOPED, len(size)), np.random.default_rng(0).random()
    return np.sort(np.argsort(size, kind="stable")[((np.arange(len(size) / every) + first) * every).astype(int)])


def ratios(name: str, data_name: str, repeats: int) -> dict[str, float]:
    """The training stage against the naive loop and against the vmapped path, one thread each."""
    torch.set_num_threads(1)
    config = config_of(name, data_name)
    data, method = prepared(config)
    fast = training_seconds(config, data, method, repeats)
    vmapped = training_seconds(config_of(name, data_name, "vmap"), data, method, max(1, repeats // 4))
    loop = loop_seconds(config, data, method, max(1, repeats // 4))
    return {
        "train_s": fast,
        "vmap_s": vmapped,
        "loop_s": loop,
        "ratio_to_loop": loop / fast,
        "ratio_to_vmap": vmapped / fast,
        "vmap_ratio_to_loop": loop / vmapped,
    }


def ray_rounds(data_name: str, repeats: int) -> dict[str, float]:
    """Two actors on two cores against the serial executor on one thread, alternately placed; and an empty round."""
    from fedray.runtime import session
    from fedray.runtime.executor import RayExecutor, get
    from fedray.runtime.plan import make_plan

    config = config_of("pfedrec", data_name)
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"actors": 2})})
    data, method = prepared(config)
    serial = stages(config, data, method, repeats)["round"]
    with session.connected(config, "fedray-bench", session.local_resources()):
        plan = make_plan(config, method, data, session.resources())
        with session.crew(config, plan, data) as crew:
            took = [get(crew.driver.step.remote())[0].seconds["round"] for _ in range(repeats + 1)]
            empty = get(crew.driver.overhead.remote(50))
            limit = cohort.EVERYONE
            RayExecutor(crew.clients, data.client, method).train(Broadcast(repeats + 1, method.init_server(0)), limit)
    ray = statistics.median(took[1:])
    return {"serial_s": serial, "ray_2_actors_s": ray, "speedup": serial / ray, "empty_round_s": empty}
