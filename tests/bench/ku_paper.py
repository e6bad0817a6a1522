"""FedVLR's KU column: as published, what scorers without learning earn under its rules, and our runs.

    python -m tests.bench.ku_paper [--write]

Three constant scores equal published entries to both decimals (`tests/evaluation/test_anchors.py` holds them to it).
Runs are kept in .fedray/results and made again only where their settings have changed; --write makes the README's table
from what is there.
"""

import json
import sys

from fedray.config import make_config
from fedray.data.dataset import client_data, load
from fedray.data.protocols import rules_of
from fedray.evaluation.controls import Controls, controls
from tests.bench.quality import file_of, run
from tests.bench.results import ROOT, rewrite

JOBS = {"fcf_ku_paper": "FCF", "fedvlr_ku_paper": "FCF + FedVLR"}
METRICS = ("hr_at_50", "ndcg_at_50")
PUBLISHED = {
    "FCF": "22.55 / 6.43",
    "FCF + MLP": "36.76 / 12.40",
    "FCF + FedVLR": "55.39 / 15.97",
    "FedAvg + FedVLR": "54.90 / 16.04",
}
DATA = {"source": "folder", "path": "ku", "split": "given"}
CONSTANT = [  # row, options, split, what it equals
    ("constant, ties to the lowest id", {}, "test", "FCF + FedVLR"),
    ("the same, item 0 removed", {"mask_item0": True}, "test", "FedAvg + FedVLR"),
    ("the same, item 0 removed, on the validation item", {"mask_item0": True}, "valid", "FCF + MLP"),
    ("constant, ties to the lowest id, ids permuted (one draw)", {"permute_items": True}, "test", ""),
    ("constant, ties against the target", {"ties": "pessimistic"}, "test", ""),
]
OTHERS = [
    ("EASE (central), ties to the lowest id", "ease", {}),
    ("EASE, ties against the target", "ease", {"ties": "pessimistic"}),
    ("popularity", "popularity", {}),
    ("random", "random", {}),
]


def measured(options: dict) -> Controls:
    """All controls on KU under `paper/fedvlr` with these options."""
    config = make_config({"data": DATA, "evaluation": {"protocol": "paper/fedvlr", "options": options}})
    rules = rules_of(config.evaluation)
    dataset = load(config.data, rules)
    return controls(dataset, client_data(dataset), rules, (50,), {}, None)


def pair(found: dict[str, float]) -> str:
    """HR@50 / NDCG@50 in per cent."""
    return " / ".join(f"{100 * found[m]:.2f}" for m in METRICS)


def of_run(job: str) -> str:
    """Mean and standard deviation over seeds."""
    kept = json.loads(file_of(job).read_text())
    return " / ".join(f"{100 * kept['test'][m]:.2f} ± {100 * kept['std'][m]:.2f}" for m in METRICS)


def beside(name: str) -> str:
    """The published row of that name, if any."""
    return f"{name}: {PUBLISHED[name]}" if name else ""


def table() -> str:
    """Our runs, what knows nothing of the clients, other controls; published rows beside."""
    cache: dict[str, Controls] = {}

    def control(name: str, options: dict, split: str) -> str:
        key = json.dumps(options)
        cache[key] = cache.get(key) or measured(options)
        return pair(cache[key][name][split])

    rows = [(f"`{job}`", of_run(job), beside(name)) for job, name in JOBS.items()]
    rows += [(row, control("constant", o, s), beside(name)) for row, o, s, name in CONSTANT]
    rows += [(row, control(name, o, "test"), "") for row, name, o in OTHERS]
    lines = ["| row | HR@50 / NDCG@50 here | published |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(r)} |" for r in rows])


def main(args: list[str]) -> None:
    """Run what is missing, print, write."""
    for job in JOBS if "--write" not in args else ():
        run(job, job, "0..2", [])
    text = table()
    print(text)
    readme = ROOT / "README.md"
    readme.write_text(rewrite(readme.read_text(), "ku-paper", text))


if __name__ == "__main__":
    main(sys.argv[1:])
