import multiprocessing as mp
import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from fedray.embeddings import collect
from fedray.embeddings.claims import Claim
from tests.embeddings.helpers import (
    claim_and_wait,
    encode_all,
    keys,
    opened,
    read_numbers,
    rows,
    segment_files,
    write_for_ever,
)

ALL = keys(*range(10))


def claim_files(store):
    return [f for f in (store.folder / "claims").iterdir() if f.name != ".lock"]


@contextmanager
def process(target, *args):
    """A fresh process with a pipe to it; killed at the end."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(*args, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        yield child, ours
    finally:
        child.kill()
        child.join()


def test_claims_are_shared_out(tmp_path):
    with opened(tmp_path) as one, opened(tmp_path) as two:
        assert one.claim(ALL, 3) == Claim(ALL[:3], [])
        assert two.claim(ALL, 4) == Claim(ALL[3:7], ALL[:3])
        assert one.claim(ALL[5:], 99) == Claim(ALL[7:], ALL[5:7])
        assert two.claim(ALL[:1], 1) == Claim([], ALL[:1])


def test_what_is_stored_is_nobodys(tmp_path):
    with opened(tmp_path) as one, opened(tmp_path) as two:
        one.claim(ALL, 4)
        one.write(ALL[:2], rows(0, 1))
        assert two.claim(ALL[:5], 99) == Claim(ALL[4:5], ALL[2:4])
        two.write(ALL[4:5], rows(4))
        assert one.claim(ALL[:5], 99) == Claim(ALL[2:4], [])
        assert one._claims._mine == set(ALL[2:4])


def test_a_row_written_while_another_looks_is_not_made_twice(tmp_path, monkeypatch):
    """Claims are looked at before segments: a claim that is gone was kept."""
    with opened(tmp_path) as one, opened(tmp_path) as two:
        one.claim(ALL, 3)

        def then_one_is_done(work):
            def both(*args):
                work(*args)
                one.write(ALL[:3], rows(*range(3)))
                one.close()

            return both

        monkeypatch.setattr(two._claims, "look", then_one_is_done(two._claims.look))
        assert two.claim(ALL[:4], 9) == Claim(ALL[3:4], [])


def test_only_one_at_a_time_claims(tmp_path):
    with opened(tmp_path) as one, opened(tmp_path) as two:
        with one._claims.turn():
            waiting = threading.Thread(target=two.claim, args=(ALL, 3))
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive() and not claim_files(one)
        waiting.join(10)
        assert len(claim_files(one)) == 1


def test_own_claims_are_given_again_and_written_down_once(tmp_path):
    with opened(tmp_path) as store:
        for _ in range(3):
            assert store.claim(ALL[:4] + ALL[:2], 3) == Claim(ALL[:3], [])
        assert store.claim(ALL, 0) == Claim([], []) and store.claim([], 5) == Claim([], [])
        (file,) = claim_files(store)
        assert file.stat().st_size == 3 * 33


def test_release(tmp_path):
    with opened(tmp_path) as one, opened(tmp_path) as two:
        one.claim(ALL, 3)
        assert two.claim(ALL[:3], 9).others == ALL[:3]
        one.release([*ALL[1:3], ALL[7]])
        one.release([])
        assert two.claim(ALL[:3], 9) == Claim(ALL[1:3], ALL[:1])
        assert one.claim(ALL[:3], 9) == Claim(ALL[:1], ALL[1:3])
        two.release(ALL[1:2])
        assert one.claim(ALL[:3], 9) == Claim(ALL[:2], ALL[2:3])  # taken, given back, taken again


def test_a_closed_store_has_no_claims(tmp_path):
    with opened(tmp_path) as one:
        with opened(tmp_path) as two:
            two.claim(ALL, 3)
            assert len(claim_files(one)) == 1
        assert not claim_files(one)
        assert one.claim(ALL, 99) == Claim(ALL, [])


def test_who_only_reads_makes_no_file(tmp_path):
    with opened(tmp_path) as store:
        store.release(ALL)
        store.claim(ALL, 0)
        assert not claim_files(store)


def test_half_a_record_is_read_when_it_is_whole(tmp_path):
    with opened(tmp_path) as one, opened(tmp_path) as two:
        one.claim(ALL, 1)
        with claim_files(one)[0].open("ab") as file:
            file.write(b"+" + ALL[1][:20])
            file.flush()
            assert two.claim(ALL[:2], 0).others == ALL[:1]
            file.write(ALL[1][20:])
        assert two.claim(ALL[:2], 0).others == ALL[:2]


def test_a_killed_process_loses_its_claims(tmp_path):
    with opened(tmp_path) as store, process(claim_and_wait, tmp_path, 6) as (child, pipe):
        assert pipe.recv() == 6
        assert store.claim(ALL, 99) == Claim(ALL[6:], ALL[:6])
        assert len(claim_files(store)) == 2
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert store.claim(ALL, 99) == Claim(ALL, [])
        assert len(claim_files(store)) == 1


def test_two_processes_write_each_key_once(tmp_path):
    with process(encode_all, tmp_path, 200, 0) as (_, one), process(encode_all, tmp_path, 200, 100) as (_, two):
        assert one.recv() == two.recv() == "ready"
        one.send("go")
        two.send("go")
        written = [one.recv(), two.recv()]
    assert sorted(written[0] + written[1]) == list(range(200))
    assert min(map(len, written)) > 20  # shared out indeed
    health = collect.verify(tmp_path)
    assert health.whole and health.duplicates == 0 and sum(health.rows.values()) == 200 and not health.leftovers
    with opened(tmp_path) as store:
        assert read_numbers(store, *range(200)) == [*range(200)]


@pytest.mark.parametrize("wait_s", [0.0, 0.013, 0.05])
def test_a_writer_killed_anywhere_leaves_whole_segments(tmp_path, wait_s):
    with process(write_for_ever, tmp_path) as (child, pipe):
        assert pipe.recv() == "ready"
        time.sleep(wait_s)
        os.kill(child.pid, signal.SIGKILL)
    health = collect.verify(tmp_path)
    assert health.whole and health.duplicates == 0
    with opened(tmp_path) as store:
        assert not store.torn
        n = 20 * len(segment_files(store))
        assert read_numbers(store, *range(n)) == [*range(n)]
