"""Which settings a sweep tries next: a function of the sweep, the trial's number and what is known. No Ray in here.

TPE is Optuna's. Its state is rebuilt from the records for each question and its seed is the trial's number's, so that a
sweep that was broken off asks the same questions and gets the same answers.
"""

import itertools
import json
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from fedray import seeding
from fedray.search.records import TrialRecord
from fedray.search.space import Axis, Settings, draws, settled, spell
from fedray.search.sweep import Sweep

AGAIN = 20
"""Times that TPE is asked for settings that were not tried yet."""
STATES = {
    "running": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.PRUNED,
}
"""A trial that failed is one broken off before its first score, the worst there is: TPE keeps away from there, where it
would forget a FAIL."""


def suggested(sweep: Sweep, sequence: Sequence[Settings], number: int, known: Sequence[TrialRecord]) -> Settings | None:
    """Of trial `number`; None where there are no more. sequence: `sweep.sequence()`; known: earlier trials, also
    running ones."""
    if sweep.config.search.name != "tpe" and sequence:
        return sequence[number] if number < len(sequence) else None
    if sweep.config.search.name == "random":
        return next_draw(sweep, number)
    if sweep.config.budget.trials and number >= sweep.config.budget.trials:
        return None
    return by_tpe(sweep, number, known)


def next_draw(sweep: Sweep, number: int) -> Settings | None:
    """Of a random search without a number of trials."""
    return next(itertools.islice(draws(sweep.space, sweep.base, sweep.config.search.seed), number, None), None)


def by_tpe(sweep: Sweep, number: int, known: Sequence[TrialRecord]) -> Settings:
    """What the tree-structured Parzen estimator proposes; settings that were tried are passed over while it has
    others."""
    tried = {spell(dict(r.settings)) for r in known}
    found: Settings = {}
    for attempt in range(AGAIN):
        found = _asked(sweep, number, attempt, known)
        if spell(found) not in tried:
            break
    return found


def _asked(sweep: Sweep, number: int, attempt: int, known: Sequence[TrialRecord]) -> Settings:
    seed = int(seeding.key(sweep.config.search.seed, "search", number, attempt)) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=sweep.config.search.startup, constant_liar=True
        )
    trial = study_of(sweep, known, sampler).ask()
    return settled(sweep.space, sweep.base, lambda axis: _picked(trial, axis))


def study_of(sweep: Sweep, known: Sequence[TrialRecord], sampler: Any = None) -> optuna.Study:
    """The trials as Optuna knows them, in order of their numbers."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it says of each study that it was made
    study = optuna.create_study(direction="maximize", sampler=sampler)
    axes = {a.key: a for a in sweep.space}
    for record in sorted(known, key=lambda r: r.number):
        params = {k: _code(axes[k], v) for k, v in record.settings.items()}
        study.add_trial(
            optuna.trial.create_trial(
                state=STATES[record.state],
                params=params,
                distributions={k: _distribution(axes[k]) for k in params},
                value=record.value if record.state == "finished" else None,
                intermediate_values=dict(record.points) if record.state in ("finished", "pruned") else {},
            )
        )
    return study


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.kind in ("choice", "grid"):
        return CategoricalDistribution([spell(v) for v in axis.values])
    low, high = axis.values
    if axis.kind == "randint":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=axis.kind == "loguniform")


def _code(axis: Axis, value: Any) -> Any:
    """A list or a section is no category for Optuna: its text is."""
    return spell(value) if axis.kind in ("choice", "grid") else value


def _picked(trial: optuna.Trial, axis: Axis) -> Any:
    found = trial._suggest(axis.key, _distribution(axis))
    return json.loads(found) if axis.kind in ("choice", "grid") else found
