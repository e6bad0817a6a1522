"""A pool of encoder workers that serves embeddings: requests in, micro-batches out, nothing lost when a worker is.

    submit -> waiting pieces -> batches of at most batch_size -> the worker with the fewest batches in flight -> futures

All state belongs to one thread, the dispatcher; everybody else puts events into its queue, so there is nothing to
lock and no order of events that could tear it. What a worker was doing when it was lost is sent again; what costs
several workers is tried item by item, so that one poisonous item is named and its neighbours are served.
"""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np

from fedray.config import EncodingConfig
from fedray.embeddings.host import Encoded
from fedray.encoders import Problem, Raw
from fedray.errors import EncoderError
from fedray.runtime.batches import (
    IN_FLIGHT,
    Batch,
    Member,
    Piece,
    PoolStats,
    Request,
    Suspects,
    broken_encoder,
    keeps_dying,
    nobody_started,
)
from fedray.runtime.workers import Hello, Worker, WorkerLost

TICK_S = 0.25
PROBE_S = 10.0


class EncoderPool:
    """See the module's docstring. Use as a context manager, or `close` it.

    new_worker makes one more worker; there are `settings.min_actors` to `most` of them, by what waits.
    """

    def __init__(
        self,
        new_worker: Callable[[], Worker],
        settings: EncodingConfig,
        most: int,
        start_timeout_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new, self._settings, self._clock = new_worker, settings, clock
        self._least, self.most = min(settings.min_actors, most), most
        self._start_timeout_s = start_timeout_s
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._room, self._held = threading.Condition(), 0
        self._waiting: deque[Piece] = deque()
        self._again: deque[Batch] = deque()
        self._members: list[Member] = []
        self._requests: set[Request] = set()
        self._closing, self._failed_starts = False, 0
        self._broken: BaseException | None = None
        self._stats = PoolStats()
        self._thread = threading.Thread(target=self._run, name="encoder-pool", daemon=True)
        self._thread.start()

    # What others call

    def submit(self, raws: Sequence[Raw]) -> Future[Encoded]:
        """Queue items; waits while `settings.queue` items are held already. The future raises `EncoderError` and
        `ResourceError`s."""
        out: Future[Encoded] = Future()
        if not raws:
            out.set_result(Encoded(np.zeros((0, 0), np.float32), (), {}))
            return out
        with self._room:
            self._room.wait_for(lambda: self._held == 0 or self._held + len(raws) <= self._settings.queue)
            if self._closing:
                raise EncoderError("the pool is closed", "an open pool")
            self._held += len(raws)
        self._events.put(partial(self._enter, list(raws), out))
        return out

    def embed(self, raws: Sequence[Raw], timeout_s: float | None = None) -> Encoded:
        """The embeddings of raw items, in their order."""
        return self.submit(raws).result(timeout_s)

    def stats(self) -> PoolStats:
        """Of this moment."""
        return self._stats

    def close(self) -> None:
        """Finish what was asked for, then end every worker."""
        self._events.put(self._close)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._events.put(partial(self._break, EncoderError("the pool was given up")))
        self.close()

    # The dispatcher's own

    def _run(self) -> None:
        try:
            while not (self._closing and not self._requests):
                self._turn()
        except BaseException as error:  # else everybody who waits would wait for ever
            self._break(error)
            raise
        finally:
            self._closing = True
            for member in self._members:
                member.worker.kill()
            self._count(workers=0)

    def _turn(self) -> None:
        try:
            event = self._events.get(timeout=self._patience())
        except queue.Empty:
            event = None
        if event is not None:
            event()
        self._advance()

    def _patience(self) -> float:
        """Until the next thing that happens by itself: a part of a batch has lingered long enough."""
        if not self._waiting or self._broken:
            return TICK_S
        return min(TICK_S, max(0.0005, self._waiting[0].since + self._settings.linger_ms / 1e3 - self._clock()))

    def _enter(self, raws: list[Raw], out: Future[Encoded]) -> None:
        request, now = Request(out, [None] * len(raws), len(raws)), self._clock()
        self._requests.add(request)
        if self._broken or self._closing:
            self._refuse(request, self._broken or EncoderError("the pool is closed", "an open pool"))
            return
        self._waiting.extend(Piece(request, row, raw, now) for row, raw in enumerate(raws))

    def _close(self) -> None:
        self._closing = True

    def _advance(self) -> None:
        if self._broken is None:
            self._drop_the_silent()
            self._scale()
            self._dispatch()
        self._count(
            workers=sum(m.up for m in self._members),
            pids=tuple(m.pid for m in self._members if m.up),
            waiting=len(self._waiting) + sum(len(b.pieces) for b in self._again),
            in_flight=sum(len(b.pieces) for m in self._members for b in m.flying if b),
        )

    def _drop_the_silent(self) -> None:
        now = self._clock()
        for member in [m for m in self._members if any(now > deadline for deadline in m.flying.values())]:
            if member.up:
                self._lose(member)
            elif not any(m.up for m in self._members):
                self._break(nobody_started(len(self._members), self._start_timeout_s))

    def _scale(self) -> None:
        """As many workers as what is outstanding keeps busy, between the least and the most."""
        outstanding = self._stats.in_flight + len(self._waiting) + sum(len(b.pieces) for b in self._again)
        wanted = math.ceil(outstanding / (IN_FLIGHT * self._settings.batch_size))
        for _ in range(len(self._members), min(self.most, max(self._least, wanted))):
            self._start()
        now = self._clock()
        for member in [m for m in self._members if m.up and not m.flying]:
            if len(self._members) > self._least and now - member.since > self._settings.idle_s:
                self._members.remove(member)
                member.worker.kill()
            elif now - max(member.since, member.heard) > PROBE_S:
                self._ask(member, now + self._settings.batch_timeout_s)

    def _start(self) -> None:
        member = Member(self._new(), self._clock())
        self._members.append(member)
        self._ask(member, self._clock() + self._start_timeout_s)

    def _ask(self, member: Member, deadline: float) -> None:
        """Start it, or ask for a sign of life."""
        member.flying[None] = deadline
        asked = member.worker.start()
        asked.add_done_callback(lambda found: self._events.put(partial(self._answered, member, found)))

    def _answered(self, member: Member, found: Future[Hello]) -> None:
        if member not in self._members:
            return
        del member.flying[None]
        error = found.exception()
        if error is None:
            member.since, member.heard = member.since if member.up else self._clock(), self._clock()
            member.up, member.pid, self._failed_starts = True, found.result().pid, 0
            self._count(most_workers=max(self._stats.most_workers, sum(m.up for m in self._members)))
        elif isinstance(error, WorkerLost):
            self._failed_starts += not member.up
            self._lose(member)
            if self._failed_starts >= self._settings.attempts:
                self._break(keeps_dying(self._failed_starts, error))
        else:
            self._break(error)

    def _dispatch(self) -> None:
        while batch := self._next_batch():
            member = min((m for m in self._members if m.has_room(batch)), key=lambda m: len(m.flying), default=None)
            if member is None:
                self._again.appendleft(batch)
                return
            self._send(member, batch)

    def _next_batch(self) -> Batch | None:
        """What was lost first; then a full batch, or a part of one that has lingered; None if nobody could take it."""
        if self._again:
            return self._again.popleft()
        size = self._settings.batch_size
        if not self._waiting or not any(m.has_room(Batch([])) for m in self._members):
            return None
        lingered = self._clock() - self._waiting[0].since >= self._settings.linger_ms / 1e3
        if len(self._waiting) < size and not (lingered or self._closing):
            return None
        return Batch([self._waiting.popleft() for _ in range(min(size, len(self._waiting)))])

    def _send(self, member: Member, batch: Batch) -> None:
        member.flying[batch] = self._clock() + self._settings.batch_timeout_s
        sent = member.worker.encode([piece.raw for piece in batch.pieces])
        sent.add_done_callback(lambda found: self._events.put(partial(self._done, member, batch, found)))

    def _done(self, member: Member, batch: Batch, found: Future[Encoded]) -> None:
        if member not in self._members or batch not in member.flying:
            return  # it was given up, and the batch sent elsewhere
        if found.cancelled() or isinstance(found.exception(), WorkerLost):
            self._lose(member)
            return
        del member.flying[batch]
        member.since = self._clock()
        error = found.exception()
        if error is not None:
            self._suspect(batch, Problem("encoder_failed", f"{type(error).__name__}: {error}"[:500]))
            return
        encoded = found.result()
        self._cleared(batch)
        for i, piece in enumerate(batch.pieces):
            self._answer(piece, encoded.values[i], encoded.problems[i])
        seconds = {k: self._stats.seconds.get(k, 0.0) + v for k, v in encoded.seconds.items()}
        made = sum(p is None for p in encoded.problems)
        self._count(encoded=self._stats.encoded + made, batches=self._stats.batches + 1, seconds=seconds)

    def _lose(self, member: Member) -> None:
        """End a worker that is lost or silent; its batches go elsewhere."""
        self._members.remove(member)
        member.worker.kill()
        self._count(restarts=self._stats.restarts + 1)
        for batch in [b for b in member.flying if b is not None]:
            batch.lost += 1
            if batch.suspects or batch.lost >= self._settings.attempts:
                self._suspect(batch, Problem("encoder_died", f"{batch.lost} workers were lost with it"))
            else:
                self._again.append(batch)

    def _suspect(self, batch: Batch, problem: Problem) -> None:
        """A batch that fails is taken apart; an item that fails alone has a problem, once another one came through."""
        if batch.suspects is None and len(batch.pieces) > 1:
            suspects = Suspects(len(batch.pieces))
            self._again.extend(Batch([piece], batch.lost, suspects) for piece in batch.pieces)
            return
        if batch.suspects is None:
            self._answer(batch.pieces[0], None, problem)
            return
        suspects = batch.suspects
        suspects.left -= 1
        suspects.failed.append((batch.pieces[0], problem))
        hopeless = suspects.left == 0 or (problem.kind == "encoder_died" and len(suspects.failed) >= 3)
        if suspects.cleared:
            self._name(suspects)
        elif hopeless:
            self._break(broken_encoder(len(suspects.failed), problem))

    def _cleared(self, batch: Batch) -> None:
        if batch.suspects is not None:
            batch.suspects.left -= 1
            batch.suspects.cleared = True
            self._name(batch.suspects)

    def _name(self, suspects: Suspects) -> None:
        for piece, problem in suspects.failed:
            self._answer(piece, None, problem)
        suspects.failed.clear()

    def _answer(self, piece: Piece, value: np.ndarray | None, problem: Problem | None) -> None:
        request = piece.request
        if value is not None:
            if request.values is None:
                request.values = np.zeros((len(request.problems), len(value)), np.float32)
            request.values[piece.row] = value
        request.problems[piece.row] = problem
        request.left -= 1
        if request.left == 0 and request in self._requests:
            values = request.values if request.values is not None else np.zeros((len(request.problems), 0), np.float32)
            self._forget(request)
            request.out.set_result(Encoded(values, tuple(request.problems), {}))

    def _break(self, error: BaseException) -> None:
        """The pool is of no more use: everybody who waits is told why."""
        self._broken = self._broken or error
        for request in list(self._requests):
            self._refuse(request, error)
        self._waiting.clear()
        self._again.clear()

    def _refuse(self, request: Request, error: BaseException) -> None:
        self._forget(request)
        request.out.set_exception(error)

    def _forget(self, request: Request) -> None:
        self._requests.discard(request)
        with self._room:
            self._held -= len(request.problems)
            self._room.notify_all()

    def _count(self, **changed: Any) -> None:
        self._stats = PoolStats(**{**vars(self._stats), **changed})
