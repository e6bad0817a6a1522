"""A bounded queue of records, in memory and on disk, that one background thread sends in order.

`put` costs one line appended to a file; it never waits for the receiver. While the receiver is away the
thread tries again, 0.5 s after the first failure and twice as long after each further one, up to 15 s.
A record is a JSON object. Sending one twice must do no harm: after a crash a record that had arrived may
be sent again.

On disk: `<id>.jsonl`, a head line and then one record a line. It is locked while its process lives, emptied
whenever all has been sent, and removed by a `close` that leaves nothing behind. What a dead process left
is taken up by the next `Spool` on the same path. Records the receiver refused for good are kept in
`<id>.refused`, for reading only.
"""

import fcntl
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]
Send = Callable[[Sequence[Record]], None]

LONGEST_CLOSING_WAIT_S = 1.0


class Spool:
    """Records on their way to a receiver.

    `send` gets up to `batch` records and raises if they did not arrive; `is_transient` tells errors worth
    another try from refusals. Beyond `limit` waiting records the oldest are dropped and counted.

    Raises `BlockingIOError` where another live process has the file, `OSError` where it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        head: Record,
        send: Send,
        is_transient: Callable[[Exception], bool],
        *,
        limit: int = 100_000,
        batch: int = 50,
        first_wait_s: float = 0.5,
        longest_wait_s: float = 15.0,
    ) -> None:
        self._send, self._is_transient = send, is_transient
        self._limit, self._batch = limit, batch
        self._first_wait_s, self._longest_wait_s = first_wait_s, longest_wait_s
        self._disk = _File(path, head)
        self._queue = deque(self._disk.leftovers)
        self._flying: list[Record] = []
        self._one_by_one = 0
        self._away = 0
        self._notices: deque[str] = deque(maxlen=100)
        self._last_success = time.monotonic()
        self._changed = threading.Condition()
        self._closing, self._stopped = threading.Event(), threading.Event()
        self.sent = self.refused = self.dropped = 0
        self._thread = threading.Thread(target=self._work, name=f"spool-{path.stem}", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """The file the records wait in."""
        return self._disk.path

    @property
    def waiting(self) -> int:
        """Records not yet known to have arrived."""
        return len(self._queue) + len(self._flying)

    def put(self, record: Record) -> None:
        """Queue `record`; well under a millisecond, and without any network."""
        with self._changed:
            self._write(lambda: self._disk.append(record))
            self._queue.append(record)
            if len(self._queue) > self._limit:
                self._drop_oldest()
            self._changed.notify()

    def notices(self) -> list[str]:
        """What a user should know, each said once. The thread cannot warn: a warning may be an error."""
        with self._changed:
            found = list(self._notices)
            self._notices.clear()
        return found

    def close(self, patience_s: float = 30.0) -> bool:
        """Send the rest and stop; True if nothing is left.

        Gives up once nothing has arrived for `patience_s`; what is left then stays in the file.
        """
        self._closing.set()
        with self._changed:
            self._last_success = time.monotonic()
            self._changed.notify()
        while self._thread.is_alive() and time.monotonic() < self._last_success + patience_s:
            self._thread.join(min(0.1, patience_s))
        self._stopped.set()
        with self._changed:
            empty = self.waiting == 0
            self._disk.close(remove=empty)
        return empty

    def _work(self) -> None:
        wait_s = self._first_wait_s
        while batch := self._take():
            error = self._attempt(batch)
            if error is None:
                self._settle(batch)
                wait_s = self._first_wait_s
            elif self._is_transient(error):
                self._put_back(batch, error)
                self._rest(wait_s)
                wait_s = min(2 * wait_s, self._longest_wait_s)
            else:
                self._refuse(batch, error)

    def _attempt(self, batch: list[Record]) -> Exception | None:
        try:
            self._send(batch)
        except Exception as error:  # noqa: BLE001 - the one border training must be safe behind; none is lost
            return error
        return None

    def _take(self) -> list[Record]:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing.is_set())
            if self._stopped.is_set():
                return []
            size = 1 if self._one_by_one else self._batch
            self._flying = [self._queue.popleft() for _ in range(min(size, len(self._queue)))]
            return self._flying

    def _settle(self, batch: list[Record]) -> None:
        with self._changed:
            self.sent += len(batch)
            self._done_with(batch)
            if self._away > 1:
                self._notices.append(f"the receiver is back after {self._away} failed attempts")
            self._away = 0

    def _put_back(self, batch: list[Record], error: Exception) -> None:
        with self._changed:
            self._queue.extendleft(reversed(batch))
            self._flying = []
            self._away += 1
            # One failure may be a hiccup (a locked database); two are worth a word.
            if self._away == 2:
                self._notices.append(f"no answer, records wait in {self.path}: {_brief(error)}")

    def _refuse(self, batch: list[Record], error: Exception) -> None:
        with self._changed:
            if len(batch) > 1:
                # One bad record must not take its neighbours with it: find it.
                self._queue.extendleft(reversed(batch))
                self._flying, self._one_by_one = [], len(batch)
                return
            self.refused += 1
            self._write(lambda: self._disk.keep_refused(batch[0], str(error)))
            self._notices.append(f"a record was refused, see {self._disk.refused}: {_brief(error)}")
            self._done_with(batch)

    def _done_with(self, batch: list[Record]) -> None:
        self._flying = []
        self._one_by_one = max(0, self._one_by_one - len(batch))
        self._last_success = time.monotonic()
        if not self._queue and not self._stopped.is_set():
            self._write(self._disk.clear)

    def _drop_oldest(self) -> None:
        self._queue.popleft()
        self.dropped += 1
        if self.dropped == 1:
            self._notices.append(f"more than {self._limit} records wait; the oldest are being dropped")
        if self._disk.lines > 2 * self._limit:
            self._write(lambda: self._disk.replace([*self._flying, *self._queue]))

    def _write(self, action: Callable[[], None]) -> None:
        """A full disk must not stop training; the records still wait in memory."""
        try:
            action()
        except OSError as error:
            self._notices.append(f"cannot write {self.path}: {error}")

    def _rest(self, wait_s: float) -> None:
        if self._closing.is_set():
            self._stopped.wait(min(wait_s, LONGEST_CLOSING_WAIT_S))
        else:
            self._closing.wait(wait_s)


class _File:
    """The records on disk, locked for as long as this process lives (a kill -9 frees it)."""

    def __init__(self, path: Path, head: Record) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.refused = path, path.with_suffix(".refused")
        self._file = _locked(path)
        found, self.leftovers = read(path)
        self._head = found or head
        self.lines = len(self.leftovers)
        if not found:
            self.clear()
        elif not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # what comes next must not stick to half a line

    def append(self, record: Record) -> None:
        self._file.write(_line(record))
        self._file.flush()
        self.lines += 1

    def clear(self) -> None:
        self._file.truncate(0)
        self._file.write(_line(self._head))
        self._file.flush()
        self.lines = 0

    def replace(self, records: Sequence[Record]) -> None:
        """These records instead of all; the old file stays until the new one is whole."""
        fresh_path = self.path.with_suffix(".new")
        fresh_path.unlink(missing_ok=True)
        fresh = _locked(fresh_path)
        fresh.writelines(map(_line, [self._head, *records]))
        fresh.flush()
        fresh_path.replace(self.path)
        self._file.close()
        self._file, self.lines = fresh, len(records)

    def keep_refused(self, record: Record, why: str) -> None:
        with self.refused.open("a", encoding="utf-8") as file:
            file.write(_line({"refused": why, **record}))

    def close(self, remove: bool) -> None:
        if remove:
            self.path.unlink(missing_ok=True)
        self._file.close()


def leftovers(folder: Path) -> list[Path]:
    """The spool files in `folder`, those of live processes included, oldest first."""
    return sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)


def read(path: Path) -> tuple[Record, list[Record]]:
    """Head and records of a spool file; both empty for an empty file.

    A line that is not whole (the process died in the middle of it) is left out.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        records = [record for line in file if (record := _parsed(line)) is not None]
    return (records[0], list(islice(records, 1, None))) if records else ({}, [])


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def _line(record: Record) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def _locked(path: Path) -> IO[str]:
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
