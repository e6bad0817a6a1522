"""A run as a job sees it, wherever its clients live: rounds one by one, the end, and the model on disk.

On Ray the driver actor may die as any other: it is started again, goes back to its last checkpoint with its clients,
and rounds that were seen already are not shown again. They are the same to the bit, but under `runtime.recovery: drop`:
there they may be without other clients than the first time.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from fedray.config import RunConfig
from fedray.errors import FedrayError, FedrayWarning
from fedray.evaluation import users
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.federated.method import Method, Portrait
from fedray.federated.rounds import Outcome
from fedray.methods import build
from fedray.runtime import session
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.coordinator import Coordinator
from fedray.runtime.executor import answered, get
from fedray.runtime.failures import Failures, most_restarts
from fedray.runtime.plan import Plan
from fedray.segments import Federation as Federation
from fedray.segments import Segments
from fedray.types import ClientData, ItemFeatures, RoundReport

LONG_S = 60.0


def federation(
    config: RunConfig,
    method: Method,
    data: ClientData,
    features: ItemFeatures | None,
    plan: Plan,
    checkpoints: Checkpoints | None = None,
) -> AbstractContextManager[Federation]:
    """In this process, or on Ray, as the plan says."""
    if config.changes:
        return _changing(config, data, features, plan, checkpoints)
    if plan.executor == "serial":
        return nullcontext(_serial(config, method, data, plan.device, checkpoints))
    return _on_ray(config, data, features, plan, checkpoints)


@contextmanager
def _changing(
    config: RunConfig, data: ClientData, features: ItemFeatures | None, plan: Plan, checkpoints: Checkpoints | None
) -> Iterator[Federation]:
    assert checkpoints is not None  # the configuration asks for them

    def opened(now: RunConfig, own: Checkpoints) -> AbstractContextManager[Federation]:
        return federation(now, build(now, data.n_items, features), data, features, plan, own)

    with closing(Segments(config, checkpoints, opened)) as parts:
        yield Federation(
            parts.resume,
            parts.rounds,
            lambda: parts.now().finish(),
            lambda folder: parts.now().save(folder),
            lambda: parts.now().commit(),
        )


def _serial(
    config: RunConfig, method: Method, data: ClientData, device: str, checkpoints: Checkpoints | None
) -> Federation:
    executor = SerialExecutor([make_host(config, method, data, device)])
    coordinator = Coordinator(config, method, executor, checkpoints)
    last = False

    def resume() -> Sequence[RoundReport]:
        nonlocal last
        past, last = coordinator.resume()
        return past

    def each() -> Iterator[RoundReport]:
        nonlocal last
        while not last:
            report, last = coordinator.step()
            yield report

    return Federation(resume, each, coordinator.finish, coordinator.save, coordinator.commit)


@contextmanager
def _on_ray(
    config: RunConfig, data: ClientData, features: ItemFeatures | None, plan: Plan, checkpoints: Checkpoints | None
) -> Iterator[Federation]:
    with session.crew(config, plan, data, features, checkpoints) as crew:
        driver = Driver(crew, config)
        yield Federation(
            driver.resume,
            driver.rounds,
            lambda: copied(driver.asked("finish")),
            lambda folder: driver.asked("save", folder),
            driver.commit,
        )


class Driver:
    """The driver actor, as one that does not die."""

    def __init__(self, crew: session.Crew, config: RunConfig) -> None:
        self._actor, self._birth = crew.driver, crew.birth
        self._failures = Failures(most_restarts(config))
        self._at = self._seen = self._restarts = 0
        self._last = self._told = False

    def resume(self) -> Sequence[RoundReport]:
        """From the newest checkpoint; what the rounds before it said."""
        try:
            past = self._resumed()
        except FedrayError as error:
            past = self._again(error)
        self._seen = self._at
        return past

    def rounds(self) -> Iterator[RoundReport]:
        """Those that are left, each once."""
        while not self._last:
            for report in self._step():
                self._restarts = max(self._restarts, report.restarts)
                if report.round > self._seen:
                    self._seen = report.round
                    self._tell(report)
                    yield report

    def _tell(self, report: RoundReport) -> None:
        """Once: from here on it is another run than an undisturbed one."""
        if report.clients_dropped and not self._told:
            self._told = True
            text = f"round {report.round} is without {report.clients_dropped} clients: their actors died or were late"
            warnings.warn(f"{text}. What this run finds depends on it.", FedrayWarning, stacklevel=2)

    def asked(self, what: str, *args: Any) -> Any:
        """What the driver does after the last round."""
        while True:
            try:
                return get(getattr(self._actor, what).remote(*args))
            except FedrayError as error:
                self._again(error)
            for _ in self.rounds():
                pass

    def commit(self) -> int:
        """A checkpoint of the last round that was seen; its round."""
        while True:
            try:
                return int(get(self._actor.commit.remote()))
            except FedrayError as error:
                self._again(error)
            while self._at < self._seen:
                self._step()

    def _step(self) -> Sequence[RoundReport]:
        """What the next round says; or, after a death, all up to the checkpoint: its last may not have arrived."""
        try:
            report, self._last = waited(self._actor.step.remote(self._at))
        except FedrayError as error:
            return self._again(error)
        self._at = report.round
        return (report,)

    def _again(self, error: FedrayError) -> Sequence[RoundReport]:
        """The driver back at its last checkpoint, should it die on the way, too."""
        while True:
            self._failures.note(error)
            self._restarts += 1
            try:
                get(self._actor.begin.remote(*self._birth))
                return self._resumed()
            except FedrayError as another:
                error = another

    def _resumed(self) -> Sequence[RoundReport]:
        past, self._last = waited(self._actor.resume.remote(self._restarts))
        self._at = past[-1].round if past else 0
        return past


def waited(ref: Any) -> Any:
    """`get`, which says so where it takes long: an actor may be waiting for room."""
    while not answered(ref, LONG_S):
        free = session.resources_free()
        warnings.warn(
            f"no answer for {LONG_S:.0f} s: a long round, or actors that wait to be started again ({free} free)",
            FedrayWarning,
            stacklevel=2,
        )
    return get(ref)


def copied(outcome: Outcome) -> Outcome:
    """What arrived is a view of Ray's memory, and a family keeps it until after Ray has gone."""
    parts = {k: replace(a, users=users.copied(a.users)) for k, a in outcome.ablation.items()}
    groups = outcome.groups and Portrait(*(part.copy() for part in outcome.groups))
    return replace(outcome, users=users.copied(outcome.users), ablation=parts, groups=groups)
