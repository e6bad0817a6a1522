"""What GPFedRec's whole tables cost: rounds of it in this process, and what the memory plan says of other sizes.

python -m tests.bench.collected              # two rounds on ML-100K, and the plan's table
python -m tests.bench.collected ml-1m        # ... on ML-1M: some 15 GB and half an hour
"""

import sys
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np

from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.methods import build
from fedray.runtime.plan import Resources, make_plan
from fedray.types import ClientData, Ragged
from tests.bench.measure import config_of, prepared
from tests.bench.memory import PeakHere

SIZES = {"ML-100K": (943, 1_682, 104), "ML-1M": (6_040, 3_706, 164), "Amazon-Video": (8_072, 11_830, 6)}
"""Clients, items, and training interactions of a client."""
GB = 1e9


def sized(clients: int, items: int, each: int) -> ClientData:
    """As many clients as that, all with the same interactions: enough for a plan, and nothing else is made."""
    ptr = np.arange(clients + 1, dtype=np.int64)
    train = Ragged(ptr * each, np.tile(np.arange(each, dtype=np.int64), clients))
    held_out = [Ragged(ptr, np.full(clients, each + i, np.int64)) for i in (0, 1)]
    return ClientData(np.arange(clients), train, *held_out, items)


def needed(clients: int, items: int, each: int, actors: int = 0):
    """The plan for GPFedRec; without actors, in one process."""
    config = config_of("gpfedrec", "ml-100k")
    kind = {"executor": "ray", "actors": actors} if actors else {"executor": "serial"}
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update=kind)})
    return make_plan(config, build(config, items), sized(clients, items, each), Resources(2.0, 0.0, 1e12))


def most_clients(items: int, each: int, limit: float, actors: int = 0) -> int:
    """The largest number of clients whose plan stays within `limit` bytes."""
    low, high = 1, 1 << 17
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if needed(middle, items, each, actors).total_bytes > limit else (middle, high)
    return low


def planned() -> dict[str, dict[str, float]]:
    """The plan's figures by size, in bytes, and how many clients with ML-1M's catalogue fit in 24 GB."""
    found = {}
    for name, (clients, items, each) in SIZES.items():
        serial, ray = needed(clients, items, each), needed(clients, items, each, 2)
        found[name] = {
            "clients": clients, "items": items, "tables": 4.0 * clients * items * 32, "graph": 4.0 * clients**2,
            "driver": ray.server_bytes, "serial": serial.total_bytes, "ray_2_actors": ray.total_bytes,
        }  # fmt: skip
    _, items, each = SIZES["ML-1M"]
    return {**found, "fits": {str(a): most_clients(items, each, 24 * GB, a) for a in (0, 2)}}


def plan_table(found: dict) -> str:
    """GB by size, and where ML-1M's catalogue stops to fit."""
    head = ("GPFedRec, d 32: plan, GB", "a table a client", "graph", "driver, 2 actors", "all, 2 actors", "one process")
    keys = ("tables", "graph", "driver", "ray_2_actors", "serial")
    rows = [
        f"| {name}, {r['clients']:,} clients x {r['items']:,} items | {' | '.join(f'{r[k] / GB:.2f}' for k in keys)} |"
        for name, r in found.items()
        if name != "fits"
    ]
    most = f"up to {found['fits']['0']:,} clients in one process, up to {found['fits']['2']:,} on 2 actors"
    end = f"ML-1M's catalogue fits in 24 GB {most}."
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows, "", end])


def measured(name: str, n_rounds: int = 2) -> dict[str, float]:
    """CPU seconds of the last of some rounds (from the second on the clients have targets), and the peak of all, GB."""
    config = config_of("gpfedrec", name)
    data, method = prepared(config)
    graph = []

    def timed(state, uploads):
        begun = time.process_time()
        out = method.personalise(state, uploads)
        graph.append(time.process_time() - begun)
        return out

    plan = needed(len(data), data.n_items, round(data.train.lengths().mean()))
    slow = method._replace(personalise=timed)
    cpu = SimpleNamespace(perf_counter=time.process_time)  # the stages' clock, so that a busy machine matters less
    with PeakHere() as memory, mock.patch("fedray.federated.clients.time", cpu):
        run, executor = rounds.start(config, slow), SerialExecutor([make_host(config, slow, data)])
        for _ in range(n_rounds):
            run, report = rounds.step(run, executor)
    s = report.seconds
    return {
        "clients": len(data), "items": data.n_items, "train_s": s["train"], "collect_s": s["server"] - graph[-1],
        "graph_s": graph[-1], "evaluate_s": s["evaluate"], "clock_s": s["round"], "peak_gb": memory.peak / GB,
        "plan_gb": plan.total_bytes / GB,
    }  # fmt: skip


def measured_table(found: list[dict[str, float]]) -> str:
    """A row per size."""
    head = ("GPFedRec, one thread, CPU s", "train", "collect", "graph and means", "evaluate", "round by the clock")
    keys = ("train_s", "collect_s", "graph_s", "evaluate_s", "clock_s", "peak_gb", "plan_gb")
    rows = [
        f"| {r['clients']:,} clients x {r['items']:,} items | {' | '.join(f'{r[k]:.2f}' for k in keys)} |"
        for r in found
    ]
    return "\n".join([f"| {' | '.join([*head, 'peak GB', 'plan GB'])} |", "|" + "---|" * 8, *rows])


if __name__ == "__main__":
    print(measured_table([measured(name) for name in sys.argv[1:] or ["ml-100k"]]), plan_table(planned()), sep="\n\n")
