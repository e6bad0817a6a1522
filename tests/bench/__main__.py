"""The table. `--quick` leaves out ML-1M."""

import json
import os
import platform
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import measure


def main() -> None:
    quick = "--quick" in sys.argv
    console = Console(width=100)
    found: dict = {"machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}"}
    with measure.PeakHere() as memory:
        config = measure.config_of("pfedrec", "ml-100k")
        data, method = measure.prepared(config)
        found["round"] = measure.stages(config, data, method, 10)
    found["peak_pss_gib"] = memory.peak / 2**30
    show_round(console, found["round"], len(data), int(data.train.lengths().sum()))
    found["methods"] = {name: measure.ratios(name, "ml-100k", 8) for name in measure.METHODS}
    show_ratios(console, found["methods"])
    found["ray"] = {n: measure.ray_rounds(n, 6) for n in (["ml-100k"] if quick else ["ml-100k", "ml-1m"])}
    show_ray(console, found["ray"])
    Path("bench.json").write_text(json.dumps(found, indent=2))
    console.print(f"peak memory of this process in the ML-100K round: {found['peak_pss_gib']:.2f} GiB")


def show_round(console: Console, stages: dict, n_clients: int, interactions: int) -> None:
    table = Table(title="PFedRec on ML-100K: one round, one thread", box=None)
    table.add_column("stage")
    table.add_column("ms", justify="right")
    for stage, seconds in stages.items():
        if not stage.startswith("bytes"):
            table.add_row(stage, f"{1000 * seconds:.1f}")
    console.print(table)
    per = stages["round"]
    console.print(f"{n_clients / per:,.0f} clients/s and {interactions / per:,.0f} interactions/s per core")
    console.print(f"{stages['bytes_up'] / 1e6:.1f} MB up, {stages['bytes_down'] / 1e6:.1f} MB down, all clients")


def show_ratios(console: Console, methods: dict) -> None:
    table = Table(title="training stage, ML-100K, one thread each", box=None)
    for column in ("method", "compiled ms", "vmap ms", "loop ms", "ratio_to_loop", "ratio_to_vmap", "vmap/loop"):
        table.add_column(column, justify="right")
    for name, r in methods.items():
        times = [f"{1000 * r[k]:.1f}" for k in ("train_s", "vmap_s", "loop_s")]
        table.add_row(name, *times, *[f"{r[k]:.1f}" for k in ("ratio_to_loop", "ratio_to_vmap", "vmap_ratio_to_loop")])
    console.print(table)


def show_ray(console: Console, ray: dict) -> None:
    table = Table(title="whole round: serial (1 thread) and Ray (2 actors)", box=None)
    for column in ("data", "serial s", "ray s", "speed-up", "empty round ms"):
        table.add_column(column, justify="right")
    for name, r in ray.items():
        times = [f"{r[k]:.3f}" for k in ("serial_s", "ray_2_actors_s")]
        table.add_row(name, *times, f"{r['speedup']:.2f}", f"{1000 * r['empty_round_s']:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
