"""Read this first: a federated round, and a run as a fold over rounds.

    state                      what the server knows
      -> broadcast             its shared parameters, once a round
      -> executor.train        the cohort trains; the sum of the uploads comes back
      -> method.server_step    the next state
      -> executor.evaluate     metric sums come back; validation alone selects

Everything here is a pure function of its arguments; the executor decides where clients live.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedray.config import RunConfig
from fedray.data.protocols import Protocol, protocol
from fedray.evaluation.metrics import MetricSums
from fedray.federated import cohort
from fedray.federated.clients import TrainReport, timed
from fedray.federated.executor import Executor, Sums, merge_seconds
from fedray.federated.method import Method
from fedray.types import Broadcast, RoundReport, ServerState, Split

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Best:
    """The selected round: the state before and after it is all that the final test needs."""

    round: int
    value: float
    broadcast: Broadcast
    validation: Mapping[str, float]
    test: Mapping[str, float] | None


@dataclass(frozen=True)
class Run:
    """A run between two rounds."""

    config: RunConfig
    method: Method
    state: ServerState
    best: Best | None = None
    since_best: int = 0
    total_bytes: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Outcome:
    """What a run found: metrics of the selected round, by validation."""

    best_round: int
    validation: Mapping[str, float]
    test: Mapping[str, float]
    local_only: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    local_only_errors: Mapping[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0


def start(config: RunConfig, method: Method) -> Run:
    """A run before its first round."""
    return Run(config, method, ServerState(0, method.init_server(config.seed)))


def finished(run: Run) -> bool:
    """All rounds done, or no new best for `train.patience` validations."""
    patience = run.config.train.patience
    return run.state.round >= run.config.train.rounds or bool(patience and run.since_best >= patience)


def step(run: Run, executor: Executor) -> tuple[Run, RoundReport]:
    """One round: train, aggregate, evaluate, select."""
    begun = time.perf_counter()
    state, trained, down = train_round(run, executor)
    seconds = dict(trained.seconds)
    with timed(seconds, "server"):
        state = run.method.server_step(state, trained.total)
    sums: Sums = {}
    if due(run.config, state.round):
        splits: tuple[Split, ...] = ("valid", "test") if test_every_round(run.config) else ("valid",)
        sums, took = executor.evaluate(Broadcast(state.round, state.params), splits, "current")
        seconds = merge_seconds(seconds, took, max)
    up = trained.bytes_up
    total = (run.total_bytes[0] + down, run.total_bytes[1] + up)
    run = select(replace(run, state=state, total_bytes=total), sums, executor)
    seconds["round"] = time.perf_counter() - begun
    metrics = {"train/loss": mean_loss(trained), **flat(sums)}
    return run, RoundReport(state.round, metrics, seconds, down, up, trained.clients)


def train_round(run: Run, executor: Executor) -> tuple[ServerState, TrainReport, int]:
    """The state, the cohort's summed report, and the bytes that went down."""
    state, train = run.state, run.config.train
    limit = cohort.threshold(run.config.seed, state.round, executor.clients, train.clients_per_round)
    trained = executor.train(Broadcast(state.round, state.params), limit)
    down = trained.clients * sum(v.nbytes for v in state.params.values())
    return state, trained, down


def mean_loss(trained: TrainReport) -> float:
    """Mean over the round's clients of their mean loss."""
    n = trained.total.scalar("clients")
    return trained.total.scalar("loss") / n if n else math.nan


def due(config: RunConfig, round_: int) -> bool:
    """Whether to validate after this many rounds; always after the last."""
    return round_ % config.evaluation.every == 0 or round_ == config.train.rounds


def test_every_round(config: RunConfig) -> bool:
    """Whether the test set is scored at every validation (a paper's habit) or once, at the end."""
    chosen = config.evaluation.test
    return (protocol(config.evaluation.protocol).test if chosen == "protocol" else chosen) == "every_round"


def select(run: Run, sums: Sums, executor: Executor) -> Run:
    """Remember this round if validation, and validation alone, says it is the best so far."""
    if not sums:
        return run
    rules = protocol(run.config.evaluation.protocol)
    value = sums["valid"].means()[rules.select_on]
    if run.best is not None and not _better(rules, value, run.best.value):
        return replace(run, since_best=run.since_best + 1)
    executor.keep_best()
    test = sums["test"].means() if "test" in sums else None
    broadcast = Broadcast(run.state.round, run.state.params)
    return replace(run, best=Best(run.state.round, value, broadcast, sums["valid"].means(), test), since_best=0)


def _better(rules: Protocol, value: float, best: float) -> bool:
    return value > best or (value == best and rules.select_ties == "last") or math.isnan(best)


def finish(run: Run, executor: Executor) -> Outcome:
    """Score the test set with the selected round's state (once), and the local-only control if asked."""
    assert run.best is not None, "no validation was ever due: due() is true after the last round"
    test = run.best.test
    if test is None:
        test = executor.evaluate(run.best.broadcast, ("test",), "best")[0]["test"].means()
    alone = executor.local_only(run.config.train.rounds) if run.config.evaluation.local_only else {}
    errors = alone["test"].standard_errors() if alone else {}
    by_split = {split: sums.means() for split, sums in alone.items()}
    return Outcome(run.best.round, run.best.validation, test, by_split, errors, *run.total_bytes)


def flat(sums: Sums) -> dict[str, float]:
    """`val/ndcg_at_10`, its quantiles over clients, `test/...` where it was scored."""
    out: dict[str, float] = {}
    for split, found in sums.items():
        prefix = "val" if split == "valid" else split
        out |= {f"{prefix}/{name}": value for name, value in found.means().items()}
        out |= _quantiles(prefix, found)
    return out


def _quantiles(prefix: str, found: MetricSums) -> dict[str, float]:
    return {
        f"{prefix}/{name}_p{round(100 * q)}": value
        for name in found.histograms
        if name == "ndcg_at_10" or len(found.histograms) == 1
        for q, value in found.quantiles(name, QUANTILES).items()
    }
