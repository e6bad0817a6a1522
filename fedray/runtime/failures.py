"""Policy of failures: what a lost actor costs, and when a run has lost enough. The mechanism is the executor's.

An actor that died, or that answers out of step, is restored from the last checkpoint and does the rounds since then
again; the others wait. Under `runtime.recovery: drop` they go on, and client actors do not do those rounds again. An
error that fedray's own code raised on purpose (a loss that is not finite, say) is no failure of an actor: it ends the
run.
"""

import math
from dataclasses import dataclass

from ray import exceptions

from fedray.config import RunConfig
from fedray.errors import ActorLostError, FedrayError, OutOfStepError
from fedray.federated.cohort import cohort_size


@dataclass
class Failures:
    """Counts what was lost."""

    most: int
    restarts: int = 0

    def note(self, error: FedrayError) -> None:
        """One more actor is to be restored; raises where this error or their number ends the run."""
        if not recoverable(error):
            raise error
        if self.restarts >= self.most:
            raise ActorLostError(
                f"{error}; it is restart {self.restarts + 1}" if self.most else str(error),
                f"at most {self.most} (runtime.max_restarts)",
                "Look at the memory of the machines and at `ray logs`; then go on from the last checkpoint.",
            ) from error
        self.restarts += 1


@dataclass(frozen=True)
class Dropping:
    """When a round is closed without some of its clients: once `goal` have reported, or after that time. Of fewer than
    `least` it is none. seed: the run's, by which clients are selected."""

    seed: int
    goal: int
    least: int
    deadline_s: float = math.inf


def dropping(config: RunConfig, n_clients: int) -> Dropping | None:
    """None where all are waited for."""
    if config.runtime.recovery != "drop":
        return None
    goal = cohort_size(n_clients, config.train.clients_per_round)
    least = math.ceil(config.train.min_fraction * goal - 1e-9)
    return Dropping(config.seed, goal, max(1, least), config.runtime.deadline_s or math.inf)


def most_restarts(config: RunConfig) -> int:
    """Of the driver, and of the clients where their rounds are done again. None without checkpoints: whatever went
    down since the start would have to be kept."""
    runtime = config.runtime
    return runtime.max_restarts if runtime.recovery != "none" and runtime.checkpoint.every else 0


def most_client_restarts(config: RunConfig) -> int:
    """Under `drop` they come back without checkpoints, too: as they were at the start."""
    return config.runtime.max_restarts if config.runtime.recovery == "drop" else most_restarts(config)


def recoverable(error: BaseException) -> bool:
    """Whether an actor that ended so can be made again: not where it could not even start. (An `ActorLostError` that
    an actor raised itself, and not Ray about it, has no cause any more.)"""
    if isinstance(error, OutOfStepError):
        return True
    cause = error.__cause__
    return isinstance(error, ActorLostError) and isinstance(cause, exceptions.RayError) and not init_failed(cause)


def init_failed(error: BaseException | None) -> bool:
    """Whether it died of its own start, as it would again."""
    return isinstance(error, exceptions.ActorDiedError) and bool(error.actor_init_failed)
