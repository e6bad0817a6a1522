"""What an encoder pool counts and moves about: requests, their pieces, batches, workers; and its errors."""

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from fedray.embeddings.host import Encoded
from fedray.encoders import Problem, Raw
from fedray.errors import EncoderError, PlacementError
from fedray.runtime.workers import Worker

IN_FLIGHT = 2  # batches a worker holds: one is decoded beside the other's forward pass


@dataclass(frozen=True)
class PoolStats:
    """What a pool did so far. pids: of the workers that are up. seconds: summed over workers, by stage."""

    workers: int = 0
    waiting: int = 0
    in_flight: int = 0
    encoded: int = 0
    batches: int = 0
    restarts: int = 0
    most_workers: int = 0
    pids: tuple[int, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Request:
    """Somebody's items: rows fill up until none is left."""

    out: Future[Encoded]
    problems: list[Problem | None]
    left: int
    values: np.ndarray | None = None


@dataclass(eq=False)
class Piece:
    """One item of a request."""

    request: Request
    row: int
    raw: Raw
    since: float


@dataclass(eq=False)
class Suspects:
    """The items of a batch that failed, tried one by one: if none comes through, it is the encoder that is broken."""

    left: int
    cleared: bool = False
    failed: list[tuple[Piece, Problem]] = field(default_factory=list)


@dataclass(eq=False)
class Batch:
    """What goes to a worker in one call. lost: workers it has cost. suspects: it is one item of a batch that failed."""

    pieces: list[Piece]
    lost: int = 0
    suspects: Suspects | None = None


@dataclass(eq=False)
class Member:
    """A worker and what it holds: batch (None: a sign of life) -> when it must have answered. since: when it had work
    or came up; heard: when it gave a sign of life, which does not keep an idle one."""

    worker: Worker
    since: float
    heard: float = 0.0
    pid: int = 0
    up: bool = False
    flying: dict[Batch | None, float] = field(default_factory=dict)

    def has_room(self, batch: Batch) -> bool:
        """Whether it may be sent this batch: two at most, and a suspect alone."""
        held = [b for b in self.flying if b is not None]
        if batch.suspects or any(b.suspects for b in held):
            return self.up and not held
        return self.up and len(held) < IN_FLIGHT


def nobody_started(workers: int, seconds: float) -> PlacementError:
    """No worker found a place in time."""
    return PlacementError(
        f"none of {workers} encoder actors is up after {seconds:.0f} s",
        "room for at least one",
        "Lower encoding.cpus_per_actor or gpu_share, wait for other jobs to end, or raise runtime.start_timeout_s.",
    )


def keeps_dying(times: int, error: BaseException) -> EncoderError:
    """Workers die before they have loaded the model."""
    return EncoderError(
        f"{times} encoder actors were lost before their model was loaded ({error})",
        "an encoder that starts",
        "It may need more memory than there is: lower encoding.max_actors, or take a smaller model.",
    )


def broken_encoder(tried: int, problem: Problem) -> EncoderError:
    """It is the encoder, not its items."""
    return EncoderError(
        f"each of {tried} items failed alone, the last with {problem.kind}: {problem.detail}",
        "an encoder that can do at least one of them",
        "If it is memory, lower encoding.batch_size or max_actors.",
    )
