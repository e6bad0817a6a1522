"""Does a group's preference help? Each backbone alone, with `gfmfr`, with `fedvlr` and with both, tuned on validation.

    python -m tests.bench.groups [data ...] [--only BACKBONE ...] [--write]

How they are tuned: `tests/bench/tuned.py`; the jobs with `fedvlr` are those of `content` (PFedRec's are made here).
Then 5 seeds of each, and of `gfmfr` with the features shuffled between items, with random groups, and with 1, 2, 5, 10
and 20 groups (without distillation, it is its backbone). --write makes the README's tables from what is there.
"""

import sys

from tests.bench.results import ROOT
from tests.bench.tuned import Stack, asked, prepared, row, run, table, written

BACKBONES = ("fedncf", "fcf_dualper", "fedrap", "fcf")
PLUGINS = ("", "gfmfr", "fedvlr", "gfmfr_fedvlr")
CONTROLS = {
    "shuffled": "data.shuffle_features=true",
    "random": "plugins.gfmfr.grouping=random",
    **{f"groups{g}": f"plugins.gfmfr.groups={g}" for g in (1, 2, 5, 10, 20)},
}


def table_of(data: str) -> str:
    """The rows of a data set."""
    controls = [f"gfmfr_{{}}_{data}_clean_{name}" for name in CONTROLS]
    return table([[Stack(b, p, data).job for p in PLUGINS] + [c.format(b) for c in controls] for b in BACKBONES])


def main(args: list[str]) -> None:
    """Search, run and write what is missing."""
    names, backbones = asked(args, BACKBONES)
    for data in names if "--write" not in args else ():
        there = prepared(data)
        for backbone in backbones:
            for plugins in PLUGINS:
                row(Stack(backbone, plugins, data), there)
            job = Stack(backbone, "gfmfr", data).job
            for name, setting in CONTROLS.items():
                run(f"{job}_{name}", job, setting)
    readme = ROOT / "README.md"
    readme.write_text(written("groups", table_of, readme.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
