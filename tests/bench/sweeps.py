"""What a sweep costs beside its trials, and where trials had better run: `python -m tests.bench.sweeps [trials]`.

The same random trials of FCF on ML-100K, none broken off, in one process each and with client actors; what they find
must be the same. Overhead: wall time x trials at once / seconds of all trials - 1.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SWEEP: dict[str, Any] = {
    "base": str(ROOT / "jobs" / "fcf_ml100k_clean.yaml"),
    "set": {"tracking.uri": "sqlite:///mlflow.db"},
    "space": {"backbone.lr": {"loguniform": [0.05, 0.5]}, "train.negatives": {"choice": [2, 4]}},
    "search": {"name": "random"},
    "scheduler": {"name": "none"},
}


def main(args: list[str]) -> None:
    """Both, and a table."""
    trials = int(args[0]) if args else 12
    ends = {place: swept(place, trials) for place in ("packed", "actors")}
    print("| trials run as | at once | trials an hour | overhead |\n|---|---|---|---|")
    for place, at_once in (("packed", 2), ("actors", 1)):
        costs = ends[place]["costs"]
        print(f"| {place} | {at_once} | {costs['trials_per_hour']:.0f} | {100 * costs['overhead']:.0f} % |")
    told = [[(t["number"], t["settings"], t["points"]) for t in end["trials"]] for end in ends.values()]
    print(f"\nthe same results: {told[0] == told[1]}")
    if told[0] != told[1]:
        raise SystemExit(1)


def swept(place: str, trials: int) -> dict[str, Any]:
    """The end of a sweep, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.yaml"
        file.write_text(yaml.safe_dump({**SWEEP, "budget": {"trials": trials}, "trials": {"place": place}}))
        command = [sys.executable, "-m", "fedray.cli", "tune", "sweep.yaml", "--summary", "end.json"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=folder, check=True, env=env, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads((Path(folder) / "end.json").read_text())
        return found


if __name__ == "__main__":
    main(sys.argv[1:])
