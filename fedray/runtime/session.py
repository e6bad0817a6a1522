"""Connect to Ray or start it, place a run's actors, and leave nothing behind."""

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import exceptions

from fedray.config import RunConfig
from fedray.errors import CheckpointError, ClusterError, PlacementError, Terminated
from fedray.federated.clients import first_tables
from fedray.methods import build
from fedray.runtime import client_actor, driver_actor
from fedray.runtime.address import reachable
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.executor import as_they_land, get
from fedray.runtime.failures import most_client_restarts, most_restarts
from fedray.runtime.plan import Plan, Resources, even_shards, shards
from fedray.storage import Storage
from fedray.types import ClientData, FeatureNames, ItemFeatures

QUIET = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_task_events_report_interval_ms": "0",
}
"""Defaults for a local cluster, unless the user set them: workers at normal priority, no usage reports, and no history
of requests, which the GCS keeps (15 KB a round) for a dashboard: there is none."""
CGROUP = Path("/sys/fs/cgroup")
SEEN = ".seen"


@contextmanager
def connected(config: RunConfig, namespace: str, there: Resources) -> Iterator[None]:
    """A connection to the configured cluster, or a local one of size `there` that ends with this block."""
    mine = not ray.is_initialized()
    if mine:
        try:
            with _signals_wait():
                _init(config, namespace, there)
        except (SystemExit, Terminated):  # SystemExit: Ray's own answer to SIGTERM at the end of its start
            ray.shutdown()
            raise Terminated from None
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """A signal while Ray starts is heard once it has started: half a Ray cannot be ended well. A second one at once."""
    heard: list[int] = []

    def note(number: int, _: Any) -> None:
        heard.append(number)
        if len(heard) > 1:
            raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    for first in heard:
        signal.raise_signal(first)


def _init(config: RunConfig, namespace: str, there: Resources) -> None:
    address = remote_address(config)
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "namespace": namespace}
    try:
        if address:
            ray.init(address=address, **quiet)
            return
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        size = {"num_cpus": int(there.cpus), "num_gpus": int(there.gpus)}
        ray.init(address="local", include_dashboard=False, **size, **quiet)
    except (OSError, exceptions.RayError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, found: str) -> ClusterError:
    first = (found.splitlines() or ["no details"])[0]
    if address:
        return ClusterError(
            f"no Ray cluster at {address}: {first}",
            "a running cluster that lets you in",
            "Start one with `ray start --head`, set RAY_AUTH_MODE=token and a token if it wants one, "
            "or leave runtime.address and RAY_ADDRESS empty for a local cluster.",
        )
    return ClusterError(
        f"Ray does not start here: {first}",
        "a writable home (for the token, RAY_AUTH_TOKEN_PATH) and temporary folder (RAY_TMPDIR)",
        "Set those, or use runtime.executor=serial.",
    )


def probe(config: RunConfig) -> None:
    """Fail within seconds where Ray itself would try an address for minutes."""
    address = remote_address(config)
    if not reachable(address):
        raise _no_cluster(address, "nobody answers")


def resources() -> Resources:
    """What the connected cluster has."""
    total = ray.cluster_resources()
    memory = total.get("memory", 0.0) + total.get("object_store_memory", 0.0)
    nodes = tuple(n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"])
    return Resources(total.get("CPU", 0.0), total.get("GPU", 0.0), memory, tuple(n for n in nodes if n > 0))


def resources_free() -> str:
    """What nobody uses on the connected cluster, in words."""
    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"


def local_resources() -> Resources:
    """What this machine, or the container round this process, has free, without starting Ray."""
    import torch

    cpus = min(len(os.sched_getaffinity(0)), _cgroup("cpu.max", os.cpu_count() or 1))
    free = float(psutil.virtual_memory().available)
    limit = _cgroup("memory.max", math.inf)
    if limit < math.inf:
        free = min(free, limit - (_cgroup("memory.current", 0.0) - _file_cache()))
    return Resources(float(max(1, int(cpus))), float(torch.cuda.device_count()), float(free))


def _file_cache() -> float:
    """Bytes of this container that are given back when they are asked for: pages of files not read lately."""
    try:
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        return float(dict(line.split() for line in lines)["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0.0


def _cgroup(name: str, otherwise: float) -> float:
    """A limit of this container (cgroup v2): bytes, or CPUs as quota over period."""
    try:
        first, *period = (CGROUP / name).read_text().split()
        return float(first) / float(period[0]) if period else float(first)
    except (OSError, ValueError, IndexError):
        return otherwise


def remote_address(config: RunConfig) -> str:
    """Of the cluster to join; empty: a local one is started."""
    return config.runtime.address or os.environ.get("RAY_ADDRESS", "")


@dataclass(frozen=True)
class Crew:
    """A run's actors. The entrypoint owns them all: if the driver owned the clients, its death would be theirs."""

    driver: Any
    clients: list[Any]
    birth: tuple[Any, ...] = ()
    """What a driver is told first; Ray's references in it keep the clients' data there, for actors to come back."""


@contextmanager
def crew(
    config: RunConfig,
    plan: Plan,
    data: ClientData,
    features: ItemFeatures | None = None,
    checkpoints: Checkpoints | None = None,
) -> Iterator[Crew]:
    """The run's actors, alive and ready; killed at the end of the block, however it ends. Of content clients are told
    the names, and only the driver gets it."""
    actors: list[Any] = []
    try:
        births = _births(config, plan, data, features)
        actors += _clients(config, plan, births, features)
        _await(actors, plan, config.runtime.start_timeout_s)
        if checkpoints:
            _check_shared(actors, checkpoints.storage)
        birth = list(actors), births, ray.put(data.client), data.n_items, ray.put(features)
        driver = driver_actor.Remote.options(num_cpus=0, **_lives(most_restarts(config))).remote(config, checkpoints)
        actors.append(driver)
        get(driver.begin.remote(*birth))
        yield Crew(driver, actors[:-1], birth)
    finally:
        for actor in actors:
            ray.kill(actor)


def split(config: RunConfig, plan: Plan, data: ClientData) -> list[Any]:
    """Which clients live on which actor."""
    if config.runtime.clients_per_actor != "auto":
        return even_shards(data, config.runtime.clients_per_actor)
    return shards(data, plan.actors)


def _births(config: RunConfig, plan: Plan, data: ClientData, features: ItemFeatures | None) -> list[list[Any]]:
    """What each client actor is told first: its clients, and the tables that all start from."""
    initial = ray.put(first_tables(build(config, data.n_items, features), config.seed))
    return [[ray.put(data.take(part)), initial] for part in split(config, plan, data)]


def _clients(config: RunConfig, plan: Plan, births: list[list[Any]], features: ItemFeatures | None) -> list[Any]:
    """Client actors, on their way."""
    names = FeatureNames(features.names) if features else None
    lives = _lives(most_client_restarts(config))
    options = {"num_cpus": plan.cpus_per_actor, "num_gpus": plan.gpus_per_actor, **lives}
    actors = [client_actor.Remote.options(**options).remote(config, plan.device, names) for _ in births]
    for actor, birth in zip(actors, births, strict=True):
        actor.begin.remote(*birth)
    return actors


def _lives(most: int) -> dict[str, int]:
    """How often Ray starts an actor again and repeats a request: without end, since the executor counts, or not."""
    lives = -1 if most else 0
    return {"max_restarts": lives, "max_task_retries": lives}


def _check_shared(actors: list[Any], storage: Storage) -> None:
    """What this process writes there, every actor sees."""
    storage.write(SEEN, b"")
    if not all(as_they_land([a.sees.remote(storage, SEEN) for a in actors])):
        raise CheckpointError(
            "actors on other nodes do not see what is written there",
            "a folder or URI that all nodes share",
            "Set runtime.checkpoint.path; or runtime.checkpoint.every=0, and do without.",
            storage.url,
        )


def _await(actors: list[Any], plan: Plan, timeout_s: float) -> None:
    """All actors ready, or an error that says what was asked and what there is."""
    refs = [a.ready.remote() for a in actors]
    # a literal federation of hundreds starts about one actor a second
    timeout_s = max(timeout_s, 3.0 * len(actors))
    ready, waiting = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
    for ref in ready:
        get(ref)
    if waiting:
        free = ray.available_resources()
        raise PlacementError(
            f"{len(waiting)} of {len(actors)} client actors are not up after {timeout_s:.0f} s; asked for "
            f"{plan.cpus_per_actor:g} CPU and {plan.gpus_per_actor:g} GPU each",
            f"room on the cluster (free: {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU)",
            "Lower runtime.actors, wait for other jobs to end, or raise runtime.start_timeout_s.",
        )
