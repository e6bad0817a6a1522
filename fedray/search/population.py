"""Population based training (Jaderberg et al. 2017), as generations: the same sweep at any concurrency.

A generation is `population` trials of `interval` rounds. After it, the worst go on from the best, with settings moved a
little; the others as they are. What Ray's own scheduler does as trials come in, and so never twice alike, is done here
between generations. A trial is a job with `changes`: its parent's checkpoint only spares it the rounds both share, and
the best of a sweep is a job file that finds the same without any sweep.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedray import seeding
from fedray.changes import may_change
from fedray.search.records import TrialRecord
from fedray.search.space import Axis, Settings, current, drawn
from fedray.search.sweep import Sweep

RESAMPLED, STEP = 0.25, 1.2
"""How often a setting is drawn anew, and by what factor it moves else: both as in the paper's experiments."""


class Member(NamedTuple):
    """A trial to be. parent: the trial it goes on from, None in the first generation; begun: rounds they share."""

    settings: Settings
    parent: int | None = None
    begun: int = 0


def until(sweep: Sweep, number: int) -> int:
    """The last round of trial `number`."""
    rounds = sweep.job.train.rounds
    if sweep.config.scheduler.name != "pbt":
        return rounds
    every = sweep.config.scheduler.every(rounds)
    return min(rounds, (number // sweep.config.scheduler.population + 1) * every)


def member(sweep: Sweep, first: Sequence[Settings], number: int, known: Sequence[TrialRecord]) -> Member | None:
    """Trial `number`, once all of the generation before are over; None after the last one. first: the settings of the
    first generation."""
    size = len(first)
    generation, place = divmod(number, size)
    if not generation:
        return Member(first[place])
    begun = until(sweep, number - size)
    if begun >= sweep.job.train.rounds:
        return None
    before = [r for r in known if r.number // size == generation - 1]
    parent, moves = parent_of(sweep, before, place)
    if parent is None:
        return None
    if not moves:
        return Member(parent.settings, parent.number, begun)
    moved = explored(sweep, parent.settings, generation, place)
    return Member(with_change(parent.settings, begun, moved), parent.number, begun)


def parent_of(sweep: Sweep, before: Sequence[TrialRecord], place: int) -> tuple[TrialRecord | None, bool]:
    """The trial that the one at `place` goes on from, and whether its settings move: its own predecessor as it is, or,
    of the worst and of those that failed, one of the best. None where all have failed."""
    alive = {r.number: r.last for r in before if r.state != "failed" and r.last is not None}
    ranked = sorted(before, key=lambda r: (-alive.get(r.number, -np.inf), r.number))
    share = max(1, int(len(ranked) * sweep.config.scheduler.quantile))
    own = next(r for r in before if r.number % len(before) == place)
    if own.number in alive and own not in ranked[-share:]:
        return own, False
    best = ranked[: min(share, len(alive))]
    key = seeding.key(sweep.config.search.seed, "search", own.number, place)
    return (best[seeding.below(key, np.uint64(0), len(best))], True) if best else (None, False)


def explored(sweep: Sweep, settings: Settings, generation: int, place: int) -> Settings:
    """Each setting that may change, moved: drawn anew, or one step up or down within its range."""
    now, moved = current(settings), {}
    for i, axis in enumerate(a for a in sweep.space if a.key in settings and may_change(a.key)):
        rng = seeding.generator(seeding.key(sweep.config.search.seed, "search", generation, place * 1000 + i))
        fresh, up = rng.random() < RESAMPLED, bool(rng.integers(2))
        seed = int(rng.integers(1 << 31))
        moved[axis.key] = drawn(axis, seed, generation) if fresh else step(axis, now[axis.key], up)
    return moved


def step(axis: Axis, value: Any, up: bool) -> Any:
    """The next value of an axis: a neighbour of a list, a factor on a range, never past its ends."""
    if axis.kind in ("choice", "grid"):
        at = axis.values.index(value) + (1 if up else -1)
        return axis.values[min(max(at, 0), len(axis.values) - 1)]
    low, high = axis.values
    found = value * STEP if up else value / STEP
    if axis.kind == "randint":
        found = max(value + 1, round(found)) if up else min(value - 1, round(found))
    return min(max(found, low), high)


def with_change(settings: Settings, round_: int, moved: Settings) -> Settings:
    """The settings, with others from the round after `round_` on."""
    return {**settings, "changes": {**settings.get("changes", {}), round_: moved}}
