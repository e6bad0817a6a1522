"""Against a dictionary: any order of what several users of one store may do."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.embeddings import collect
from fedray.embeddings.index import PLACE, Index, as_bytes, as_keys, first_of_each
from tests.embeddings.helpers import DIM, key, keys, opened

USERS = 2
numbers = st.lists(st.integers(0, 15), max_size=6)
actions = st.lists(
    st.tuples(st.sampled_from(["write", "read", "refresh", "claim", "release", "reopen"]), st.integers(0, 1), numbers),
    max_size=25,
)


class World:
    """Two stores on one folder, and what they must know."""

    def __init__(self, root):
        self.root = root
        self.stores = [opened(root) for _ in range(USERS)]
        self.disk, self.claims = {}, [set() for _ in range(USERS)]
        self.seen = [set() for _ in range(USERS)]
        self.made = 0

    def write(self, who, wanted):
        values = np.arange(len(wanted) * DIM, dtype=np.float32).reshape(-1, DIM) + 1000 * self.made
        self.made += 1
        fresh = {}
        for n, value in zip(wanted, values):
            if n not in self.disk:
                fresh.setdefault(n, value)
        assert self.stores[who].write(keys(*wanted), values) == len(fresh)
        self.disk |= fresh
        self.refreshed(who)

    def read(self, who, wanted):
        values, found = self.stores[who].read(keys(*wanted))
        assert found.tolist() == [n in self.seen[who] for n in wanted]
        assert self.stores[who].has(keys(*wanted)).tolist() == found.tolist()
        assert all(np.array_equal(v, self.disk[n] if f else 0 * v) for v, f, n in zip(values, found, wanted))

    def refresh(self, who, wanted):
        self.stores[who].refresh()
        self.refreshed(who)

    def refreshed(self, who):
        self.seen[who] = set(self.disk)

    def claim(self, who, wanted):
        others = {n for w, c in enumerate(self.claims) if w != who for n in c} - set(self.disk)
        free = [n for n in dict.fromkeys(wanted) if n not in self.disk]
        mine = [n for n in free if n not in others][:3]
        assert self.stores[who].claim(keys(*wanted), 3) == (keys(*mine), keys(*(n for n in free if n in others)))
        self.claims[who] |= set(mine)
        self.refreshed(who)

    def release(self, who, wanted):
        self.stores[who].release(keys(*wanted))
        self.claims[who] -= set(wanted)

    def reopen(self, who, wanted):
        self.stores[who].close()
        self.stores[who] = opened(self.root)
        self.claims[who] = set()
        self.refreshed(who)

    def close(self):
        for store in self.stores:
            assert store.damaged == 0 and not store.torn
            store.close()


@settings(max_examples=60, deadline=None)
@given(actions, numbers)
def test_any_order_of_actions(order, used):
    root = Path(tempfile.mkdtemp())
    try:
        world = World(root)
        for name, who, wanted in order:
            getattr(world, name)(who, wanted)
        world.close()
        check_collection(world, used)
    finally:
        shutil.rmtree(root)


def check_collection(world, used):
    assert collect.verify(world.root).whole
    with opened(world.root) as store:
        store.use("some", keys(*used))
    kept = {n: v for n, v in world.disk.items() if n in used}
    found = collect.gc(world.root)
    assert (found.kept, found.unused) == (len(kept), len(world.disk) - len(kept))
    with opened(world.root) as store:
        values, there = store.read(keys(*range(16)))
    assert {n for n, t in enumerate(there) if t} == set(kept)
    assert all(np.array_equal(values[n], v) for n, v in kept.items())


def places(numbers):
    found = np.zeros(len(numbers), PLACE)
    found["row"] = numbers
    return found


@given(st.lists(st.one_of(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 60)), max_size=15))
def test_the_index_against_a_dictionary(steps):
    """A list adds keys, a number drops the place of that number."""
    index, model, made = Index(), {}, 0
    for step in steps:
        if isinstance(step, int):
            index.drop(places([step]))
            model = {k: [p for p in ps if p != step] for k, ps in model.items()}
            continue
        index.add(as_keys(keys(*step)), places(range(made, made + len(step))))
        for n in step:
            model.setdefault(n, []).append(made)
            made += 1
    found = index.find(as_keys(keys(*range(41))))
    assert index.has(as_keys(keys(*range(41)))).tolist() == [bool(model.get(n)) for n in range(41)]
    assert all(f["row"] in model[n] for n, f in enumerate(found) if model.get(n))
    assert len(index) == sum(map(len, model.values()))
    lengths = [len(run.keys) for run in index._runs]
    assert all(list(run.keys) == sorted(run.keys) for run in index._runs) and len(lengths) < 12


def test_keys_there_and_back():
    some = [bytes(32), key(1), b"\1" + bytes(31), key(1)]
    assert as_bytes(as_keys(some)) == some
    assert first_of_each(as_keys(some)).tolist() == [True, True, True, False]
    assert as_bytes(as_keys([])) == []
