"""The spool against receivers that fail in every way a receiver can."""

import fcntl
import json
import subprocess
import sys
import threading
import time

import pytest

from fedray.tracking.spool import Spool, leftovers, read

HEAD = {"run": "r1"}


class Receiver:
    """Takes records, unless told to fail: `errors` are raised in order first, `bad` values are refused for ever."""

    def __init__(self, errors=(), bad=()):
        self.got, self.tries, self.errors, self.bad = [], [], list(errors), set(bad)
        self.open = threading.Event()
        self.open.set()

    def __call__(self, records):
        self.tries.append(time.monotonic())
        self.open.wait(20)
        if self.errors:
            raise self.errors.pop(0)
        if any(record["n"] in self.bad for record in records):
            raise ValueError("not a number")
        self.got += [record["n"] for record in records]


def spool(path, receiver, **options):
    options = {"first_wait_s": 0.02, "longest_wait_s": 0.1, **options}
    return Spool(path / "r1.jsonl", HEAD, receiver, lambda error: isinstance(error, OSError), **options)


def fill(target, count, first=0):
    for n in range(first, first + count):
        target.put({"n": n})


def until(condition, seconds=5.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)


def test_records_arrive_in_order_and_the_file_goes(tmp_path):
    receiver = Receiver()
    s = spool(tmp_path, receiver, batch=7)
    fill(s, 500)
    assert s.close() and receiver.got == list(range(500))
    assert (s.sent, s.refused, s.dropped, s.waiting) == (500, 0, 0, 0)
    assert not list(tmp_path.iterdir()) and not s.notices()


def test_the_file_is_emptied_whenever_all_has_arrived(tmp_path):
    receiver = Receiver()
    s = spool(tmp_path, receiver)
    fill(s, 100)
    until(lambda: s.waiting == 0)
    until(lambda: s.path.read_text() == json.dumps(HEAD, separators=(",", ":")) + "\n")
    s.close()


def test_beyond_the_limit_the_oldest_are_dropped_counted_and_told_once(tmp_path):
    receiver = Receiver()
    receiver.open.clear()
    s = spool(tmp_path, receiver, limit=10, batch=1)
    s.put({"n": -1})
    until(lambda: receiver.tries)  # -1 is on its way and no longer in the queue
    fill(s, 100)
    assert s.dropped == 90 and s.waiting == 11
    kept_on_disk = read(s.path)[1]
    assert len(kept_on_disk) <= 21 and kept_on_disk[-1] == {"n": 99} and {"n": 90} in kept_on_disk
    assert [notice for notice in s.notices() if "dropped" in notice] and not s.notices()
    receiver.open.set()
    assert s.close() and receiver.got == [-1, *range(90, 100)]


def test_put_never_waits_for_the_receiver(tmp_path):
    receiver = Receiver()
    receiver.open.clear()
    s = spool(tmp_path, receiver)
    slowest = 0.0
    for n in range(2000):
        begun = time.perf_counter()
        s.put({"n": n})
        slowest = max(slowest, time.perf_counter() - begun)
    assert slowest < 0.05, f"{slowest:.3f} s"  # the mean is some 10 us; a busy machine may pause us
    begun = time.monotonic()
    assert not s.close(patience_s=0.3) and time.monotonic() - begun < 2
    assert len(read(s.path)[1]) == 2000
    receiver.open.set()


def test_transient_errors_are_retried_ever_more_slowly_and_nothing_is_lost(tmp_path):
    receiver = Receiver([ConnectionError("gone")] * 5)
    s = spool(tmp_path, receiver, batch=3, first_wait_s=0.02, longest_wait_s=0.16)
    fill(s, 20)
    until(lambda: s.waiting == 0)
    gaps = [b - a for a, b in zip(receiver.tries[:5], receiver.tries[1:6])]
    assert all(gap >= 0.95 * wait for gap, wait in zip(gaps, (0.02, 0.04, 0.08, 0.16, 0.16)))
    assert s.close() and receiver.got == list(range(20)) and s.refused == 0
    told = s.notices()
    assert ["gone" in told[0], "back after 5" in told[1], len(told)] == [True, True, 2]


def test_one_hiccup_is_not_worth_a_word(tmp_path):
    s = spool(tmp_path, Receiver([ConnectionError("gone")]))
    fill(s, 3)
    assert s.close() and not s.notices()


def test_a_refused_record_is_dropped_with_a_notice_and_its_neighbours_arrive(tmp_path):
    receiver = Receiver(bad={7, 30})
    receiver.open.clear()
    s = spool(tmp_path, receiver, batch=50)
    fill(s, 40)
    receiver.open.set()
    assert s.close() and receiver.got == [n for n in range(40) if n not in (7, 30)]
    assert (s.sent, s.refused) == (38, 2)
    assert sum("refused" in notice for notice in s.notices()) == 2
    kept = [json.loads(line) for line in (tmp_path / "r1.refused").read_text().splitlines()]
    assert kept == [{"refused": "not a number", "n": 7}, {"refused": "not a number", "n": 30}]


CRASH = """
import os, sys
from pathlib import Path
from fedray.tracking.spool import Spool

def gone(records):
    raise ConnectionError

spool = Spool(Path(sys.argv[1]), {"run": "r1"}, gone, lambda error: True)
for n in range(40):
    spool.put({"n": n})
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_sent_once_and_whole(tmp_path):
    path = tmp_path / "r1.jsonl"
    subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False, timeout=60)
    assert leftovers(tmp_path) == [path] and len(read(path)[1]) == 40
    receiver = Receiver()
    s = spool(tmp_path, receiver)
    fill(s, 5, first=40)
    assert s.close() and receiver.got == list(range(45)) and not leftovers(tmp_path)


def test_half_a_line_is_left_out_and_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "r1.jsonl"
    path.write_text('{"run":"r1"}\n{"n":0}\n{"n":1')
    receiver = Receiver([ConnectionError("gone")] * 1000)
    s = spool(tmp_path, receiver)
    fill(s, 2, first=2)
    assert not s.close(patience_s=0.1)
    assert read(path) == (HEAD, [{"n": 0}, {"n": 2}, {"n": 3}])


def test_a_live_process_keeps_its_file(tmp_path):
    s = spool(tmp_path, Receiver())
    with pytest.raises(BlockingIOError):
        spool(tmp_path, Receiver())
    s.close()


def test_the_new_file_of_a_long_outage_is_locked_too(tmp_path):
    receiver = Receiver()
    receiver.open.clear()
    s = spool(tmp_path, receiver, limit=4)
    fill(s, 30)  # rewritten several times by now
    with s.path.open("a") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    receiver.open.set()
    s.close()


def test_close_goes_on_as_long_as_something_arrives(tmp_path):
    receiver = Receiver()
    slow = lambda records: (time.sleep(0.05), receiver(records))  # noqa: E731
    s = spool(tmp_path, slow, batch=1)
    fill(s, 12)
    assert s.close(patience_s=0.3) and receiver.got == list(range(12))


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path, monkeypatch):
    receiver = Receiver()
    s = spool(tmp_path, receiver)

    def full(record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(s._disk, "append", full)
    fill(s, 5)
    assert s.close() and receiver.got == list(range(5))
    assert any("No space left" in notice for notice in s.notices())
