"""A small grid, chosen on validation alone; the test set is not even scored.

    python -m tests.bench.search jobs/X.yaml backbone.lr=0.03,0.1 plugins.dualper.item_lr_scale=20,80

Prints a Markdown table of validation at each cell's best round. The data are read once.
"""

import itertools
import sys

from fedray.config import load_config
from fedray.data.protocols import rules_of
from fedray.errors import TrainingError
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.job import Prepared, prepare
from fedray.methods import build


def best_on_validation(base: Prepared, file: str, sets: list[str]) -> tuple[int, dict[str, float]]:
    """(best round, its validation metrics) of one cell."""
    config = load_config(file, [*sets, "evaluation.test=selected", "evaluation.controls=false"])
    method = build(config, base.data.n_items, base.dataset.features)
    executor = SerialExecutor([make_host(config, method, base.data)])
    run = rounds.start(config, method)
    while not rounds.finished(run):
        run, _ = rounds.step(run, executor)
    assert run.best is not None
    return run.best.round, dict(run.best.validation)


def main(file: str, *axes: str) -> None:
    """One row a cell, best first."""
    names, values = zip(*(axis.split("=") for axis in axes), strict=True)
    base = prepare(load_config(file, []))
    metric = rules_of(base.config.evaluation).lead
    rows: list[tuple[float, tuple[str, ...], int | str, float]] = []
    for cell in itertools.product(*(v.split(",") for v in values)):
        try:
            round_, found = best_on_validation(base, file, [f"{n}={v}" for n, v in zip(names, cell, strict=True)])
        except TrainingError as error:
            print(f"{cell} {error}", file=sys.stderr, flush=True)
            rows.append((0.0, cell, "diverged", 0.0))
            continue
        rows.append((found[metric], cell, round_, found["ndcg_at_10"]))
        print(f"{cell} {metric} {found[metric]:.4f} at round {round_}", file=sys.stderr, flush=True)
    print(f"| {' | '.join(names)} | best round | validation {metric} | validation ndcg_at_10 |")
    print("|" + "---|" * (len(names) + 3))
    for value, cell, round_, ndcg in sorted(rows, reverse=True):
        print(f"| {' | '.join(cell)} | {round_} | {value:.4f} | {ndcg:.4f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
