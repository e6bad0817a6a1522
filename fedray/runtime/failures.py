"""Policy of failures: what a lost actor costs, and when a run has lost enough. The mechanism is the executor's.

An actor that died, or that answers out of step, is restored from the last checkpoint and does the rounds since then
again; the others wait. An error that fedray's own code raised on purpose (a loss that is not finite, say) is no failure
of an actor: it ends the run.
"""

from dataclasses import dataclass

from ray import exceptions

from fedray.config import RunConfig
from fedray.errors import ActorLostError, FedrayError, OutOfStepError


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


def most_restarts(config: RunConfig) -> int:
    """None without checkpoints: whatever went down since the start would have to be kept."""
    runtime = config.runtime
    return runtime.max_restarts if runtime.recovery == "exact" and runtime.checkpoint.every else 0


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
