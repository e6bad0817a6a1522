"""`fedray tune`: a sweep from file to best settings, on Ray Tune.

Tune places trials, watches over them and breaks off the poor ones. What is tried next (`suggest`) and what is known
(`records`) are ours and no pickles: a sweep that was killed is begun anew with what is known, its unfinished trials go
on from their own checkpoints, and those that are over are only told to the scheduler.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from fedray.config import RunConfig, make_config
from fedray.data.protocols import rules_of
from fedray.errors import ConfigError, Terminated, UnsupportedError
from fedray.family import train_family
from fedray.job import Prepared, prepare
from fedray.methods import build
from fedray.outputs import write_aside
from fedray.progress import Stop, say, signals_heard, signals_raise
from fedray.runtime import session
from fedray.runtime.checkpoint import Go
from fedray.runtime.plan import Resources
from fedray.search import placing, report
from fedray.search.book import Book, data_key, opened
from fedray.search.placing import Place
from fedray.search.records import TrialRecord
from fedray.search.space import points_of
from fedray.search.sweep import Sweep
from fedray.search.trial import ROUND, VALUE, Shared, Trial

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}
"""Tune writes no results, keeps no state and leaves signals to us."""


class Asks(Searcher):
    """Tune's question what to try next, handed on."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self._book = book

    def suggest(self, trial_id: str) -> Any:
        """A trial, None for not now, or that there are no more."""
        found = self._book.next()
        return Searcher.FINISHED if found == "over" else found

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The book is told by `Tells`."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is known is in the records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Tells(tune.Callback):
    """What Tune says of trials, handed on."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        """One validation more."""
        self._book.result(trial.config["number"], result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Over, or broken off."""
        self._book.over(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Its process died once too often."""
        self._book.failed(trial.config["number"], _cause(trial))

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Limits(tune.Stopper):
    """The budget in hours and rounds, signals, and a book that can't be kept."""

    def __init__(self, book: Book, stop: Stop) -> None:
        self._book, self._stop = book, stop

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """No trial on its own."""
        return False

    def stop_all(self) -> bool:
        """Whether the budget is used up, the book can't go on, or somebody wants an end."""
        if self._stop.asked or self._book.torn():
            self._book.broken_off = True
        return self._book.broken_off or self._book.spent()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def tune_whole(sweep: Sweep, console: Console, go: Go, out: Path | None) -> dict[str, Any]:
    """The sweep, its best job in a file, and the refit if one is asked for; what `--summary` writes."""
    book = tune_sweep(sweep, console, go)
    best = book.best
    assert best is not None
    text = report.job_yaml(sweep, best, book.run_id)
    file = out or Path(".fedray") / "sweeps" / book.run_id / f"{sweep.config.name}_best.yaml"
    write_aside(file, text.encode())
    costs = report.costs(book.trials, book.wall_s, book.at_once)
    say(console, report.end_text(sweep, book.trials, book.metric, costs))
    say(console, f"the best settings are {file}: fedray train {file} --seeds 0..4")
    say(console, book.where())
    found = report.summary(sweep, book.run_id, book.trials, book.metric) | {"costs": costs, "job": str(file)}
    if not sweep.config.refit.seeds:
        return found
    try:
        return found | refit(sweep, best, book.run_id, console)
    except (Exception, Terminated):
        say(console, f"that was the refit; to go on with it, tune again with --run-id {book.run_id} --resume-or-start")
        raise


def refit(sweep: Sweep, best: TrialRecord, run_id: str, console: Console) -> dict[str, Any]:
    """The base and the best settings over seeds, each as a family; their test metrics side by side."""
    jobs = {"base": {}, "best": best.settings}
    ends = {}
    for name, settings in jobs.items():
        config = make_config({**sweep.raw(settings), "name": f"{sweep.config.name}_{name}"})
        console.rule(f"refit: {name}")
        go = Go(f"{run_id}-{name}", resume=bool(config.runtime.checkpoint.every))
        ends[name] = train_family(config, sweep.config.refit.seeds, console, go)
    metric = rules_of(sweep.job.evaluation).lead
    said = report.refit_text({k: e.summary for k, e in ends.items()}, {k: e.users for k, e in ends.items()}, metric)
    say(console, said)
    return {"refit": {k: dict(e.summary) for k, e in ends.items()}}


def tune_sweep(sweep: Sweep, console: Console, go: Go) -> Book:
    """All trials. Whatever happens, no actor stays, and each run gets its status. Raises `SweepError` where no trial
    has a result, and what `train` raises."""
    with signals_raise():
        jobs = prepared(sweep, console)
        shared = {k: Shared(j.data, j.dataset.features, j.dataset.contents) for k, j in jobs.items()}
        first = next(iter(jobs.values()))
        with connected(sweep.job) as there, signals_raise() as stop:
            place = place_of(sweep.job, sweep, jobs, there)
            at_once = placing.concurrent(place, sweep.config.trials.concurrent, there)
            book = opened(sweep, first, go, at_once, lambda config: place_of(config, sweep, jobs, there))
            say(console, plan_text(sweep, place, at_once, there))
            with book.kept(console, go.resume):
                _run(sweep, shared, there, book, stop)
    return book


def _run(sweep: Sweep, shared: dict[str, Shared], there: Resources, book: Book, stop: Stop) -> None:
    """A signal lets Tune end its trials; a second one does not wait for that."""
    trainable = tune.with_parameters(Trial, shared=shared, asked=sweep.config.trials, there=there)
    with _quiet(), tempfile.TemporaryDirectory(prefix="fedray-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, bundles),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                max_concurrent_trials=book.at_once,  # they start side by side, too: without it one after another
                search_alg=Asks(book),
                scheduler=scheduler(sweep, book.ended()),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=folder,
                verbose=0,
                stop=Limits(book, stop),
                callbacks=[Tells(book)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=sweep.config.trials.retries),
            ),
        )
        with stop.later(), signals_heard():
            tuner.fit()
    stop.check()


def scheduler(sweep: Sweep, past: Sequence[TrialRecord]) -> TrialScheduler:
    """The one that is asked for, told of trials that are over already."""
    asked, rounds = sweep.config.scheduler, sweep.job.train.rounds
    grace = asked.grace or max(1, rounds // 9)
    about: dict[str, Any] = {"time_attr": ROUND, "metric": VALUE, "mode": "max", "grace_period": grace}
    if asked.name in ("none", "pbt"):
        return FIFOScheduler()
    if asked.name == "median":
        found: TrialScheduler = MedianStoppingRule(**about, min_time_slice=math.inf)  # it never pauses a trial
    else:
        found = ASHAScheduler(**about, max_t=rounds, reduction_factor=asked.reduction)
    for record in past:
        stand_in: Any = _Past(f"past-{record.number}")
        found.on_trial_add(None, stand_in)
        for round_, value in record.points:
            found.on_trial_result(None, stand_in, {ROUND: round_, VALUE: value})
    return found


class _Past:
    """A trial of an earlier process, as far as a scheduler looks at it."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def prepared(sweep: Sweep, console: Console) -> dict[str, Prepared]:
    """The data under every choice of encoders, by `data_key`; features that the store lacks are encoded here."""
    encoders = [a for a in sweep.space if a.key.partition(".")[0] == "encoders"]
    if endless := [a.key for a in encoders if not a.finite]:
        raise UnsupportedError(
            f"space.{endless[0]} is a range", "choice or grid: items are encoded before the first trial"
        )
    found: dict[str, Prepared] = {}
    for settings in points_of(sweep.space, sweep.base, encoders):
        config = sweep.trial(settings)
        if (key := data_key(config)) not in found:
            found[key] = prepare(config, console)
    return found


@contextmanager
def connected(config: RunConfig) -> Iterator[Resources]:
    """Ray, and what it has."""
    local, namespace = session.local_resources(), f"fedray-{config.name}-tune"
    remote = session.remote_address(config)
    if remote:
        session.probe(config)
    with session.connected(config, namespace, local):
        yield session.resources() if remote else local


def place_of(config: RunConfig, sweep: Sweep, jobs: Mapping[str, Prepared], there: Resources) -> Place:
    """Of a trial with the settings of this job."""
    job = jobs[data_key(config)] if data_key(config) in jobs else next(iter(jobs.values()))
    try:
        method = build(config, job.data.n_items, job.dataset.features)
    except ConfigError:  # the trial will say so; it needs a place for that
        config, method = job.config, job.method
    return placing.placed(config, sweep.config.trials, method, job.data, there)


def plan_text(sweep: Sweep, place: Place, at_once: int, there: Resources) -> str:
    """What is about to happen."""
    budget = sweep.config.budget
    size = len(sweep.sequence())
    limits = [f"{size or budget.trials:,} trials" + " side by side" * (sweep.config.scheduler.name == "pbt")]
    limits = limits if size or budget.trials else []
    limits += [f"{budget.hours:g} hours"] if budget.hours else []
    limits += [f"{budget.rounds:,} rounds"] if budget.rounds else []
    how = "one process each" if place.packed else f"{len(place.bundles) - 1} client actors each"
    search, stops = sweep.config.search, sweep.config.scheduler
    return "\n".join(
        [
            f"space     {len(sweep.space)} axes: {', '.join(a.key for a in sweep.space)}",
            f"search    {search.name}, seed {search.seed}; {', '.join(limits)} of {sweep.job.train.rounds} rounds",
            f"stopping  {stops.name}{stopping_text(sweep)}",
            f"trials    {at_once} at once on {there.cpus:g} CPU, {there.gpus:g} GPU; {how} (trials.place)",
        ]
    )


def stopping_text(sweep: Sweep) -> str:
    """What its scheduler does."""
    asked = sweep.config.scheduler
    if asked.name == "pbt":
        every = asked.every(sweep.job.train.rounds)
        return f": every {every} rounds the worst {asked.quantile:.0%} go on from the best, by validation alone"
    return "" if asked.name == "none" else ", by validation alone"


def bundles(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Of a trial, as the book said them."""
    return tune.PlacementGroupFactory(json.loads(config["bundles"]))


def _cause(trial: Any) -> str:
    """The last line that says something."""
    text = str(trial.get_pickled_error() or trial.get_error() or "its process died")
    return [line for line in text.splitlines() if line.strip()][-1][:500]


@contextmanager
def _quiet() -> Iterator[None]:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    yield
