"""`make bench`: tables in Markdown, and bench.json. `--quick` leaves out ML-1M, `--readme` rewrites the README's."""

import json
import os
import sys
from pathlib import Path

from tests.bench import collected, measure
from tests.bench.memory import PeakHere
from tests.bench.results import ROOT, rewrite


def main() -> None:
    """Measure, print, keep."""
    sets = ["ml-100k"] if "--quick" in sys.argv else ["ml-100k", "ml-1m"]
    found: dict = {"cpus": os.cpu_count()}
    with PeakHere() as memory:
        config = measure.config_of("pfedrec", "ml-100k")
        data, method = measure.prepared(config)
        found["round"] = measure.stages(config, data, method, 20)
    found["round"] |= {"clients": len(data), "interactions": int(data.train.lengths().sum())}
    found["round"]["peak_pss_gib"] = memory.peak / 2**30
    for what in ("clients", "interactions"):
        found["round"][f"{what}_per_s_per_core"] = found["round"][what] / found["round"]["round"]
    found["methods"] = {name: measure.ratios(name, "ml-100k", 12) for name in measure.METHODS}
    found["ray"] = {name: measure.ray_rounds(name, 8) for name in sets}
    found["gpfedrec"] = [collected.measured("ml-100k")]
    found["plan"] = collected.planned()
    parts = [round_table(found["round"]), ratio_table(found["methods"]), ray_table(found["ray"])]
    text = "\n\n".join([*parts, collected.measured_table(found["gpfedrec"]), collected.plan_table(found["plan"])])
    print(text)
    Path("bench.json").write_text(json.dumps(found, indent=2))
    if "--readme" in sys.argv:
        readme = ROOT / "README.md"
        readme.write_text(rewrite(readme.read_text(), "bench", text))


def round_table(r: dict) -> str:
    """Milliseconds per stage, and what they come to."""
    names = ("samples", "train", "aggregate", "server", "evaluate", "round")
    return "\n".join(
        [
            "One round of PFedRec on ML-100K (943 clients, 99-candidate validation and test), one thread, ms:",
            "",
            f"| {' | '.join(names)} |",
            "|" + "---|" * len(names),
            f"| {' | '.join(f'{1000 * r[k]:.1f}' for k in names)} |",
            "",
            f"{r['clients_per_s_per_core']:,.0f} clients/s and {r['interactions_per_s_per_core']:,.0f} training "
            f"interactions/s per core; "
            f"{r['bytes_up'] / 1e6:.1f} MB up and {r['bytes_down'] / 1e6:.1f} MB down for all clients; "
            f"peak memory of the process {r['peak_pss_gib']:.2f} GiB.",
        ]
    )


def ratio_table(methods: dict) -> str:
    """The training stage three ways."""
    caption = (
        f"The training stage of a round on ML-100K, one thread. The loop is timed on {measure.LOOPED} clients, every "
        "so many-th by size, and scaled to all; 1 local epoch in batches of 256, fedrap 10 in batches of 2,048. fedvlr "
        f"has features of {' and '.join(map(str, measure.CONTENT.values()))} random numbers. A method without a kernel "
        "is vmapped in both columns:"
    )
    head = ("method", "compiled ms", "vmap ms", "naive loop ms", "`ratio_to_loop`", "ratio to vmap")
    rows = [
        f"| {n} | {1000 * r['train_s']:.1f} | {1000 * r['vmap_s']:.0f} | {1000 * r['loop_s']:.0f} "
        f"| {r['ratio_to_loop']:.0f} | {r['ratio_to_vmap']:.0f} |"
        for n, r in methods.items()
    ]
    return "\n".join([caption, "", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])


def ray_table(ray: dict) -> str:
    """Ray with two actors against one thread in one process."""
    head = (
        "whole round",
        "serial, 1 thread, s",
        "Ray, 2 actors, s",
        "speed-up",
        "Ray's own overhead (empty round), ms",
    )
    rows = [
        f"| {n} | {r['serial_s']:.3f} | {r['ray_2_actors_s']:.3f} | {r['speedup']:.2f} "
        f"| {1000 * r['empty_round_s']:.1f} |"
        for n, r in ray.items()
    ]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])


if __name__ == "__main__":
    main()
