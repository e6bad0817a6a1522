"""A run as a job sees it, wherever its clients live: rounds one by one, the end, and the model on disk."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from fedray.config import RunConfig
from fedray.evaluation import users
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.federated.method import Method, Portrait
from fedray.federated.rounds import Outcome
from fedray.runtime import session
from fedray.runtime.executor import get
from fedray.runtime.plan import Plan
from fedray.types import ClientData, ItemFeatures, RoundReport


@dataclass(frozen=True)
class Federation:
    """A run between data and end table. save: folder -> shared parameters, their round, the clients' files."""

    rounds: Callable[[], Iterator[RoundReport]]
    finish: Callable[[], Outcome]
    save: Callable[[str], Any]


def federation(
    config: RunConfig, method: Method, data: ClientData, features: ItemFeatures | None, plan: Plan
) -> AbstractContextManager[Federation]:
    """In this process, or on Ray, as the plan says."""
    if plan.executor == "serial":
        return nullcontext(_serial(config, method, data, plan.device))
    return _on_ray(config, data, features, plan)


def _serial(config: RunConfig, method: Method, data: ClientData, device: str) -> Federation:
    executor = SerialExecutor([make_host(config, method, data, device)])
    run = rounds.start(config, method)

    def each() -> Iterator[RoundReport]:
        nonlocal run
        while not rounds.finished(run):
            run, report = rounds.step(run, executor)
            yield report

    def save(folder: str) -> Any:
        assert run.best is not None
        return run.best.broadcast.params, run.best.round, executor.save(folder)

    return Federation(each, lambda: rounds.finish(run, executor), save)


@contextmanager
def _on_ray(config: RunConfig, data: ClientData, features: ItemFeatures | None, plan: Plan) -> Iterator[Federation]:
    with session.crew(config, plan, data, features) as crew:

        def each() -> Iterator[RoundReport]:
            last = False
            while not last:
                report, last = get(crew.driver.step.remote())
                yield report

        yield Federation(
            each,
            lambda: copied(get(crew.driver.finish.remote())),
            lambda folder: get(crew.driver.save.remote(folder)),
        )


def copied(outcome: Outcome) -> Outcome:
    """What arrived is a view of Ray's memory, and a family keeps it until after Ray has gone."""
    parts = {k: replace(a, users=users.copied(a.users)) for k, a in outcome.ablation.items()}
    groups = outcome.groups and Portrait(*(part.copy() for part in outcome.groups))
    return replace(outcome, users=users.copied(outcome.users), ablation=parts, groups=groups)
