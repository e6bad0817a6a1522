"""Filling a store: what is asked for arrives once, whoever else is at it."""

import threading
from concurrent.futures import Future

import numpy as np
import pandas as pd
import pytest

from fedray.config import make_config
from fedray.embeddings.content import content_of
from fedray.embeddings.fill import fill
from fedray.embeddings.host import Encoded
from fedray.embeddings.store import EmbeddingStore
from fedray.encoders import Problem
from fedray.errors import EncoderError

ABOUT = {"name": "test"}


class Pool:
    """Answers at once, or on `later`; `bad` texts are problems; what it was asked for is kept."""

    def __init__(self, bad=(), broken_after=None):
        self.bad, self.broken_after, self.batches = set(bad), broken_after, []

    def submit(self, raws):
        self.batches.append(list(raws))
        out = Future()
        if self.broken_after is not None and len(self.batches) > self.broken_after:
            out.set_exception(EncoderError("no more"))
            return out
        problems = tuple(Problem("empty_text") if raw in self.bad else None for raw in raws)
        values = np.array([[len(raw), int(raw.split()[-1])] for raw in raws], np.float32)
        out.set_result(Encoded(values, problems, {}))
        return out


def content(n):
    encoder = make_config({"encoders": {"text": {"name": "hashing"}}}).encoders["text"]
    return content_of(encoder, pd.DataFrame({"item": range(n), "title": [f"film {i}" for i in range(n)]}))


def store(tmp_path):
    return EmbeddingStore(tmp_path, ABOUT, "float32")


def test_batches_are_the_missing_keys_in_order_cut_into_equal_parts(tmp_path):
    pool, films = Pool(), content(10)
    with store(tmp_path) as at:
        step, problems = fill(at, films, list(films.distinct()), pool, 4, 3)
        values, there = at.read(list(films.distinct()))
    assert pool.batches == [[f"film {i}" for i in part] for part in (range(4), range(4, 8), range(8, 10))]
    assert there.all() and values[:, 1].tolist() == list(range(10))
    assert step == (10, 0, 0, 10) and not problems


def test_problems_are_told_and_not_stored(tmp_path):
    films = content(6)
    with store(tmp_path) as at:
        step, problems = fill(at, films, list(films.distinct()), Pool(bad=["film 2"]), 4, 2)
        _, there = at.read(list(films.distinct()))
    assert list(problems) == [films.keys[2]] and there.sum() == 5
    assert step.refused == 1


def test_what_landed_before_an_error_is_in_the_store(tmp_path):
    films = content(12)
    with store(tmp_path) as at, pytest.raises(EncoderError):
        fill(at, films, list(films.distinct()), Pool(broken_after=2), 4, 1)
    with store(tmp_path) as at:
        assert at.has(list(films.distinct())).sum() == 8


def test_a_content_that_changed_since_it_was_looked_at_is_a_problem(tmp_path):
    films = content(3)
    changed = type(films)(films.ids, films.keys, films.problems, lambda i: "another 1" if i == 1 else films.raw(i))
    with store(tmp_path) as at:
        _, problems = fill(at, changed, list(films.distinct()), Pool(), 4, 1)
    assert problems == {films.keys[1]: Problem("unreadable", "it changed while it was read")}


def test_two_fillings_at_once_do_nothing_twice_and_do_not_wait_for_what_the_other_refused(tmp_path):
    """Both meet a key that cannot be encoded and that the other holds at first."""
    films = content(200)
    keys = list(films.distinct())
    pools = [Pool(bad=["film 3", "film 150"]) for _ in range(2)]
    found = {}

    def run(n):
        with store(tmp_path) as at:
            found[n] = fill(at, films, keys if n else keys[::-1], pools[n], 8, 2)

    threads = [threading.Thread(target=run, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    made = [raw for pool in pools for batch in pool.batches for raw in batch if raw not in pool.bad]
    assert sorted(made) == sorted(f"film {i}" for i in range(200) if i not in (3, 150))
    assert all(set(problems) == {films.keys[3], films.keys[150]} for _, problems in found.values())
