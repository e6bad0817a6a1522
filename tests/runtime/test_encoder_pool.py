"""The pool against workers that die, hang, refuse and lag: nothing is lost, nothing is answered twice."""

import contextlib
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from fedray.config import EncodingConfig
from fedray.embeddings.host import Encoded
from fedray.encoders import Problem
from fedray.errors import EncoderError, MissingPathError, PlacementError
from fedray.runtime import encoder_pool
from fedray.runtime.encoder_pool import EncoderPool
from fedray.runtime.workers import Hello, WorkerLost

SETTINGS = {"batch_size": 4, "linger_ms": 2.0, "queue": 64, "attempts": 2, "batch_timeout_s": 20.0}


class Fleet:
    """Makes workers and remembers what each was asked for."""

    def __init__(self, **traits):
        self.traits, self.workers, self.batches, self.done = traits, [], [], Counter()
        self.lock = threading.Lock()

    def __call__(self):
        worker = FakeWorker(self, len(self.workers))
        self.workers.append(worker)
        return worker


class FakeWorker:
    """Text "17" becomes [17, length]. Traits: `deadly` and `bad` texts, `lag` seconds, `hang` the first worker, ..."""

    def __init__(self, fleet, number):
        self.fleet, self.number, self.lost, self.killed = fleet, number, False, False
        self.threads = ThreadPoolExecutor(2)
        self.open = []

    def start(self):
        if "start" in self.fleet.traits:
            return self.fleet.traits["start"](self)
        return self._answer(lambda: Hello(2, self.number))

    def encode(self, raws):
        with self.fleet.lock:
            self.fleet.batches.append((self.number, list(raws)))
        return self._answer(lambda: self._encoded(raws))

    def kill(self):
        self.killed = True
        self.threads.shutdown(wait=False, cancel_futures=True)

    def _answer(self, make):
        out = Future()
        if self.lost:
            out.set_exception(WorkerLost("gone"))
            return out
        self.open.append(out)

        def work():
            try:
                found = make()
            except (WorkerLost, ValueError) as error:
                if not out.done():
                    out.set_exception(error)
                return
            if not out.done():
                out.set_result(found)

        self.threads.submit(work)
        return out

    def die(self):
        """All that is open is lost at once, as when a process is killed."""
        self.lost = True
        for out in [o for o in self.open if not o.done()]:
            out.set_exception(WorkerLost("killed"))
        raise WorkerLost("killed")

    def _encoded(self, raws):
        traits = self.fleet.traits
        if traits.get("hang") and self.number == 0:
            time.sleep(3600 if traits["hang"] is True else traits["hang"])
        time.sleep(traits.get("lag", 0.0))
        if set(raws) & set(traits.get("deadly", ())):
            self.die()
        if traits.get("all_bad") or set(raws) & set(traits.get("bad", ())):
            raise ValueError("cannot do that")
        with self.fleet.lock:
            self.fleet.done.update(raws)
        problems = tuple(Problem("empty_text") if raw == "" else None for raw in raws)
        values = np.array([[float(raw or 0), len(raw)] for raw in raws], np.float32)
        return Encoded(values, problems, {"forward": 0.001})


def pool_of(fleet, most=3, start_timeout_s=20.0, **changed):
    return EncoderPool(fleet, EncodingConfig(**{**SETTINGS, **changed}), most, start_timeout_s)


def texts(*numbers):
    return [str(n) for n in numbers]


def test_a_request_comes_back_in_its_order_whatever_the_batches():
    with pool_of(Fleet(lag=0.01)) as pool:
        found = pool.embed(texts(*range(23)))
    assert found.values[:, 0].tolist() == list(range(23))
    assert found.problems == (None,) * 23


def test_an_empty_request_is_answered_at_once():
    with pool_of(Fleet()) as pool:
        assert len(pool.embed([]).problems) == 0


def test_small_requests_of_many_threads_share_batches():
    fleet = Fleet()
    with pool_of(fleet, most=1, linger_ms=200.0) as pool, ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda n: pool.embed([str(n)]).values[0, 0], range(8)))
    assert found == list(range(8))
    assert sorted(len(raws) for _, raws in fleet.batches) == [4, 4]


def test_a_part_of_a_batch_does_not_wait_for_ever():
    with pool_of(Fleet()) as pool:
        begun = time.monotonic()
        pool.embed(["1"], timeout_s=10)
        assert time.monotonic() - begun < 5


def test_a_problem_is_a_value_of_its_item_alone():
    with pool_of(Fleet()) as pool:
        found = pool.embed(["1", "", "3"])
    assert found.problems == (None, Problem("empty_text"), None)
    assert found.values[2, 0] == 3


def test_a_worker_lost_in_mid_batch_loses_nothing_and_is_replaced():
    fleet = Fleet(lag=0.05)
    with pool_of(fleet, most=2) as pool:
        asked = pool.submit(texts(*range(40)))
        time.sleep(0.12)
        with pytest.raises(WorkerLost):
            fleet.workers[0].die()
        found = asked.result(20)
        assert pool.stats().restarts == 1
    assert found.values[:, 0].tolist() == list(range(40))
    assert len(fleet.workers) == 3


def test_an_item_that_kills_its_worker_is_named_and_its_neighbours_are_served():
    fleet = Fleet(deadly=["5"])
    with pool_of(fleet, most=2) as pool:
        found = pool.embed(texts(*range(12)), timeout_s=30)
    assert [i for i, p in enumerate(found.problems) if p] == [5]
    assert found.problems[5].kind == "encoder_died"
    assert [v for i, v in enumerate(found.values[:, 0]) if i != 5] == [i for i in range(12) if i != 5]


def test_an_item_that_the_encoder_refuses_is_named_and_its_neighbours_are_served():
    with pool_of(Fleet(bad=["3"])) as pool:
        found = pool.embed(texts(*range(8)), timeout_s=20)
        assert pool.stats().restarts == 0
    assert found.problems[3] == Problem("encoder_failed", "ValueError: cannot do that")
    assert sum(p is not None for p in found.problems) == 1


def test_an_encoder_that_can_do_nothing_is_an_error_and_no_list_of_problems():
    with (
        pytest.raises(EncoderError, match="each of 4 items failed alone.*cannot do that"),
        pool_of(Fleet(all_bad=True)) as pool,
    ):
        pool.embed(texts(*range(8)), timeout_s=20)


def test_an_encoder_that_always_dies_is_an_error():
    fleet = Fleet(deadly=texts(*range(8)))
    with pytest.raises(EncoderError, match="encoder_died"), pool_of(fleet) as pool:
        pool.embed(texts(*range(8)), timeout_s=20)


def test_a_worker_that_hangs_is_replaced():
    fleet = Fleet(hang=3.0)
    with pool_of(fleet, most=1, batch_timeout_s=0.3) as pool:
        found = pool.embed(texts(*range(6)), timeout_s=20)
        assert pool.stats().restarts == 1
    assert found.values[:, 0].tolist() == list(range(6))
    assert fleet.workers[0].killed


def test_an_error_of_the_start_is_raised_as_itself():
    def refuse(worker):
        out = Future()
        out.set_exception(MissingPathError("model.pt does not exist", "a file"))
        return out

    with pytest.raises(MissingPathError, match=r"model\.pt"), pool_of(Fleet(start=refuse)) as pool:
        pool.embed(["1"], timeout_s=20)


def test_workers_that_die_while_they_start_are_given_up():
    def die(worker):
        out = Future()
        out.set_exception(WorkerLost("out of memory"))
        return out

    with pytest.raises(EncoderError, match="2 encoder actors were lost before"), pool_of(Fleet(start=die)) as pool:
        pool.embed(["1"], timeout_s=20)


def test_workers_that_find_no_room_are_an_error_in_time():
    with (
        pytest.raises(PlacementError, match="none of 1"),
        pool_of(Fleet(start=lambda w: Future()), start_timeout_s=0.2) as pool,
    ):
        pool.embed(["1"], timeout_s=20)


@pytest.mark.parametrize("probe_s", [10.0, 0.1], ids=["", "though it is asked for signs of life"])
def test_it_grows_with_what_waits_and_shrinks_when_idle(monkeypatch, probe_s):
    monkeypatch.setattr(encoder_pool, "PROBE_S", probe_s)
    fleet = Fleet(lag=0.02)
    with pool_of(fleet, most=3, idle_s=0.3) as pool:
        pool.embed(texts(*range(60)), timeout_s=20)
        assert pool.stats().most_workers == 3
        deadline = time.monotonic() + 10
        while pool.stats().workers > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert pool.stats().workers == 1
        assert pool.embed(["7"], timeout_s=20).values[0, 0] == 7


def test_little_work_needs_one_worker():
    fleet = Fleet()
    with pool_of(fleet, most=3) as pool:
        for n in range(5):
            pool.embed([str(n)], timeout_s=20)
    assert len(fleet.workers) == 1


def test_no_worker_holds_more_than_two_batches():
    fleet, seen = Fleet(lag=0.01), []
    with pool_of(fleet, most=2) as pool:
        asked = pool.submit(texts(*range(60)))
        while not asked.done():
            seen.append(max(sum(not o.done() for o in w.open) for w in fleet.workers) if fleet.workers else 0)
            time.sleep(0.001)
    assert max(seen) <= 3  # two batches and a sign of life


def test_who_asks_for_more_than_the_queue_holds_waits():
    fleet = Fleet(lag=0.05)
    with pool_of(fleet, most=1, queue=8) as pool:
        first = pool.submit(texts(*range(8)))
        begun = time.monotonic()
        second = pool.submit(texts(*range(8)))
        waited = time.monotonic() - begun
        assert first.done() and waited > 0.04
        second.result(20)


def test_a_request_larger_than_the_queue_is_served():
    with pool_of(Fleet(), queue=4) as pool:
        assert len(pool.embed(texts(*range(50)), timeout_s=20).problems) == 50


def test_closing_finishes_what_was_asked_for_and_takes_no_more():
    fleet = Fleet(lag=0.02)
    pool = pool_of(fleet)
    asked = pool.submit(texts(*range(30)))
    pool.close()
    assert asked.result(0).values[:, 0].tolist() == list(range(30))
    assert all(w.killed for w in fleet.workers)
    with pytest.raises(EncoderError, match="closed"):
        pool.submit(["1"])


def test_an_error_in_the_block_gives_up_what_is_left():
    fleet = Fleet(hang=True)
    with pytest.raises(KeyError), pool_of(fleet, most=1) as pool:
        asked = pool.submit(["1"])
        raise KeyError
    with pytest.raises(EncoderError, match="given up"):
        asked.result(5)


def test_batches_of_a_steady_caller_do_not_depend_on_the_number_of_workers_nor_on_deaths():
    """Each request is one batch: what is computed together stays together."""

    def batches(most, deadly_at=None):
        fleet = Fleet(lag=0.005)
        with pool_of(fleet, most=most) as pool:
            asked = [pool.submit(texts(*range(i, i + 4))) for i in range(0, 48, 4)]
            if deadly_at:
                time.sleep(deadly_at)
                with pytest.raises(WorkerLost):
                    fleet.workers[0].die()
            [a.result(20) for a in asked]
        return {tuple(raws) for _, raws in fleet.batches}

    assert batches(1) == batches(3) == batches(3, deadly_at=0.02)


def test_every_item_is_answered_once_under_a_storm_of_deaths():
    fleet = Fleet(lag=0.01)
    stop = threading.Event()

    def killer():
        while not stop.wait(0.03):
            for worker in fleet.workers[-2:]:
                if not worker.lost and len(fleet.workers) < 30:
                    with contextlib.suppress(WorkerLost):
                        worker.die()

    thread = threading.Thread(target=killer)
    with pool_of(fleet, most=3, attempts=10) as pool:
        thread.start()
        try:
            found = [pool.submit(texts(*range(i, i + 5))) for i in range(0, 500, 5)]
            values = np.concatenate([f.result(60).values[:, 0] for f in found])
        finally:
            stop.set()
            thread.join()
        assert pool.stats().restarts >= 5
    assert values.tolist() == list(range(500))
