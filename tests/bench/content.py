"""Does content help? Each backbone against itself with `mlp` and with `fedvlr`, tuned on validation alone.

    python -m tests.bench.content [data ...] [--only BACKBONE ...] [--write]

How they are tuned: `tests/bench/tuned.py`. Then 5 seeds of each, and `fedvlr` once more with the features shuffled
between items: what is left of its gain is not due to content. --write makes the README's tables of data that have been
run through; the others stay as they are.
"""

import sys

from tests.bench.results import ROOT
from tests.bench.spaces import BACKBONES
from tests.bench.tuned import Stack, asked, prepared, row, run, written

PLUGINS = ("", "mlp", "fedvlr")


def shuffled(backbone: str, data: str) -> str:
    """What the run with other items' features is kept under."""
    return Stack(backbone, "fedvlr", data).job + "_shuffled"


def families(data: str) -> list[list[str]]:
    """The rows of a data set, a backbone's together."""
    return [[Stack(b, p, data).job for p in PLUGINS] + [shuffled(b, data)] for b in BACKBONES]


def main(args: list[str]) -> None:
    """Search, run and write what is missing."""
    names, backbones = asked(args, BACKBONES)
    for data in names if "--write" not in args else ():
        there = prepared(data)
        for backbone in backbones:
            for plugin in PLUGINS:
                row(Stack(backbone, plugin, data), there)
            run(shuffled(backbone, data), Stack(backbone, "fedvlr", data).job, "data.shuffle_features=true")
    readme = ROOT / "README.md"
    readme.write_text(written("content", families, readme.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
