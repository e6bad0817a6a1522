import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedray.embeddings import collect
from fedray.errors import StoreBusyError, StoreError
from tests.embeddings.helpers import (
    claim_and_wait,
    filled,
    flip,
    keys,
    opened,
    read_numbers,
    rows,
    segment_files,
)
from tests.embeddings.test_claims import process

DAY_S = 86400


def use(root, name, *numbers, days_ago=0.0):
    with opened(root) as store:
        store.use(name, keys(*numbers))
        file = store.folder / "uses" / f"{name}.keys"
    then = time.time() - days_ago * DAY_S
    os.utime(file, (then, then))
    return file


def all_files(root):
    return {f: f.read_bytes() for f in Path(root).rglob("*") if f.is_file()}


def test_a_sound_store(tmp_path):
    files = filled(tmp_path, range(5), range(5, 9))
    filled(tmp_path, range(3), dtype="float16")
    health = collect.verify(tmp_path)
    assert health.whole and not health.leftovers and not health.duplicates
    assert sorted(health.rows.values()) == [3, 9] and health.segments == 3
    assert health.bytes > sum(f.stat().st_size for f in files)
    assert health.text().splitlines()[-1] == "all whole"


def test_planted_damage_is_reported_by_name(tmp_path):
    torn, damaged, fine = filled(tmp_path, range(5), range(5, 9), range(9, 12))
    torn.write_bytes(torn.read_bytes()[:-1])
    flip(damaged, -1)
    with opened(tmp_path) as store:
        (store.folder / "segments" / "x.tmp").write_bytes(b"half")
        copy = store.folder / "segments" / "copy.safetensors"
        copy.write_bytes(fine.read_bytes())
        folder = store.folder.name
    health = collect.verify(tmp_path)
    assert list(health.torn) == [f"{folder}/segments/{torn.name}"]
    assert health.damaged == {f"{folder}/segments/{damaged.name}": (3,)}
    assert health.leftovers == (f"{folder}/segments/x.tmp",)
    assert (health.rows, health.segments, health.duplicates) == ({folder: 10}, 4, 3)
    assert not health.whole and all(f.name in health.text() for f in (torn, damaged))


def test_a_damaged_description_is_reported(tmp_path):
    filled(tmp_path, [1])
    with opened(tmp_path) as store:
        folder = store.folder
    for text in ("{", '{"another": 1}'):
        (folder / "encoder.json").write_text(text)
        assert list(collect.verify(tmp_path).torn) == [f"{folder.name}/encoder.json"]


def test_what_is_not_a_store_is_left_alone(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / ("0" * 16 + "-float32")).mkdir()
    (tmp_path / "notes" / "encoder.json").write_text("{}")
    before = all_files(tmp_path)
    assert collect.verify(tmp_path).rows == {} and collect.gc(tmp_path).kept == 0
    assert all_files(tmp_path) == before
    for work in (collect.verify, collect.gc):
        with pytest.raises(StoreError, match="cannot be listed"):
            work(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gc_keeps_what_is_used_and_packs_it(tmp_path, dtype):
    filled(tmp_path, *([i] for i in range(20)), dtype=dtype)
    with opened(tmp_path, dtype) as store:
        before = store.read(keys(*range(20)))[0]
        store.use("a", keys(*range(6), 77))
        store.use("b", keys(*range(4, 9)))
    found = collect.gc(tmp_path)
    assert (found.kept, found.unused, found.damaged, found.duplicates) == (9, 11, 0, 0)
    assert found.bytes_after < found.bytes_before
    json.dumps(vars(found))
    with opened(tmp_path, dtype) as store:
        values, there = store.read(keys(*range(20)))
        assert there.tolist() == [i < 9 for i in range(20)] and np.array_equal(values[:9], before[:9])
        assert len(segment_files(store)) == 1
    assert collect.verify(tmp_path).whole
    again = collect.gc(tmp_path)
    assert (again.kept, again.unused) == (9, 0) and again.bytes_after == again.bytes_before


def test_without_a_use_nothing_is_kept(tmp_path):
    filled(tmp_path, range(5))
    assert collect.gc(tmp_path).unused == 5
    with opened(tmp_path) as store:
        assert not store.has(keys(*range(5))).any() and not segment_files(store)


def test_a_use_that_was_not_renewed_is_dropped(tmp_path):
    filled(tmp_path, range(5))
    use(tmp_path, "old", 0, 1, days_ago=31)
    file = use(tmp_path, "new", 1, 2, days_ago=29)
    found = collect.gc(tmp_path)
    assert [Path(name).name for name in found.sets_dropped] == ["old.keys"] and found.kept == 2
    with opened(tmp_path) as store:
        assert read_numbers(store, *range(5)) == [1, 2]
        store.use("new", keys(2))
    assert collect.gc(tmp_path, older_than_days=1.0).kept == 1 and file.exists()


def test_damaged_torn_double_and_left_over_go(tmp_path):
    torn, damaged, fine = filled(tmp_path, range(5), range(5, 9), range(9, 12))
    torn.write_bytes(torn.read_bytes()[:-1])
    flip(damaged, -1)
    use(tmp_path, "all", *range(12))
    with opened(tmp_path) as store:
        folder = store.folder
    copy = folder / "segments" / "copy.safetensors"
    copy.write_bytes(fine.read_bytes())
    left = [folder / "segments" / "x.tmp", folder / "uses" / "y.tmp", folder / "z.tmp", folder / "claims" / "dead"]
    for file in left:
        file.write_bytes(b"half")
    found = collect.gc(tmp_path)
    assert (found.kept, found.unused, found.damaged, found.duplicates) == (6, 0, 1, 3)
    assert found.torn == (f"{folder.name}/segments/{torn.name}",)
    assert set(found.leftovers) == {f.relative_to(tmp_path).as_posix() for f in left}
    assert not any(f.exists() for f in [*left, torn, damaged, fine, copy])
    health = collect.verify(tmp_path)
    assert health.whole and not health.duplicates and not health.leftovers
    with opened(tmp_path) as store:
        assert read_numbers(store, *range(12)) == [5, 6, 7, 9, 10, 11]


def test_gc_refuses_while_anybody_has_the_store(tmp_path):
    filled(tmp_path, range(5))
    with process(claim_and_wait, tmp_path, 6) as (_, pipe):
        pipe.recv()
        before = all_files(tmp_path)
        with pytest.raises(StoreBusyError, match="in use by another process"):
            collect.gc(tmp_path)
        assert all_files(tmp_path) == before
        assert collect.verify(tmp_path).whole
    assert collect.gc(tmp_path).unused == 5  # the process is dead, and its lock with it


def test_gc_refuses_all_if_one_store_is_open(tmp_path):
    filled(tmp_path, range(5))
    with opened(tmp_path, "float16"):
        before = all_files(tmp_path)
        with pytest.raises(StoreBusyError):
            collect.gc(tmp_path)
        assert all_files(tmp_path) == before


class CrashError(Exception):
    pass


def test_a_crash_between_new_segments_and_old_ones_does_no_harm(tmp_path, monkeypatch):
    filled(tmp_path, *([i, i + 10] for i in range(10)))
    use(tmp_path, "half", *range(10))

    def crash(files):
        if files:
            raise CrashError

    with monkeypatch.context() as broken:
        broken.setattr(collect, "_remove", crash)
        with pytest.raises(CrashError):
            collect.gc(tmp_path)
    with opened(tmp_path) as store:
        assert len(segment_files(store)) == 11
        assert read_numbers(store, *range(20)) == [*range(20)]
    health = collect.verify(tmp_path)
    assert health.whole and health.duplicates == 10
    found = collect.gc(tmp_path)
    assert (found.kept, found.unused, found.duplicates) == (10, 10, 10)
    with opened(tmp_path) as store:
        assert read_numbers(store, *range(20)) == [*range(10)]


@pytest.mark.parametrize("steps", range(8))
def test_a_crash_anywhere_in_a_collection_keeps_what_is_used(tmp_path, monkeypatch, steps):
    """Every removal and every new segment is a step; it dies before one of them."""
    monkeypatch.setattr(collect, "SEGMENT_BYTES", 200)
    filled(tmp_path, *([i, i + 4] for i in range(4)))
    use(tmp_path, "half", *range(4))
    left = [steps]

    def step(work):
        def counted(*args, **options):
            left[0] -= 1
            if left[0] < 0:
                raise CrashError
            return work(*args, **options)

        return counted

    with monkeypatch.context() as broken:
        broken.setattr(collect.segments, "write", step(collect.segments.write))
        broken.setattr(collect.Path, "unlink", step(collect.Path.unlink))
        with pytest.raises(CrashError):
            collect.gc(tmp_path)
    assert collect.verify(tmp_path).whole
    with opened(tmp_path) as store:
        assert read_numbers(store, *range(4)) == [*range(4)]
    assert collect.gc(tmp_path).kept == 4 and not collect.verify(tmp_path).leftovers
    with opened(tmp_path) as store:
        assert read_numbers(store, *range(8)) == [*range(4)]


def test_segments_are_packed_up_to_a_size_and_large_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "SEGMENT_BYTES", 56 * 10)  # ten rows
    filled(tmp_path, *([i] for i in range(25)), range(30, 38))
    use(tmp_path, "all", *range(25), *range(30, 38))
    collect.gc(tmp_path)
    with opened(tmp_path) as store:
        files = segment_files(store)
        assert sorted(len(load_file(f)["crc"]) for f in files) == [5, 8, 10, 10]
        assert read_numbers(store, *range(38)) == [*range(25), *range(30, 38)]
    assert collect.gc(tmp_path).kept == 33
    assert all(f.exists() for f in files)


def test_a_damaged_use_stops_a_collection(tmp_path):
    filled(tmp_path, range(5))
    file = use(tmp_path, "cut", *range(5))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"cut.keys: 159 bytes; expected keys of 32"):
        collect.gc(tmp_path)
    with opened(tmp_path) as store:
        assert read_numbers(store, *range(5)) == [*range(5)]


def test_rows_are_copied_with_their_bits(tmp_path):
    with opened(tmp_path) as store:
        store.write(keys(1), np.array([[-0.0, 1e-45, 3.4028235e38, 1 / 3, 0.0]], np.float32))
        store.write(keys(2), rows(2))
        before = store.read(keys(1, 2))[0].tobytes()
        store.use("both", keys(1, 2))
    collect.gc(tmp_path)
    with opened(tmp_path) as store:
        assert store.read(keys(1, 2))[0].tobytes() == before
