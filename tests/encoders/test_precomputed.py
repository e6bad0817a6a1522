"""Rows of a table by item id: which row, which item has none, and tables that are none."""

import shutil

import numpy as np
import pytest

from fedray.encoders import Problem, fingerprint, precomputed
from fedray.errors import (
    EmptyFileError,
    EncodingError,
    FeatureShapeError,
    FeatureValueError,
    FileFormatError,
    MissingPathError,
)

TABLE = np.arange(20, dtype=np.float32).reshape(5, 4)


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "clip.npy", TABLE)
    return tmp_path / "clip.npy"


def config(file, **settings):
    return precomputed.Config(path=str(file), **{"input": "image", **settings})


def encoder(file, **settings):
    return precomputed.make(config(file, **settings), "cpu", 1)


def kind(found):
    return found.kind if isinstance(found, Problem) else found


def write_ids(file, *ids, name="clip.ids.txt"):
    (file.parent / name).write_text("\n".join(ids) + "\n", encoding="utf-8")


def test_without_ids_the_row_is_the_items_number(file):
    made = encoder(file)
    assert made.dim == 4
    assert [made.prepare(i) for i in ("0", "4")] == [0, 4]
    assert np.array_equal(made.embed([4, 0, 4]), TABLE[[4, 0, 4]])
    for absent in ("5", "-1", "007", "1.0", "", " 1", "x", "\u0663", "9" * 40):
        assert made.prepare(absent).kind == "no_image"
    assert encoder(file, input="text").prepare("5").kind == "no_text"
    assert made.prepare(b"1").kind == "wrong_type"


def test_ids_beside_the_table_are_found(file):
    write_ids(file, "b", "a", "\u661f 7", "3", "x y")
    made = encoder(file)
    assert [kind(made.prepare(i)) for i in ("a", "\u661f 7", "3", "0")] == [1, 2, 3, "no_image"]


def test_ids_from_a_file_of_another_name(file):
    write_ids(file, *"abcde")
    write_ids(file, *"edcba", name="others")
    assert encoder(file, ids=str(file.parent / "others")).prepare("a") == 4


def test_the_path_is_looked_for_where_data_are(file, monkeypatch):
    monkeypatch.setenv("FEDRAY_DATA", str(file.parent))
    assert encoder("clip.npy").prepare("1") == 1


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint16", "bool", ">f4"])
def test_any_real_numbers_become_float32(file, dtype):
    np.save(file, (TABLE % 2).astype(dtype))
    found = encoder(file).embed([1, 3])
    assert found.dtype == np.float32
    assert np.array_equal(found, TABLE[[1, 3]] % 2)


def test_the_table_is_mapped_and_not_written_to(file):
    made = encoder(file)
    found = made.embed([1])
    found[:] = -1
    assert np.array_equal(made.embed([1]), TABLE[[1]])
    assert np.array_equal(np.load(file), TABLE)


def test_rows_that_are_not_finite(file):
    table = TABLE.astype(np.float64)
    table[0, 1], table[1, 1], table[2, 3] = np.nan, np.inf, 1e300
    np.save(file, table)
    assert [kind(encoder(file).prepare(str(i))) for i in range(5)] == ["not_finite"] * 3 + [3, 4]


def test_the_description_is_the_content(file, tmp_path):
    first = precomputed.describe(config(file))
    (tmp_path / "b").mkdir()
    copy = shutil.copy(file, tmp_path / "b" / "other.npy")
    assert precomputed.describe(config(copy)) == first
    others = [precomputed.describe(config(file, input="text"))]
    write_ids(file, *"abcde")
    others.append(precomputed.describe(config(file)))
    np.save(copy, TABLE + 1)
    others.append(precomputed.describe(config(copy)))
    assert len({fingerprint(d) for d in [first, *others]}) == 4


@pytest.mark.parametrize(
    ("table", "error"),
    [
        (np.zeros(3), FeatureShapeError),
        (np.zeros((3, 2, 2)), FeatureShapeError),
        (np.zeros((0, 4)), FeatureShapeError),
        (np.zeros((4, 0)), FeatureShapeError),
        (np.zeros((2, 2), complex), FeatureValueError),
        (np.array([["a", "b"]]), FeatureValueError),
        (np.array([[None, 1]], object), FileFormatError),
    ],
)
def test_tables_that_are_none(file, table, error):
    np.save(file, table)
    with pytest.raises(error, match=r"clip\.npy"):
        encoder(file)


def test_files_that_are_no_tables(file):
    whole = file.read_bytes()
    for body in (b"", b"\x93NUMPY", whole[:100], whole[:-4], b"PK\x03\x04broken", b"1,2,3\n"):
        file.write_bytes(body)
        with pytest.raises(FileFormatError, match=r"clip\.npy"):
            encoder(file)
    with file.open("wb") as out:
        np.savez(out, a=TABLE)
    with pytest.raises(FileFormatError, match="archive"):
        encoder(file)


def test_ids_that_do_not_fit(file):
    write_ids(file, *"abcd")
    with pytest.raises(FeatureShapeError, match="4 ids for 5 rows"):
        encoder(file)
    write_ids(file, *"abcda")
    with pytest.raises(FeatureShapeError, match="item a has two rows"):
        encoder(file)
    (file.parent / "clip.ids.txt").write_bytes(b"\xff\n")
    with pytest.raises(EncodingError):
        encoder(file)
    (file.parent / "clip.ids.txt").write_bytes(b"")
    with pytest.raises(EmptyFileError):
        encoder(file)


def test_paths_that_are_not_there(file):
    for settings in ({"file": "nowhere.npy"}, {"file": file, "ids": "nowhere.txt"}):
        for call in (precomputed.describe, lambda c: precomputed.make(c, "cpu", 1)):
            with pytest.raises(MissingPathError, match="nowhere"):
                call(config(**settings))
