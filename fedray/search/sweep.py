"""A sweep as a file: a base job, the space round it, how it is searched, stopped, paid for and run.

base: ../jobs/fedrap_ml100k_clean.yaml      # or a job itself; `set` lays more over it
space:
  backbone.lr: {loguniform: [0.01, 10]}
search: {name: tpe}
budget: {trials: 24}
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedray.changes import may_change
from fedray.config import RunConfig, make_config, nearest_hint, validated
from fedray.data.protocols import rules_of
from fedray.errors import (
    ConfigFileError,
    FedrayError,
    MissingPathError,
    OutOfRangeError,
    UnknownKeyError,
    UnsupportedError,
    WrongTypeError,
)
from fedray.search.space import Axis, Settings, check, draws, grid, read_space, spell
from fedray.sections import Closed
from fedray.yamls import laid, read_yaml

NOT_TESTED = {
    "evaluation.test": "selected",
    "evaluation.controls": False,
    "evaluation.local_only": False,
    "evaluation.ablation": False,
}
"""Laid over every trial: of its model nothing but validation is scored."""

NEEDS = (
    "search.name: random, which draws the first generation; no budget but of hours or rounds; checkpoints, no patience "
    "and no changes; an axis of what may change (see `changes`), without 0: what is off cannot be put on in a run"
)
"""What population based training asks of a sweep."""


class SearchConfig(Closed):
    """What is tried next."""

    name: Literal["tpe", "random", "grid"] = "tpe"
    seed: int = Field(0, ge=0, lt=1 << 63)
    batch: int = Field(
        0,
        ge=0,
        description="tpe: so many trials are chosen at once, knowing all earlier ones: the same sweep at any "
        "concurrency; 0: each one by what is known when there is room for it",
    )
    startup: int = Field(10, ge=1, description="tpe: so many random trials first")


class SchedulerConfig(Closed):
    """Which trials are broken off, by their best validation metric so far; or (pbt) which go on from another one."""

    name: Literal["asha", "median", "none", "pbt"] = "asha"
    grace: int = Field(0, ge=0, description="rounds that every trial has; 0: a ninth of train.rounds")
    reduction: float = Field(3.0, gt=1, description="asha: of so many trials one goes on at each rung")
    population: int = Field(8, ge=2, le=10_000, description="pbt: so many trials side by side")
    interval: int = Field(0, ge=0, description="pbt: rounds of a generation; 0: a fifth of train.rounds")
    quantile: float = Field(0.25, gt=0, le=0.5, description="pbt: this share of the worst goes on from the best")

    def every(self, rounds: int) -> int:
        """Rounds of a generation."""
        return self.interval or max(1, rounds // 5)


class BudgetConfig(Closed):
    """What a sweep may cost; at least one of them, but for a grid."""

    trials: int = Field(0, ge=0, le=100_000, description="0: as many as the grid has, or as the rest allows")
    hours: float = Field(0.0, ge=0, description="then running trials are broken off; 0: no limit")
    rounds: int = Field(0, ge=0, description="of all trials together; then running ones are broken off; 0: no limit")


class TrialsConfig(Closed):
    """How trials run. Nothing here may change what one of them finds."""

    place: Literal["auto", "packed", "actors"] = Field(
        "auto",
        description="packed: a trial is one process; actors: it has client actors as `fedray train` has; auto: packed, "
        "unless memory has no room for one on each CPU",
    )
    concurrent: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="trials at once; auto: as many as there is room for"
    )
    cpus: float = Field(1.0, gt=0, description="packed: CPUs a trial asks for")
    retries: int = Field(2, ge=0, description="times a trial whose process died goes on from its last checkpoint")


class RefitConfig(Closed):
    """After the sweep: the best settings and the base over seeds, with test metrics, tested against each other."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=1 << 63)], ...] = Field(
        (), description="e.g. [0, 1, 2]; empty: no refit"
    )

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise OutOfRangeError(f"refit.seeds is {list(value)}", "each seed once")
        return value


class SweepConfig(Closed):
    """Everything of a sweep but its job and its space."""

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    search: SearchConfig = SearchConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    budget: BudgetConfig = BudgetConfig()
    trials: TrialsConfig = TrialsConfig()
    refit: RefitConfig = RefitConfig()

    @model_validator(mode="after")
    def _it_ends(self) -> "SweepConfig":
        budget = self.budget
        if (
            self.search.name != "grid"
            and self.scheduler.name != "pbt"
            and not (budget.trials or budget.hours or budget.rounds)
        ):
            raise OutOfRangeError(
                f"budget is empty and search.name is {self.search.name}",
                "budget.trials, budget.hours or budget.rounds",
                "E.g. budget: {trials: 24}.",
            )
        return self


OWN = ("base", "set", "space", *SweepConfig.model_fields)


@dataclass(frozen=True)
class Sweep:
    """A checked sweep. base: the job as written; job: as it would run."""

    config: SweepConfig
    base: Mapping[str, Any]
    job: RunConfig
    space: tuple[Axis, ...]

    def raw(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The job of a trial, as the user would write it."""
        return laid(self.base, settings)

    def trial(self, settings: Mapping[str, Any]) -> RunConfig:
        """The job of a trial as the sweep runs it: the test set is left alone."""
        return make_config(laid(self.base, {**settings, **NOT_TESTED}))

    def sequence(self) -> list[Settings]:
        """All trials of a grid; as many random ones as the budget or a first generation has. Of `tpe` nothing is known
        before."""
        pbt = self.config.scheduler.name == "pbt"
        most = self.config.scheduler.population if pbt else self.config.budget.trials or None
        if self.config.search.name == "grid":
            found = list(itertools.islice(grid(self.space, self.base), 100_001))
            if most and len(found) > most or len(found) > 100_000:
                points = len(found) if len(found) <= 100_000 else "more than 100,000"
                raise OutOfRangeError(f"the grid has {points} points", f"at most budget.trials ({most or '100,000'})")
            return found
        endless = draws(self.space, self.base, self.config.search.seed)
        return list(itertools.islice(endless, most)) if self.config.search.name == "random" and most else []

    def fingerprint(self) -> str:
        """12 hex digits over what decides which trials there are; a sweep may go on with a larger budget."""
        kept = self.config.model_dump(mode="json", include={"search", "scheduler"})
        body = {**kept, "job": self.job.fingerprint(), "space": [[a.key, a.kind, a.values, a.when] for a in self.space]}
        return hashlib.sha256(spell(body).encode()).hexdigest()[:12]


def load_sweep(path: str | Path, sets: Sequence[str] = ()) -> Sweep:
    """The file with `a.b=value` laid over it: over the sweep where `a` is one of its keys, else over the job. All is
    checked here, before anything starts. Raises the family of `ConfigError`."""
    file = Path(path)
    if not file.is_file():
        near = nearest_hint(file.name, [p.name for p in file.parent.glob("*.yaml")])
        raise MissingPathError(f"{file} does not exist", "a YAML file", near or "Check the path.")
    raw = _mapping(file)
    try:
        return make_sweep({"name": file.stem, **raw}, sets, file.parent)
    except FedrayError as error:
        error.where = f"{file}: {error.where}" if error.where else str(file)
        raise


def make_sweep(raw: Mapping[str, Any], sets: Sequence[str] = (), folder: Path = Path()) -> Sweep:
    """A checked sweep of a mapping; paths in it are relative to `folder`."""
    unknown = [str(k) for k in raw if k not in OWN]
    if unknown:
        mend = (
            nearest_hint(unknown[0], list(OWN))
            or f"What belongs to the job goes under base or set; here: {', '.join(OWN)}."
        )
        raise UnknownKeyError(f"key {unknown[0]!r} is not known", "a key of a sweep", mend)
    own, over = _parted(sets)
    for key, value in own.items():
        raw = _with(raw, key, value)
    more = raw.get("set") or {}
    if not isinstance(more, Mapping):
        raise WrongTypeError(f"set is {more!r}", "a mapping of dotted keys to values")
    config = validated(SweepConfig, {k: v for k, v in raw.items() if k in SweepConfig.model_fields})
    base = laid(laid(_base(raw.get("base"), folder), more), over)
    base = {**base, "name": base.get("name", config.name)}
    found = Sweep(config, base, make_config(base, "base"), read_space(raw.get("space")))
    _check(found)
    return found


def _parted(sets: Sequence[str]) -> tuple[Settings, Settings]:
    """Settings of the sweep, and of its job."""
    found: tuple[Settings, Settings] = ({}, {})
    for setting in sets:
        key, equals, value = setting.partition("=")
        if not (key and equals):
            raise ConfigFileError(f"--set {setting!r}", "a.b=value", "Example: --set budget.trials=8")
        mine = key.partition(".")[0] in OWN and key != "name"
        found[0 if mine else 1][key] = read_yaml(value, f"--set {key}") if value else None
    return found


def _with(raw: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """What follows `space.` and `set.` is one key, dots and all."""
    section, _, rest = key.partition(".")
    if section in ("space", "set") and rest:
        return {**raw, section: {**(raw.get(section) or {}), rest: value}}
    return laid(raw, {key: value})


def _base(raw: Any, folder: Path) -> dict[str, Any]:
    if isinstance(raw, Mapping):
        return dict(raw)
    if not isinstance(raw, str):
        raise WrongTypeError(f"base is {raw!r}", "a job file, or a job", "E.g. base: ../jobs/quickstart.yaml.")
    file = folder / raw
    if not file.is_file():
        near = nearest_hint(file.name, [p.name for p in file.parent.glob("*.yaml")])
        raise MissingPathError(f"base {file} does not exist", "a job file, relative to this one", near)
    return {"name": file.stem, **_mapping(file)}


def _mapping(file: Path) -> dict[str, Any]:
    try:
        raw = read_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise ConfigFileError(f"not UTF-8 at byte {error.start}", "UTF-8 text", "", str(file)) from error
    if not isinstance(raw, dict):
        raise ConfigFileError(f"holds {type(raw).__name__}", "one YAML mapping", "", str(file))
    return raw


def _check(sweep: Sweep) -> None:
    rules, search = rules_of(sweep.job.evaluation), sweep.config.search
    if rules.select_split == "test":
        raise UnsupportedError(
            f"protocol {rules.name} selects on the test set, and a sweep would, too",
            "a protocol that selects on validation",
            "Use evaluation.protocol=clean.",
        )
    if sweep.config.scheduler.grace > sweep.job.train.rounds:
        raise OutOfRangeError(
            f"scheduler.grace is {sweep.config.scheduler.grace}", f"at most train.rounds ({sweep.job.train.rounds})"
        )
    if search.name == "tpe" and (axis := next((a for a in sweep.space if a.kind == "grid"), None)):
        raise UnsupportedError(
            f"space.{axis.key} is a grid and search.name is tpe", "choice", "Or search.name: random."
        )
    if search.batch and search.name != "tpe":
        raise UnsupportedError(f"search.batch with search.name {search.name}", "search.name: tpe")
    if sweep.config.scheduler.name == "pbt":
        _check_population(sweep)
    check(sweep.space, sweep.base)
    for settings in sweep.sequence():
        try:
            sweep.trial(settings)
        except FedrayError as error:
            error.where = f"trial {json.dumps(settings)}"
            raise


def _check_population(sweep: Sweep) -> None:
    job, asked, space = sweep.job, sweep.config.scheduler, sweep.space
    keys, pbt = ", ".join(a.key for a in space), "scheduler.name: pbt with"
    zero = [a.key for a in space if may_change(a.key) and any(v == 0 for v in a.values) and any(a.values)]
    refused = {
        f"{pbt} search.name {sweep.config.search.name}": sweep.config.search.name != "random",
        f"{pbt} budget.trials": sweep.config.budget.trials,
        f"{pbt} train.patience": job.train.patience,
        f"{pbt} changes of the job": job.changes,
        f"{pbt} runtime.checkpoint.every 0": not job.runtime.checkpoint.every,
        f"{pbt} no axis that may change in a run, but {keys}": not any(may_change(a.key) for a in space),
        f"{pbt} 0 in space.{', '.join(zero)}": zero,
    }
    if found := next((text for text, wrong in refused.items() if wrong), None):
        raise UnsupportedError(found, NEEDS)
    every, size = asked.every(job.train.rounds), len(sweep.sequence())
    if not job.evaluation.every <= every < job.train.rounds:
        least, most = job.evaluation.every, job.train.rounds - 1
        raise OutOfRangeError(f"scheduler.interval is {every}", f"{least} (evaluation.every) to {most}")
    if size < asked.population:
        raise OutOfRangeError(
            f"scheduler.population is {asked.population}", f"at most {size}: the space has no more points"
        )
