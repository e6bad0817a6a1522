"""What grouping synthetic clients costs: `python -m tests.bench.grouping` prints a table in Markdown.

Each row is measured in a process of its own: CPU seconds on one thread, and the peak resident memory over what the
imports take. Vectors of 8,321 numbers (FedNCF's layers) come in blocks, as from hosts, and are sketched on arrival.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from fedray import seeding
from fedray.federated.grouping import grouped, rand_index, sketched, standardised

GROUPS, BLOCK, SKETCH = 5, 1_000, 64
CASES = [
    (100_000, 33, "minibatch"),
    (100_000, 8_321, "minibatch"),
    (10_000, 33, "kmeans"),
    (10_000, 8_321, "kmeans"),
    (2_000, 33, "spectral"),
    (2_000, 8_321, "spectral"),
]


def main() -> None:
    """A process a row."""
    rows = [json.loads(subprocess.run(argv(i), check=True, capture_output=True, text=True).stdout) for i in range(6)]
    print(table(rows))


def argv(case: int) -> list[str]:
    """This module again, for one case."""
    return [sys.executable, "-m", "tests.bench.grouping", str(case)]


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
    if len(sys.argv) > 1:
        print(json.dumps(measured(*CASES[int(sys.argv[1])])))
    else:
        main()
