"""Does a group's preference help? Each backbone alone, with `gfmfr`, with `fedvlr` and with both, tuned on validation.

    python -m tests.bench.groups [data ...] [--only BACKBONE ...] [--write]

How they are tuned: `tests/bench/tuned.py`; the jobs with `fedvlr` are those of `content` (PFedRec's are made here).
Then 5 seeds of each, and of `gfmfr` with the features shuffled between items, with random groups, and with 1, 2, 5, 10
and 20 groups (without distillation, it is its backbone; of the two dearest backbones on ML-100K with 1 alone). Where
validation chose weight 0, and for the number of groups it chose, there is nothing to compare, and no run. --write makes
the README's tables of those backbones that have been run through; the others stay as they are, so a table may be made
in several sittings.
"""

import sys
from typing import Any

import yaml

from tests.bench.results import ROOT, rewrite
from tests.bench.tuned import DATA, RESULTS, Stack, asked, prepared, row, run, table

BACKBONES = ("fedncf", "fcf_dualper", "fedrap", "fcf")
PLUGINS = ("", "gfmfr", "fedvlr", "gfmfr_fedvlr")
CONTROLS = {
    "shuffled": "data.shuffle_features=true",
    "random": "plugins.gfmfr.grouping=random",
    **{f"groups{g}": f"plugins.gfmfr.groups={g}" for g in (1, 2, 5, 10, 20)},
}
DEAREST, FEWER = ("fedncf", "fedrap"), ("shuffled", "random", "groups1")
"""Backbones whose rounds are dearest where there are more clients than KU has, and what is run of the controls then."""


def controls(stack: Stack) -> dict[str, str]:
    """Name of a run and its setting, of those that differ from the job's own."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / "jobs" / f"{stack.job}.yaml").read_text())
    own = raw["plugins"]["gfmfr"]
    if own["weight"] == 0:
        return {}
    names = FEWER if stack.backbone in DEAREST and stack.data != "ku" else CONTROLS
    return {f"{stack.job}_{name}": CONTROLS[name] for name in names if name != f"groups{own['groups']}"}


def families(backbone: str, data: str) -> list[list[str]]:
    """The runs of the two tables, what the others are tested against first; empty where some are still to be made.
    Which diverged is left out by `table`."""
    stacks = [Stack(backbone, p, data) for p in PLUGINS]
    if not all((ROOT / "jobs" / f"{s.job}.yaml").is_file() for s in stacks):
        return []
    found = [[s.job for s in stacks], [stacks[1].job, *controls(stacks[1])]]
    return found if all(any(RESULTS.glob(f"{n}.*")) for family in found for n in family) else []


def main(args: list[str]) -> None:
    """Search, run and write what is missing."""
    sets, backbones = asked(args, BACKBONES)
    for data in sets if "--write" not in args else ():
        there = prepared(data)
        for backbone in backbones:
            for plugins in PLUGINS:
                row(Stack(backbone, plugins, data), there)
            grouped = Stack(backbone, "gfmfr", data)
            for name, setting in controls(grouped).items():
                diverged = RESULTS / f"{name}.diverged"  # the table goes without it
                if not diverged.is_file() and not run(name, grouped.job, setting):
                    diverged.touch()
    readme = ROOT / "README.md"
    text = readme.read_text()
    for section, data, backbone in ((f"groups-{d}-{b}", d, b) for d in DATA for b in BACKBONES):
        if f"<!-- {section} -->" in text and (found := families(backbone, data)):
            alone, own = (table([names]) for names in found)
            own = own.replace("its backbone", "`gfmfr`") if len(found[1]) > 1 else "Validation chose weight 0."
            text = rewrite(text, section, f"{alone}\n\n{own}")
    readme.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
