"""What grouping synthetic clients costs: `python -m tests.bench.grouping` prints a table in Markdown.

Each row is measured in a process of its own: CPU seconds on one thread, and the peak resident memory over what the
imports take. Vectors of 8,321 numbers (FedNCF's layers) come in blocks, as from hosts, and are sketched on arrival.
Then whole rounds of FCF with GFMFR on synthetic clients, in one process: medians of the stages by the clock.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from fedray import seeding
from fedray.config import make_config
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.federated.grouping import grouped, rand_index, sketched, standardised
from fedray.job import prepare
from fedray.methods import build

GROUPS, BLOCK, SKETCH = 5, 1_000, 64
CASES = [
    (100_000, 33, "minibatch"),
    (100_000, 8_321, "minibatch"),
    (10_000, 33, "kmeans"),
    (10_000, 8_321, "kmeans"),
    (2_000, 33, "spectral"),
    (2_000, 8_321, "spectral"),
]
ROUNDS_OF = (20_000, 100_000)
STAGES = ("samples", "train", "aggregate", "group", "reduce", "fit", "round")
ROUNDS = 4


def main() -> None:
    """A process a row."""
    print(table([of("case", i) for i in range(len(CASES))]), end="\n\n")
    print(round_table([of("round", n) for n in ROUNDS_OF]))


def of(what: str, n: int) -> dict:
    """This module again, for one row."""
    argv = [sys.executable, "-m", "tests.bench.grouping", what, str(n)]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def whole_round(n: int) -> dict:
    """Median seconds by stage of ROUNDS rounds after the first, and the peak of all of it."""
    data = {"source": "synthetic", "users": n, "items": 2_000, "interactions": 20}
    body = {"data": data, "backbone": {"name": "fcf", "dim": 32}, "plugins": {"gfmfr": {"groups": GROUPS}}}
    config = make_config(body | {"evaluation": {"every": 1_000}, "runtime": {"executor": "serial"}})
    there = prepare(config)
    method = build(config, there.data.n_items, there.dataset.features)
    executor = SerialExecutor([make_host(config, method, there.data)])
    run, seen = rounds.start(config, method), []
    for _ in range(ROUNDS + 1):
        run, report = rounds.step(run, executor)
        seen.append(report.seconds)
    return {"n": n, "mib": peak(), **{k: statistics.median(s[k] for s in seen[1:]) for k in STAGES}}


def round_table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [f"| clients | {' s | '.join(STAGES)} s | peak MiB of the process |", "|" + "---|" * (len(STAGES) + 2)]
    stages = [" | ".join(f"{r[k]:.2f}" for k in STAGES) for r in rows]
    return "\n".join(lines + [f"| {r['n']:,} | {s} | {r['mib']:,.0f} |" for r, s in zip(rows, stages, strict=True)])


def measured(n: int, p: int, how: str) -> dict:
    """Seconds of each stage, and peak memory."""
    import sklearn.cluster  # noqa: F401  imported once a process: no part of what a round costs

    torch.set_num_threads(1)
    before, spent = peak(), 0.0
    blocks, labels = [], []
    for lo in range(0, n, BLOCK):
        block, label = vectors(lo, min(BLOCK, n - lo), p)
        begun = time.process_time()
        blocks.append(sketched(block, SKETCH, 0) if p > SKETCH else block)
        spent += time.process_time() - begun
        labels.append(label)
    begun = time.process_time()
    x = standardised(np.concatenate(blocks))
    found = grouped(x, GROUPS, how, seeding.key(0, "grouping"))
    took = time.process_time() - begun
    agreed = rand_index(found, np.concatenate(labels))
    sketch = spent if p > SKETCH else None
    return {"n": n, "p": p, "how": how, "sketch": sketch, "group": took, "mib": peak() - before, "ari": agreed}


def vectors(lo: int, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Clients lo..lo+n-1, round GROUPS centres at a distance of the noise's size."""
    centres = np.random.default_rng(0).standard_normal((GROUPS, p), np.float32)
    rng = np.random.default_rng([1, lo])
    label = rng.integers(0, GROUPS, n)
    return centres[label] + rng.standard_normal((n, p), np.float32), label


def peak() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(rows: list[dict]) -> str:
    """Markdown."""
    head = ("clients", "numbers", "clusters by", "sketching s", "grouping s", "peak MiB over imports", "Rand index")
    lines = [
        f"| {r['n']:,} | {r['p']:,} | {r['how']} | {'-' if r['sketch'] is None else format(r['sketch'], '.1f')} "
        f"| {r['group']:.2f} | {r['mib']:.0f} | {r['ari']:.3f} |"
        for r in rows
    ]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines])


if __name__ == "__main__":
    if sys.argv[1:2] == ["case"]:
        print(json.dumps(measured(*CASES[int(sys.argv[2])])))
    elif sys.argv[1:2] == ["round"]:
        print(json.dumps(whole_round(int(sys.argv[2]))))
    else:
        main()
