"""Read this first: a federated round, and a run as a fold over rounds.

    state                      what the server knows
      -> broadcast             its shared parameters, once a round
      -> executor.train        the cohort trains; the sum of the uploads comes back
      -> method.server_step    the next state
      -> executor.evaluate     metric sums come back; validation alone selects (but under a paper's own rules)

Everything here is a pure function of its arguments; the executor decides where clients live.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedray.config import RunConfig
from fedray.data.protocols import Protocol, rules_of
from fedray.errors import BadReportError, TrainingError
from fedray.evaluation.ablation import Ablated
from fedray.evaluation.metrics import MetricSums
from fedray.evaluation.users import Users, metrics_in, with_group
from fedray.federated import cohort, rejections
from fedray.federated.clients import timed
from fedray.federated.executor import Executor, Sums, merge_seconds
from fedray.federated.method import VECTOR, Grouped, Method, Portrait, Uploads
from fedray.federated.reports import TrainReport
from fedray.federated.traits import TRAITS
from fedray.types import Arrays, Broadcast, RoundReport, ServerState, Split

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Best:
    """The selected round: the state before and after it is all that the final test needs. state: the server's own."""

    round: int
    value: float
    broadcast: Broadcast
    validation: Mapping[str, float]
    state: ServerState


@dataclass(frozen=True)
class Run:
    """A run between two rounds."""

    config: RunConfig
    method: Method
    state: ServerState
    broadcast: Broadcast
    kept: Mapping[str, Best] = field(default_factory=dict)
    since_best: int = 0
    total_bytes: tuple[int, int] = (0, 0)
    targets: Uploads | None = None

    @property
    def best(self) -> Best | None:
        """Of the best rounds by metric, that of the one that leads."""
        return next(iter(self.kept.values()), None)


@dataclass(frozen=True)
class Outcome:
    """What a run found: metrics of the selected round, by validation; `users` are each client's, see its module.

    Under a protocol that selects by several metrics these are means over `rounds`, and `best_round` is the first.
    """

    best_round: int
    validation: Mapping[str, float]
    test: Mapping[str, float]
    local_only: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    local_only_errors: Mapping[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    users: Users = field(default_factory=dict, compare=False)
    rounds: Mapping[str, int] = field(default_factory=dict)
    local_only_diverged: str = ""
    test_errors: Mapping[str, float] = field(default_factory=dict)
    ablation: Mapping[str, Ablated] = field(default_factory=dict)
    groups: Portrait | None = field(default=None, compare=False)


def start(config: RunConfig, method: Method) -> Run:
    """A run before its first round."""
    state = ServerState(0, method.init_server(config.seed))
    return Run(config, method, state, broadcast_of(method, state))


def broadcast_of(method: Method, state: ServerState) -> Broadcast:
    """What goes down after a round; what all clients share of its making is done here, once."""
    return Broadcast(state.round, method.down(state.params))


def finished(run: Run) -> bool:
    """All rounds done, or no new best for `train.patience` validations."""
    patience = run.config.train.patience
    return run.state.round >= run.config.train.rounds or bool(patience and run.since_best >= patience)


def step(run: Run, executor: Executor) -> tuple[Run, RoundReport]:
    """One round: train, aggregate, evaluate, select."""
    begun = time.perf_counter()
    trained, down = train_round(run, executor)
    seconds = dict(trained.seconds)
    with timed(seconds, "server"):
        state, targets = serve(run, trained)
    state, numbers = regrouped(run, state, trained, executor, seconds)
    with timed(seconds, "server"):
        broadcast = broadcast_of(run.method, state)
    sums: Sums = {}
    if due(run.config, state.round):
        splits: tuple[Split, ...] = ("valid", "test") if test_every_round(run.config) else ("valid",)
        sums, took = executor.evaluate(broadcast, splits, "current")
        seconds = merge_seconds(seconds, took, max)
    up = trained.bytes_up
    total = (run.total_bytes[0] + down, run.total_bytes[1] + up)
    run = select(replace(run, state=state, broadcast=broadcast, total_bytes=total, targets=targets), sums, executor)
    seconds["round"] = time.perf_counter() - begun
    refused = {f"fed/rejected_{reason}": float(r.number) for reason, r in trained.rejected.items()}
    metrics = {"train/loss": mean_loss(trained), **numbers, **flat(sums), **refused}
    counts = trained.clients, trained.dropped, rejections.counted(trained.rejected)
    return run, RoundReport(state.round, metrics, seconds, down, up, *counts, abandoned=int(trained.abandoned))


def train_round(run: Run, executor: Executor) -> tuple[TrainReport, int]:
    """The cohort's summed report, and the bytes that went down (to clients that are refused: none, as none came up)."""
    state, train = run.state, run.config.train
    chosen = train.clients_per_round, train.over_select
    limit = cohort.threshold(run.config.seed, state.round, executor.clients, *chosen)
    down = run.broadcast.params
    trained = executor.train(run.broadcast, limit, run.targets)
    require_sound(run, len(executor.clients), trained)
    personal = sum(down[k].nbytes for k in run.method.pull) * with_target(run.targets, trained)
    return trained, personal + trained.clients * sent(run.method, down)


def require_sound(run: Run, n_clients: int, trained: TrainReport) -> None:
    """Nobody reported twice, and not so many were refused that the rest stands for nobody. Decided here, of the sum:
    how clients are packed has no say."""
    train, seen = run.config.train, trained.clients + rejections.counted(trained.rejected)
    if seen > (asked := cohort.cohort_size(n_clients, train.clients_per_round, train.over_select)):
        raise BadReportError(f"round {run.state.round}: reports of {seen} clients", f"at most {asked}, each once")
    rejections.require_enough(run.state.round, trained.clients, trained.rejected, train.max_rejected)


def sent(method: Method, down: Arrays) -> int:
    """Bytes of what every client gets alike: the parameters and, where there are soft labels, those of one group."""
    labels = 0 if method.guide is None else down[method.guide.preference][0].nbytes
    return labels + sum(v.nbytes for v in method.parameters(down).values())


def with_target(targets: Uploads | None, trained: TrainReport) -> int:
    """How many of the clients that trained were sent tables of their own."""
    return 0 if targets is None else sum(int(np.isin(u.client, targets.client).sum()) for u in trained.uploads)


def serve(run: Run, trained: TrainReport) -> tuple[ServerState, Uploads | None]:
    """The server's part: the next state and, where the method personalises, what single clients get next round. After
    an abandoned round that is what it was."""
    if trained.abandoned:
        return replace(run.state, round=run.state.round + 1), run.targets
    state = run.method.server_step(run.state, trained.total)
    if run.method.personalise is None or not trained.uploads:
        return state, None
    uploads = joined(trained.uploads)
    state, tables = run.method.personalise(state, uploads)
    return state, Uploads(uploads.client, tables)


def regrouped(
    run: Run, state: ServerState, trained: TrainReport, executor: Executor, seconds: dict[str, float]
) -> tuple[ServerState, Mapping[str, float]]:
    """The round's second half, where the method groups: labels from the clients' vectors, sums by group, and what the
    server makes of them; and numbers about it."""
    grouping = run.method.grouping
    if grouping is None or not trained.vectors:
        return state, {}
    vectors, seed = joined(trained.vectors), run.config.seed
    with timed(seconds, "group"):
        labels = grouping.labels(seed, state, vectors)
    sums, took = executor.by_group(vectors.client, labels)
    seconds |= took
    uploads = joined(trained.uploads).tables if trained.uploads else {}
    with timed(seconds, "fit"):
        shown = vectors.tables[VECTOR] if due(run.config, state.round) else None  # others cannot be selected
        found = Grouped(vectors.client, labels, sums, run.broadcast, uploads, shown)
        new = grouping.fitted(seed, state, found)
    return new, grouping.report(state, new)


def joined(parts: Sequence[Uploads]) -> Uploads:
    """All clients' uploads by ascending id, however they were packed."""
    client = np.concatenate([p.client for p in parts])
    order = np.argsort(client)
    tables = {k: np.concatenate([p.tables[k] for p in parts])[order] for k in parts[0].tables}
    return Uploads(client[order], tables)


def mean_loss(trained: TrainReport) -> float:
    """Mean over the round's clients of their mean loss."""
    n = trained.total.scalar("clients")
    return trained.total.scalar("loss") / n if n else math.nan


def due(config: RunConfig, round_: int) -> bool:
    """Whether to validate after this many rounds; always after the last."""
    return round_ % config.evaluation.every == 0 or round_ == config.train.rounds


def test_every_round(config: RunConfig) -> bool:
    """Whether the test set is scored at every validation (a paper's habit) or once, at the end."""
    chosen, rules = config.evaluation.test, rules_of(config.evaluation)
    return rules.select_split == "test" or (rules.test if chosen == "protocol" else chosen) == "every_round"


def select(run: Run, sums: Sums, executor: Executor) -> Run:
    """Remember this round if validation, and validation alone, says it is the best so far (see `Protocol`)."""
    if not sums:
        return run
    rules, broadcast = rules_of(run.config.evaluation), run.broadcast
    here, validation = sums[rules.select_split].means(), sums["valid"].means()
    won = [m for m in rules.select_on if m not in run.kept or _better(rules, here[m], run.kept[m].value)]
    for metric in won:
        executor.keep_best(slot(rules, metric))
    new = {m: Best(run.state.round, here[m], broadcast, validation, run.state) for m in won}
    return replace(run, kept={**run.kept, **new}, since_best=0 if won else run.since_best + 1)


def _better(rules: Protocol, value: float, best: float) -> bool:
    return value > best or (value == best and rules.select_ties == "last") or math.isnan(best)


def slot(rules: Protocol, metric: str) -> str:
    """Under which name clients keep the state of the best round by this metric."""
    return "best" if metric == rules.lead else metric


def finish(run: Run, executor: Executor) -> Outcome:
    """Score the test set with the selected round's state (once), and the local-only control if asked.

    Where the test set was also scored every round this is the same state and the same number: what is reported and
    what each client got come from one pass.
    """
    assert run.best is not None, "no validation was ever due: due() is true after the last round"
    rules = rules_of(run.config.evaluation)
    found = [executor.per_client(best.broadcast, slot(rules, metric)) for metric, best in run.kept.items()]
    test, users = mean_of([sums.means() for sums, _ in found]), mean_of([each for _, each in found])
    validation = mean_of([best.validation for best in run.kept.values()])
    at = {metric: best.round for metric, best in run.kept.items()}
    alone, diverged = without_federation(run, executor)
    errors = alone["test"].standard_errors() if alone else {}
    by_split = {split: sums.means() for split, sums in alone.items()}
    spread = mean_of([sums.standard_errors() for sums, _ in found])
    parts = without_parts(run, executor)
    groups = portrait(run)
    users = users if groups is None else with_group(users, groups.group)
    total = run.total_bytes
    return Outcome(
        run.best.round, validation, test, by_split, errors, *total, users, at, diverged, spread, parts, groups
    )


def portrait(run: Run) -> Portrait | None:
    """Of the groups at the selected round, where the method groups: those that the test scores belong to."""
    grouping = run.method.grouping
    return None if grouping is None or run.best is None else grouping.portrait(run.best.state)


def without_parts(run: Run, executor: Executor) -> dict[str, Ablated]:
    """The test set scored once more without each part of the item rows that the method can leave out."""
    if not run.config.evaluation.ablation or run.method.ablations is None:
        return {}
    rules, found = rules_of(run.config.evaluation), dict[str, list[tuple[MetricSums, Users]]]()
    for metric, best in run.kept.items():
        for name, params in run.method.ablations(best.state.params).items():
            scored = executor.per_client(Broadcast(best.round, params), slot(rules, metric))
            found.setdefault(name, []).append(scored)
    return {name: ablated(parts) for name, parts in found.items()}


def ablated(parts: Sequence[tuple[MetricSums, Users]]) -> Ablated:
    """Means over the selected rounds."""
    test, errors = (mean_of([of(sums) for sums, _ in parts]) for of in (MetricSums.means, MetricSums.standard_errors))
    users = mean_of([each for _, each in parts])
    return Ablated(test, errors, {k: users[k] for k in ("client", *metrics_in(users))})


def without_federation(run: Run, executor: Executor) -> tuple[Sums, str]:
    """The local-only control if it is asked for, or why there is none: learning rates that the mean over clients
    tames can diverge for a client alone, and that must not cost the run."""
    if not run.config.evaluation.local_only:
        return {}, ""
    try:
        return executor.local_only(start(run.config, run.method).broadcast, run.config.train.rounds), ""
    except TrainingError as error:
        return {}, error.found


def mean_of(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Name by name (clients are the same in all); a single part is itself."""
    if len(parts) == 1:
        return parts[0]
    return {k: v if k == "client" else sum(p[k] for p in parts) / len(parts) for k, v in parts[0].items()}


def flat(sums: Sums) -> dict[str, float]:
    """`val/ndcg_at_10`, its quantiles over clients, `test/...` where it was scored; traits under their own names."""
    out: dict[str, float] = {}
    for split, found in sums.items():
        prefix = {"valid": "val/", TRAITS: ""}.get(split, f"{split}/")
        out |= {f"{prefix}{name}": value for name, value in found.means().items()}
        wanted = [n for n in found.histograms if n == "ndcg_at_10" or len(found.histograms) == 1 or split == TRAITS]
        out |= {f"{prefix}{name}{k}": v for name in wanted for k, v in _quantiles(found, name).items()}
    return out


def _quantiles(found: MetricSums, name: str) -> dict[str, float]:
    return {f"_p{round(100 * q)}": value for q, value in found.quantiles(name, QUANTILES).items()}
