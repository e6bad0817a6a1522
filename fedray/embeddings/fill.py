"""Bring what a catalogue needs and a store lacks into the store: claims, batches in flight, rows written as they land.

Without other jobs at the store the batches are the missing contents in a fixed order, cut into equal parts: how many
actors there are, and which of them die, does not change what is encoded together.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from fedray.embeddings.content import Content, key_of
from fedray.embeddings.host import Encoded
from fedray.embeddings.store import EmbeddingStore
from fedray.encoders import Problem, Raw

FLUSH_ROWS, FLUSH_S = 256, 2.0
WAIT_S = 0.1


class Pool(Protocol):
    """What batches are handed to."""

    def submit(self, raws: Sequence[Raw]) -> Future[Encoded]:
        """A future for the batch's embeddings."""
        ...


class Step(NamedTuple):
    """How far it is: distinct contents encoded here, made by other jobs meanwhile, refused, and all missing."""

    encoded: int
    by_others: int
    refused: int
    missing: int


@dataclass
class _Filling:
    """The state of one filling; `rows` wait to be written."""

    store: EmbeddingStore
    content: Content
    where: dict[bytes, int]
    todo: deque[bytes]
    flying: deque[tuple[list[bytes], Future[Encoded]]] = field(default_factory=deque)
    later: list[bytes] = field(default_factory=list)
    rows: list[tuple[bytes, np.ndarray]] = field(default_factory=list)
    problems: dict[bytes, Problem] = field(default_factory=dict)
    encoded: int = 0
    by_others: int = 0
    flushed: float = 0.0


def fill(
    store: EmbeddingStore,
    content: Content,
    missing: Sequence[bytes],
    pool: Pool,
    batch_size: int,
    window: int,
    tell: Callable[[Step], object] = lambda step: None,
) -> tuple[Step, dict[bytes, Problem]]:
    """Encode the `missing` keys of this content, at most `window` batches in flight. Raises what the pool raises; what
    has landed by then is in the store."""
    filling = _Filling(store, content, content.distinct(), deque(missing), flushed=time.monotonic())
    try:
        while filling.todo or filling.flying or filling.later:
            _send(filling, pool, batch_size, window)
            if filling.flying:
                _land(filling)
            elif filling.later:  # another job has them: it will finish, or die and leave them to us
                _flush(filling)
                time.sleep(WAIT_S)
                filling.todo, filling.later = deque(filling.later), []
            tell(_step(filling, len(missing)))
    finally:
        _flush(filling)
    return _step(filling, len(missing)), filling.problems


def _step(filling: _Filling, missing: int) -> Step:
    return Step(filling.encoded, filling.by_others, len(filling.problems), missing)


def _send(filling: _Filling, pool: Pool, batch_size: int, window: int) -> None:
    while filling.todo and len(filling.flying) < window:
        keys, raws = _claimed(filling, batch_size)
        if keys:
            filling.flying.append((keys, pool.submit(raws)))


def _claimed(filling: _Filling, batch_size: int) -> tuple[list[bytes], list[Raw]]:
    """The next batch of contents that nobody has or makes. A file that changed since it was looked at is a problem."""
    keys: list[bytes] = []
    while filling.todo and len(keys) < batch_size:
        asked = [filling.todo.popleft() for _ in range(min(batch_size - len(keys), len(filling.todo)))]
        claim = filling.store.claim(asked, len(asked))
        keys += claim.mine
        filling.later += claim.others
        filling.by_others += len(asked) - len(claim.mine) - len(claim.others)
    found = {key: _raw(filling, key) for key in keys}
    _refuse(filling, {key: raw for key, raw in found.items() if isinstance(raw, Problem)})
    raws = {key: raw for key, raw in found.items() if not isinstance(raw, Problem)}
    return list(raws), list(raws.values())


def _raw(filling: _Filling, key: bytes) -> Raw | Problem:
    raw = filling.content.raw(filling.where[key])
    if not isinstance(raw, Problem) and key_of(raw) != key:
        return Problem("unreadable", "it changed while it was read")
    return raw


def _refuse(filling: _Filling, problems: Mapping[bytes, Problem]) -> None:
    """Given back at once: another job that waits for these keys would wait for ever."""
    if problems:
        filling.problems.update(problems)
        filling.store.release(list(problems))


def _land(filling: _Filling) -> None:
    """Wait for the oldest batch; its rows wait for the next writing."""
    keys, future = filling.flying.popleft()
    encoded = future.result()
    made = [(key, value) for key, value, problem in zip(keys, encoded.values, encoded.problems) if problem is None]
    filling.rows += made
    filling.encoded += len(made)
    _refuse(filling, {key: problem for key, problem in zip(keys, encoded.problems) if problem is not None})
    if len(filling.rows) >= FLUSH_ROWS or time.monotonic() - filling.flushed > FLUSH_S:
        _flush(filling)


def _flush(filling: _Filling) -> None:
    filling.flushed = time.monotonic()
    if filling.rows:
        keys, values = zip(*filling.rows)
        filling.store.write(list(keys), np.stack(values))
        filling.rows.clear()
