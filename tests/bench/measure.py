"""What the bench measures: ratios within one run on one machine, medians of several repeats, one thread each."""

import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from fedray.config import RunConfig, make_config
from fedray.data.dataset import client_data, load
from fedray.data.protocols import protocol
from fedray.federated import clients, cohort, rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.federated.local_training import train_clients
from fedray.methods import build
from fedray.types import Broadcast
from tests.oracles.naive_loop import LinearClient, train_client

ROOT = Path(__file__).parents[2]
PAPER = {"rounds": 1000, "batch_size": 256, "negatives": 4}
METHODS = {
    "pfedrec": {"backbone": {"name": "fcf", "dim": 32}, "plugins": {"dualper": {}}, "train": PAPER},
    "fcf": {"backbone": {"name": "fcf", "dim": 32, "lr": 0.01}, "train": PAPER},
    "fedavg": {"backbone": {"name": "fedavg", "dim": 32}, "train": PAPER},
}


def data_root() -> Path:
    """Where the real data are, if they are."""
    return Path(os.environ.get("FEDRAY_DATA", ROOT.parent / "shared" / "data"))


def source(name: str) -> dict:
    """The real set, or a synthetic one of its size."""
    if (data_root() / name).is_dir():
        return {"source": "folder", "name": name.replace("-", ""), "path": str(data_root() / name)}
    users, items = {"ml-100k": (943, 1682), "ml-1m": (6040, 3706)}[name]
    return {"source": "synthetic", "users": users, "items": items, "interactions_per_user": 105}


def config_of(method: str, data: str, path: str = "auto", rules: str = "paper/pfedrec") -> RunConfig:
    """One method on one data set, 99 candidates at validation and test."""
    body = {**METHODS[method], "data": source(data), "evaluation": {"protocol": rules, "k": [10]}}
    return make_config({**body, "train": {**PAPER, "path": path}})


def prepared(config: RunConfig):
    """(all clients, method)"""
    dataset = load(config.data, protocol(config.evaluation.protocol))
    return client_data(dataset), build(config, dataset.interactions.n_items)


def stages(config: RunConfig, data, method, repeats: int) -> dict[str, float]:
    """Median seconds per stage of a whole round in this process on one thread."""
    executor = SerialExecutor([make_host(config, method, data)])
    run, reports = rounds.start(config, method), []
    for _ in range(repeats + 1):
        run, report = rounds.step(run, executor)
        reports.append(report)
    found = {k: statistics.median(r.seconds[k] for r in reports[1:]) for k in reports[0].seconds}
    return {**found, "bytes_up": reports[-1].bytes_up, "bytes_down": reports[-1].bytes_down}


def training_seconds(config: RunConfig, data, method, repeats: int) -> float:
    """Median of gathering the rows and training them: what the loop's time is compared with."""
    host = make_host(config, method, data)
    state = Broadcast(0, method.init_server(0))
    everyone = np.arange(len(data))
    samples = clients.samples_of(host, everyone, 0)

    def once() -> float:
        begun = time.perf_counter()
        start = clients.start_of(host, everyone, state, samples)
        train_clients(method, config.train, 0, start, samples)
        return time.perf_counter() - begun

    once()
    return statistics.median(once() for _ in range(repeats))


def loop_seconds(config: RunConfig, data, method, repeats: int) -> float:
    """The naive loop over the same clients, samples and start."""
    host = make_host(config, method, data)
    table, heads = method.init_server(0)["item_embedding"], method.init_clients(0, data.client)
    samples = clients.samples_of(host, np.arange(len(data)), 0)
    phases = method.phases(0)

    def once() -> float:
        begun = time.perf_counter()
        for c in range(len(data)):
            lo, hi = samples.sample_ptr[c], samples.sample_ptr[c + 1]
            own = samples.rows[samples.row_ptr[c] : samples.row_ptr[c + 1]]
            items = torch.from_numpy(own[samples.item[lo:hi]].astype(np.int64))
            labels = torch.from_numpy(samples.label[lo:hi])
            model = LinearClient(table, heads["head_weight"][c], heads["head_bias"][c])
            train_client(model, items, labels, samples.order[:, lo:hi], config.train.batch_size, phases, 0.0)
        return time.perf_counter() - begun

    return statistics.median(once() for _ in range(repeats))


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
            RayExecutor(crew.clients, data.client).train(Broadcast(999, method.init_server(0)), limit)
    ray = statistics.median(took[1:])
    return {"serial_s": serial, "ray_2_actors_s": ray, "speedup": serial / ray, "empty_round_s": empty}


def peak_memory(args: list[str], cwd: Path, every_s: float = 0.5) -> dict[str, float]:
    """Peak sum of PSS over a `fedray train` and all processes it started, and how flat it is over the rounds."""
    process = subprocess.Popen([sys.executable, "-m", "fedray.cli", "train", *args], cwd=cwd, stdout=subprocess.DEVNULL)
    seen: list[tuple[float, float]] = []
    begun = time.perf_counter()
    while process.poll() is None:
        seen.append((time.perf_counter() - begun, pss(process.pid)))
        time.sleep(every_s)
    if process.returncode:
        raise RuntimeError(f"fedray train {' '.join(args)} ended with {process.returncode}")
    values = np.array([v for _, v in seen])
    half = values[len(values) // 2 : -4]
    return {
        "peak_gib": float(values.max()) / 2**30,
        "third_quarter_gib": float(half[: len(half) // 2].max()) / 2**30,
        "last_quarter_gib": float(half[len(half) // 2 :].max()) / 2**30,
        "seconds": seen[-1][0],
    }


def pss(pid: int) -> float:
    """Sum of proportional set sizes of a process and its descendants, bytes."""
    total = 0.0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


class PeakHere:
    """The peak PSS of this process while the block runs."""

    def __enter__(self):
        self.peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *args):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, psutil.Process().memory_full_info().pss)
