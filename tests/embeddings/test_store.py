import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedray.embeddings import store as store_module
from fedray.embeddings.folder import hold
from fedray.encoders import fingerprint
from fedray.errors import StoreBusyError, StoreError
from tests.embeddings.helpers import DESCRIPTION, DIM, filled, key, keys, opened, read_numbers, row, rows, segment_files

AWKWARD = np.array([[0.0, -0.0, 1e-45, -3.4028235e38, 1 / 3]], np.float32)


def test_float32_comes_back_bit_by_bit(tmp_path):
    with opened(tmp_path) as store:
        assert store.write(keys(0, 1), np.concatenate([AWKWARD, rows(1)])) == 2
    with opened(tmp_path) as store:
        values, found = store.read(keys(1, 0))
    assert found.all() and values.dtype == np.float32
    assert values.tobytes() == np.concatenate([rows(1), AWKWARD]).tobytes()


def test_float16_comes_back_rounded_once(tmp_path):
    with opened(tmp_path, "float16") as store:
        store.write(keys(*range(20)), rows(*range(20)))
        values, found = store.read(keys(*range(20)))
    assert found.all() and values.dtype == np.float32
    assert np.array_equal(values, rows(*range(20)).astype(np.float16).astype(np.float32))
    assert np.allclose(values, rows(*range(20)), rtol=2**-11)


@pytest.mark.parametrize("worst", [65505.0, -65536.0, 3e38])
def test_what_float16_cannot_hold_is_refused(tmp_path, worst):
    with opened(tmp_path, "float16") as store:
        values = rows(1, 2)
        values[1, 2] = worst
        with pytest.raises(StoreError, match=r"at most 65504 for float16.*float32"):
            store.write(keys(1, 2), values)
        assert not store.has(keys(1, 2)).any()
        values[1, 2] = -65504.0
        assert store.write(keys(1, 2), values) == 2


@pytest.mark.parametrize("worst", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_not_finite_is_refused(tmp_path, worst, dtype):
    values = rows(1)
    values[0, 0] = worst
    with opened(tmp_path, dtype) as store, pytest.raises(StoreError, match="NaN or infinity"):
        store.write(keys(1), values)


def test_the_folder_is_named_after_encoder_and_dtype_and_readable_with_the_library(tmp_path):
    (file,) = filled(tmp_path, [1, 2, 3])
    folder = tmp_path / f"{fingerprint(DESCRIPTION)}-float32"
    assert file.parent == folder / "segments"
    assert json.loads((folder / "encoder.json").read_text()) == DESCRIPTION
    tensors = load_file(file)
    assert tensors["key"].tobytes() == b"".join(keys(1, 2, 3))
    assert np.array_equal(tensors["value"], rows(1, 2, 3)) and tensors["crc"].shape == (3,)


def test_a_key_is_written_once(tmp_path):
    with opened(tmp_path) as store:
        assert store.write(keys(1, 2, 1), rows(1, 2, 7)) == 2
        assert store.write(keys(2, 3, 1), rows(8, 3, 9)) == 1
        assert store.write(keys(1, 2), rows(1, 2)) == 0
        assert read_numbers(store, 3, 1, 2, 1, 4) == [3, 1, 2, 1]
        assert len(segment_files(store)) == 2 and len(store) == 3


def test_other_dtypes_and_encoders_are_apart(tmp_path):
    filled(tmp_path, [1])
    with opened(tmp_path, "float16") as store:
        assert not store.has(keys(1)).any() and store.dim is None
    with opened(tmp_path, description={**DESCRIPTION, "weights": "abd"}) as store:
        assert not store.has(keys(1)).any()


def test_an_empty_store_has_nothing(tmp_path):
    with opened(tmp_path) as store:
        values, found = store.read(keys(1, 2))
        assert values.shape == (2, 0) and not found.any() and store.dim is None
        assert store.has([]).shape == (0,)
        assert store.write([], rows()) == 0
        assert store.read([])[0].shape == (0, 0)
        store.write(keys(1), rows(1))
        assert store.dim == DIM and store.read([])[0].shape == (0, DIM)


def test_two_at_once_see_each_other(tmp_path):
    with opened(tmp_path) as one, opened(tmp_path) as two:
        one.write(keys(1), rows(1))
        assert not two.has(keys(1)).any() and two.dim is None
        two.refresh()
        assert read_numbers(two, 1, 2) == [1] and two.dim == DIM
        two.write(keys(2), rows(2))
        assert one.write(keys(1, 2, 3), rows(1, 9, 3)) == 1  # a write looks first
        assert read_numbers(one, 1, 2, 3) == [1, 2, 3]
        two.refresh()
        assert read_numbers(two, 1, 2, 3) == [1, 2, 3]


def test_only_new_segments_are_opened(tmp_path, monkeypatch):
    filled(tmp_path, [1], [2])
    loads, load = [], store_module.segments.load
    monkeypatch.setattr(store_module.segments, "load", lambda file, *a: loads.append(file) or load(file, *a))
    with opened(tmp_path) as store:
        assert len(loads) == 2
        filled(tmp_path, [3])
        del loads[:]
        store.refresh()
        store.refresh()
        assert len(loads) == 1 and store.has(keys(1, 2, 3)).all()


def test_rows_of_another_length_are_refused(tmp_path):
    filled(tmp_path, [1])
    with opened(tmp_path) as store:
        with pytest.raises(StoreError, match=f"rows of 6 numbers; expected {DIM}"):
            store.write(keys(2), rows(2, dim=6))
        for wrong in (rows(1, 2), rows(2)[0], rows(2)[:, :0]):
            with pytest.raises(StoreError, match="values of shape"):
                store.write(keys(2), wrong)
        with pytest.raises(StoreError, match="a key of 31 bytes; expected 32"):
            store.has([key(1), key(2)[:31], key(3) + b"x"])


def test_a_dtype_that_there_is_not(tmp_path):
    with pytest.raises(StoreError, match="dtype 'bfloat16'; expected float32 or float16"):
        opened(tmp_path, "bfloat16")


def test_a_folder_that_cannot_be_made_or_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made: Not a directory"):
        opened(tmp_path / "file" / "root")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "segments" and access(path, mode))
    with pytest.raises(StoreError, match="segments: not writable"):
        opened(tmp_path)


def test_a_folder_with_something_else_in_it(tmp_path):
    folder = tmp_path / f"{fingerprint(DESCRIPTION)}-float32"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match=r"holds 'holiday.jpg' and no encoder.json"):
        opened(tmp_path)
    assert [f.name for f in folder.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({**DESCRIPTION, "weights": "abd"})])
def test_a_description_that_is_another(tmp_path, text):
    filled(tmp_path, [1])
    (tmp_path / f"{fingerprint(DESCRIPTION)}-float32" / "encoder.json").write_text(text)
    with pytest.raises(StoreError, match=r"encoder.json: (not a description|describes another encoder)"):
        opened(tmp_path)


def test_a_description_of_tuples_is_that_of_lists(tmp_path):
    filled(tmp_path, [1])
    with opened(tmp_path, description={**DESCRIPTION, "size": (2, 3)}) as store:
        assert store.has(keys(1)).all()


def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(tmp_path) as store:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match="cannot be written: No space left on device"):
                store.write(keys(1), rows(1))
        assert not list((store.folder / "segments").iterdir()) and not store.has(keys(1)).any()
        assert store.write(keys(1), rows(1)) == 1


def test_a_segment_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    """The content, then the name, then the folder that holds the name."""
    with opened(tmp_path) as store:
        done, fsync, replace = [], os.fsync, Path.replace

        def noted_fsync(handle):
            fsync(handle)
            done.append(Path(f"/proc/self/fd/{handle}").readlink())

        def noted_replace(file, name):
            assert not Path(name).exists()
            done.append(name)
            return replace(file, name)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(Path, "replace", noted_replace)
        store.write(keys(1), rows(1))
        (file,) = segment_files(store)
    assert done[0].suffix == ".tmp" and done[1:3] == [file, file.parent]


def test_a_writer_that_dies_before_the_name_leaves_no_segment(tmp_path, monkeypatch):
    class DeadError(BaseException):
        pass

    def die(*_):
        raise DeadError

    with opened(tmp_path) as store:
        with monkeypatch.context() as broken:
            broken.setattr(Path, "replace", die)
            with pytest.raises(DeadError):
                store.write(keys(1), rows(1))
        assert not segment_files(store)
        assert store.write(keys(1), rows(1)) == 1


def test_opening_waits_for_a_collection_but_not_for_ever(tmp_path, monkeypatch):
    filled(tmp_path, [1])
    monkeypatch.setattr(store_module, "PATIENCE_S", 0.2)
    with (
        hold(tmp_path / f"{fingerprint(DESCRIPTION)}-float32", "alone"),
        pytest.raises(StoreBusyError, match="being collected"),
    ):
        opened(tmp_path)
    opened(tmp_path).close()


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "a b", "x" * 201, "ü"])
def test_a_use_that_is_no_file_name(tmp_path, name):
    with opened(tmp_path) as store, pytest.raises(StoreError, match="1 to 200 letters"):
        store.use(name, keys(1))


def test_a_use_is_replaced(tmp_path):
    with opened(tmp_path) as store:
        store.use("ku.v-2", keys(3, 1, 2, 1))
        assert (store.folder / "uses" / "ku.v-2.keys").read_bytes() == b"".join(sorted(keys(1, 2, 3)))
        store.use("ku.v-2", keys(4))
        assert [f.read_bytes() for f in (store.folder / "uses").iterdir()] == keys(4)


def test_keys_with_zeros_at_the_end_and_equal_beginnings(tmp_path):
    tricky = [
        bytes(32),
        bytes(31) + b"\1",
        b"\1" + bytes(31),
        bytes(8) + b"\2" * 24,
        b"\xff" * 32,
        b"\xff" * 31 + b"\0",
    ]
    values = rows(*range(len(tricky)))
    with opened(tmp_path) as store:
        store.write(tricky[:3], values[:3])
        store.write(tricky[3:], values[3:])
        store.use("all", tricky)
    with opened(tmp_path) as store:
        got, found = store.read(tricky)
        assert found.all() and np.array_equal(got, values)
        assert not store.has([bytes(30) + b"\1\0", b"\1" * 32]).any()
        assert store.claim(tricky, 9) == ([], [])
        assert b"".join(sorted(tricky)) == (store.folder / "uses" / "all.keys").read_bytes()


def test_a_key_that_was_asked_twice_and_rows_out_of_order(tmp_path):
    filled(tmp_path, range(10), range(10, 20))
    with opened(tmp_path) as store:
        asked = [15, 3, 3, 99, 0, 19, 15, 4, 98]
        values, found = store.read(keys(*asked))
    assert [n for n, f in zip(asked, found) if f] == [15, 3, 3, 0, 19, 15, 4]
    assert all(np.array_equal(v, row(n)) for v, n, f in zip(values, asked, found) if f)
