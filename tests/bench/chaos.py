"""Kill at random, many times over, and compare to the bit: `python -m tests.bench.chaos [kills]` prints a table. What
else can go wrong follows, in processes of its own (`tests.bench.disturbances`). With `--drop` the same kills under
`runtime.recovery: drop`: no bits to compare, but each round's clients are counted, and none may be lost for good.

A run of PFedRec on synthetic users, 60 rounds, on a cluster of a head and two worker nodes on this machine. Between and
in the middle of rounds a client actor, all of them, the driver actor, or a whole worker node is killed with SIGKILL; a
node that went is replaced. The end is compared with that of an undisturbed serial run: every round's metrics, every
user's test metrics, the shared parameters. At the end nothing may be left on the cluster: no actor, no placement group,
no object more than there were. Time to recover: how much longer the round took than the median one without a kill.
"""

import gc
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from typing import Any

import numpy as np

from tests.bench.hosts import free_ports

ROUNDS, KILLS = 60, 40
KINDS = ("a client", "all clients", "the driver", "a node")
DATA = {"source": "synthetic", "users": 400, "items": 600}
PFEDREC = {"backbone": {"name": "fcf", "dim": 32, "lr": 0.1}, "plugins": {"dualper": {"item_lr_scale": 20}}}


def main(args: list[str]) -> None:
    """Run both and compare."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from tests.bench import disturbances

    if "--drop" in args:
        dropping(*[int(a) for a in args if a != "--drop"])
        return
    kills, folder = int(args[0]) if args else KILLS, tempfile.mkdtemp(prefix="chaos")
    expected = undisturbed(folder)
    with Nodes() as nodes:
        before = objects(nodes)
        found, times, restarts = disturbed(folder, nodes, kills)
        left = leftovers(nodes, before)
    shutil.rmtree(folder)
    same = {k: equal(found[k], expected[k]) for k in expected}
    done = sum(len(times[k]) for k in KINDS)
    print(table(times))
    print(f"\n{done} kills, {restarts} restarts; the same bits: {json.dumps(same)}; left: {left}")
    well = disturbances.all_of_them()
    if not all(same.values()) or left or not well:
        raise SystemExit(1)


def dropping(kills: int = KILLS) -> None:
    """The kills without recovery: prints how many clients were missing, and what it did to the end."""
    folder = tempfile.mkdtemp(prefix="chaos")
    expected = undisturbed(folder)
    with Nodes() as nodes:
        before = objects(nodes)
        found, times, restarts = disturbed(folder, nodes, kills, "drop")
        left = leftovers(nodes, before)
    shutil.rmtree(folder)
    everybody, ok = DATA["users"], [clients for *_, clients in found["rounds"]]
    missing = [everybody - n for n in ok]
    print(table(times))
    print(f"\n{kills} kills, {restarts} restarts; rounds without somebody: {sum(n > 0 for n in missing)} of {len(ok)}")
    print(f"clients missing in such a round, median: {statistics.median([n for n in missing if n] or [0]):.0f}")
    print(f"clients in the test: {len(found['users']['client'])} of {everybody}; left: {left}")
    ends = [float(numbers["test"]["ndcg_at_10"]) for numbers in (expected, found)]
    print(f"ndcg_at_10 {ends[0]:.4f} undisturbed, {ends[1]:.4f} with kills")
    if left or len(ok) != ROUNDS or len(found["users"]["client"]) != everybody or not any(missing):
        raise SystemExit(1)


def config_of(folder: str, executor: str, recovery: str = "exact") -> Any:
    """A round takes some 40 ms; a checkpoint every fifth."""
    from fedray.config import make_config

    runtime = {"executor": executor, "actors": 2, "checkpoint": {"path": folder, "every": 5}, "max_restarts": 1000}
    runtime["recovery"] = recovery
    body = {"data": DATA, **PFEDREC, "train": {"rounds": ROUNDS}, "evaluation": {"controls": False}}
    return make_config({**body, "runtime": runtime})


def numbers(reports: list[Any], outcome: Any, saved: Any) -> dict[str, Any]:
    """What must not change."""
    return {
        "rounds": [(r.round, dict(r.metrics), r.bytes_up, r.bytes_down, r.clients_ok) for r in reports],
        "test": dict(outcome.test),
        "users": {k: np.array(v) for k, v in outcome.users.items()},
        "parameters": {k: np.array(v) for k, v in saved[0].items()},  # copies: views would keep Ray's objects
    }


def equal(a: Any, b: Any) -> bool:
    """To the bit, arrays too."""
    if isinstance(b, dict) and any(isinstance(v, np.ndarray) for v in b.values()):
        return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in b)
    return bool(a == b)


def undisturbed(folder: str) -> dict[str, Any]:
    """In this process."""
    from fedray.federation import federation
    from fedray.job import prepare
    from fedray.runtime import plan, session

    config = config_of(folder, "serial")
    job = prepare(config)
    there = plan.make_plan(config, job.method, job.data, session.local_resources())
    with federation(config, job.method, job.data, job.dataset.features, there) as run:
        reports = list(run.rounds())
        return numbers(reports, run.finish(), run.save(f"{folder}/serial"))


class Nodes:
    """A head and two worker nodes, as a context; one that is killed is replaced."""

    def __init__(self, runtime_env: Any = None) -> None:
        from ray.cluster_utils import Cluster

        self._env = runtime_env
        (port,) = free_ports(1)  # 8265 may be somebody else's, and so may be the cluster that Ray finds by itself
        self.dashboard = f"http://127.0.0.1:{port}"
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    def __enter__(self) -> "Nodes":
        import ray

        quiet = {"logging_level": "ERROR", "log_to_driver": False, "namespace": "chaos"}
        ray.init(address=self.cluster.address, runtime_env=self._env, **quiet)
        return self

    def __exit__(self, *_: Any) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()

    def replaced(self, which: int) -> Any:
        """A node, which another takes the place of; to be killed."""
        old, self.workers[which] = self.workers[which], self.cluster.add_node(num_cpus=1)
        return old


def disturbed(
    folder: str, nodes: Nodes, kills: int, recovery: str = "exact"
) -> tuple[dict[str, Any], dict[str, list[float]], int]:
    """(numbers, seconds lost by kind of kill, restarts)"""
    from fedray.federation import Driver
    from fedray.job import prepare
    from fedray.runtime import session
    from fedray.runtime.checkpoint import Go, opened
    from fedray.runtime.executor import get
    from fedray.runtime.plan import make_plan

    config, rng = config_of(folder, "ray", recovery), random.Random(7)
    job = prepare(config)
    plan = make_plan(config, job.method, job.data, session.resources())
    when = sorted(rng.sample(range(1, ROUNDS), min(kills, ROUNDS - 1)))
    times: dict[str, list[float]] = defaultdict(list)
    with session.crew(config, plan, job.data, job.dataset.features, opened(config, "d", "cpu", Go("r"))) as crew:
        driver, reports, quiet = Driver(crew, config), [], []
        rounds = driver.rounds()
        while len(reports) < ROUNDS:
            kind = KINDS[rng.randrange(len(KINDS))] if len(reports) in when else ""
            if kind:
                node = nodes.replaced(rng.randrange(2)) if kind == "a node" else None
                soon = threading.Thread(target=kill, args=(pids(kind, crew, get), nodes, node, rng.random() * 0.02))
                soon.start()
            begun = time.perf_counter()
            reports.append(next(rounds))
            (times[kind] if kind else quiet).append(time.perf_counter() - begun)
            if kind:
                soon.join()
                print(f"round {len(reports)}: {kind}, {times[kind][-1]:.1f} s", file=sys.stderr, flush=True)
        found = numbers(reports, driver.asked("finish"), driver.asked("save", f"{folder}/ray"))
    usual = statistics.median(quiet)
    lost = {kind: [max(0.0, t - usual) for t in times[kind]] for kind in KINDS}
    return found, {**lost, "(a round)": quiet}, reports[-1].restarts


def pids(kind: str, crew: Any, get: Any) -> list[int]:
    """Whom this kind of kill meets."""
    from fedray.errors import FedrayError

    if kind == "the driver":
        return [get(crew.driver.pid.remote())]
    if kind == "a node":
        return []
    alive = []
    for actor in crew.clients:
        with suppress(FedrayError):  # under drop the last kill's actor may still be away
            alive.append(get(actor.ready.remote())["pid"])
    return alive if kind == "all clients" else alive[:1]


def kill(whom: list[int], nodes: Nodes, node: Any, wait_s: float) -> None:
    """A little into the round."""
    time.sleep(wait_s)
    if node is not None:
        nodes.cluster.remove_node(node, allow_graceful=False)
    for pid in whom:
        os.kill(pid, signal.SIGKILL)


def objects(nodes: Nodes) -> int:
    """That anybody on the cluster refers to."""
    from ray.util.state import list_objects

    gc.collect()
    return len(list_objects(nodes.dashboard, limit=10_000, raise_on_missing_output=False))


def leftovers(nodes: Nodes, before: int) -> list[str]:
    """What outlives the run: actors, placement groups, objects that were not there before."""
    from ray.util.state import list_actors, list_placement_groups

    end, living = time.monotonic() + 30, [("state", "!=", "DEAD")]
    while True:
        found = [f"actor {a.class_name} ({a.state})" for a in list_actors(nodes.dashboard, filters=living)]
        found += [f"placement group {p.name}" for p in list_placement_groups(nodes.dashboard) if p.state != "REMOVED"]
        found += [f"{more} objects"] if (more := objects(nodes) - before) > 0 else []
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.5)


def table(times: dict[str, list[float]]) -> str:
    """Markdown."""
    lines = ["| killed | times | seconds lost: median | worst |", "|---|---|---|---|"]
    for kind, lost in times.items():
        if lost:
            lines.append(f"| {kind} | {len(lost)} | {statistics.median(lost):.2f} | {max(lost):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
