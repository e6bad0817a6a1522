import json

import numpy as np
import pytest

from fedray.embeddings import collect
from fedray.embeddings.segments import Segment, Torn, load
from fedray.encoders import fingerprint
from tests.embeddings.helpers import DESCRIPTION, DIM, filled, flip, keys, opened, read_numbers, rows, segment_files

GOOD, BAD = range(4), range(4, 8)


@pytest.fixture(params=["float32", "float16"])
def dtype(request):
    return request.param


def whole(file, dtype):
    found = load(file, fingerprint(DESCRIPTION), dtype)
    assert not isinstance(found, Torn)
    return found.segment


@pytest.mark.parametrize("left", [0, 3, 8, 40, 300, -1, -33, -120])
def test_a_file_cut_short_is_left_out_and_written_again(tmp_path, left):
    _, file = filled(tmp_path, GOOD, BAD)
    raw = file.read_bytes()
    file.write_bytes(raw[:left])
    assert len(raw) > 300
    with opened(tmp_path) as store:
        assert list(store.torn) == [file.name]
        assert read_numbers(store, *GOOD, *BAD) == [*GOOD]
        assert collect.verify(tmp_path).torn.keys() == {f"{store.folder.name}/segments/{file.name}"}
        assert store.claim(keys(*GOOD, *BAD), 99).mine == keys(*BAD)
        assert store.write(keys(*GOOD, *BAD), rows(*GOOD, *BAD)) == len(BAD)
    with opened(tmp_path) as store:
        assert read_numbers(store, *GOOD, *BAD) == [*GOOD, *BAD] and len(store.torn) == 1


def test_no_flipped_bit_goes_unnoticed(tmp_path, dtype):
    """Each byte of a segment in turn: header, keys, checksums, values. The wrong row is never given."""
    good, file = filled(tmp_path, GOOD, BAD, dtype=dtype)
    raw = file.read_bytes()
    with opened(tmp_path, dtype) as store:
        right = store.read(keys(*GOOD, *BAD))[0]
    for at in range(len(raw)):
        flip(file, at, at % 8)
        with opened(tmp_path, dtype) as store:
            values, found = store.read(keys(*GOOD, *BAD))
            assert found[: len(GOOD)].all() and not found.all(), at
            assert np.array_equal(values[found], right[found]), at
            assert not values[~found].any()
            assert store.torn or (~found).sum() == 1
        file.write_bytes(raw)


@pytest.mark.parametrize("part", ["key", "crc", "value"])
def test_one_damaged_row_is_counted_and_written_again(tmp_path, dtype, part):
    _, file = filled(tmp_path, GOOD, BAD, dtype=dtype)
    at = {"value": whole(file, dtype).value_at + 1, "key": len(file.read_bytes()) - 31, "crc": -4 * len(BAD) - 128}[
        part
    ]
    if part == "crc":  # before the keys; in float16 before the values as well
        at -= 0 if dtype == "float32" else 2 * DIM * len(BAD)
    flip(file, at)
    with opened(tmp_path, dtype) as store:
        found = store.read(keys(*GOOD, *BAD))[1]
        assert (~found).sum() == 1
        assert store.damaged == (part != "key")  # under a wrong key it is not asked for
        lost = [n for n, f in zip([*GOOD, *BAD], found) if not f]
        assert not store.has(keys(*lost)).any()
        assert store.claim(keys(*GOOD, *BAD), 99).mine == keys(*lost)
        assert store.write(keys(*GOOD, *BAD), rows(*GOOD, *BAD)) == 1
        assert store.read(keys(*GOOD, *BAD))[1].all()
    with opened(tmp_path, dtype) as store:  # whichever of its two rows it looks at first
        assert store.read(keys(*GOOD, *BAD))[1].all()
    health = collect.verify(tmp_path)
    assert not health.whole and [len(r) for r in health.damaged.values()] == [1]
    assert list(health.damaged)[0].endswith(file.name)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_row_that_is_there_twice_is_read_where_it_is_whole(tmp_path, names):
    good, bad = (tmp_path / f"{name}.safetensors" for name in names)
    (file,) = filled(tmp_path, GOOD)
    flip(file.rename(file.with_name(good.name)), 0)  # torn for the moment
    (second,) = [f for f in filled(tmp_path, GOOD) if f.name != good.name]
    flip(file.with_name(good.name), 0)
    second = second.rename(file.with_name(bad.name))
    flip(second, whole(second, "float32").value_at)
    with opened(tmp_path) as store:
        assert len(store) == 2 * len(GOOD) and read_numbers(store, *GOOD, *GOOD) == [*GOOD, *GOOD]
        assert store.has(keys(*GOOD)).all() and store.damaged <= 1


@pytest.mark.parametrize("what", ["gone", "shorter", "empty"])
def test_a_segment_lost_under_an_open_store(tmp_path, what):
    _, file = filled(tmp_path, GOOD, BAD)
    with opened(tmp_path) as store:
        raw = file.read_bytes()
        if what == "gone":
            file.unlink()
        else:
            file.write_bytes(raw[: whole(file, "float32").value_at + 8 * DIM] if what == "shorter" else b"")
        left = [*BAD][:2] if what == "shorter" else []
        assert read_numbers(store, *GOOD, *BAD) == [*GOOD, *left]
        assert store.damaged == len(BAD) - len(left)
        assert store.write(keys(*BAD), rows(*BAD)) == len(BAD) - len(left)
        assert read_numbers(store, *GOOD, *BAD) == [*GOOD, *BAD]


def test_a_segment_of_another_encoder_or_dtype_or_length_is_left_out(tmp_path):
    (theirs,) = filled(tmp_path / "a", GOOD, dtype="float16")
    with opened(tmp_path / "b", description={"another": 1}) as store:
        store.write(keys(*GOOD), rows(*GOOD))
        (other,) = segment_files(store)
    with opened(tmp_path / "c") as store:
        store.write(keys(*GOOD), rows(*GOOD, dim=DIM + 1))
        (longer,) = segment_files(store)
    filled(tmp_path, BAD)
    with opened(tmp_path) as store:
        for file in (theirs, other, longer):
            (store.folder / "segments" / file.name).write_bytes(file.read_bytes())
        store.refresh()
        assert store.torn.keys() == {theirs.name, other.name, longer.name}
        assert "belongs to" in store.torn[theirs.name] and "belongs to" in store.torn[other.name]
        assert "rows of 6 numbers among rows of 5" in store.torn[longer.name]
        assert read_numbers(store, *GOOD, *BAD) == [*BAD]


@pytest.mark.parametrize(
    "head",
    [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"__metadata__":{},"key":1,"crc":2,"value":3}'],
    ids=lambda head: repr(head[:10]),
)
def test_headers_that_are_none(tmp_path, head):
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(head).to_bytes(8, "little") + head + bytes(100))
    assert isinstance(load(file, "f", "float32"), Torn)
    file.write_bytes(b"\xff" * 8 + head + bytes(100))
    assert isinstance(load(file, "f", "float32"), Torn)


HEADER = {
    "__metadata__": {"fingerprint": "f"},
    "key": {"dtype": "U8", "shape": [2, 32], "data_offsets": [0, 64]},
    "crc": {"dtype": "U32", "shape": [2], "data_offsets": [64, 72]},
    "value": {"dtype": "F32", "shape": [2, 3], "data_offsets": [72, 96]},
}


def with_header(file, size, **changes):
    head = json.dumps({name: {**part, **changes.get(name, {})} for name, part in HEADER.items()}).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + bytes(size))
    return load(file, "f", "float32")


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (100, {"value": {"data_offsets": [76, 100]}}),
        (96, {"value": {"data_offsets": [48, 72]}}),
        (96, {"value": {"data_offsets": [96, 72]}}),
        (96, {"key": {"dtype": "I8"}}),
        (96, {"key": {"dtype": "U8", "shape": [64]}}),
        (96, {"crc": {"dtype": "F32"}}),
        (96, {"crc": {"shape": [2, 1]}}),
        (96, {"value": {"shape": [3, 2]}}),
        (96, {"value": {"shape": [6]}}),
        (96, {"value": {"shape": [2, -3]}}),
        (96, {"value": {"shape": [2.0, 3.0]}}),
        (72, {"value": {"shape": [2, 0], "data_offsets": [72, 72]}}),
        (96, {"value": {"more": 1}}),
        (95, {}),
        (97, {}),
    ],
)
def test_headers_that_do_not_fit(tmp_path, size, changes):
    assert isinstance(with_header(tmp_path / "x", size, **changes), Torn)
    assert not isinstance(with_header(tmp_path / "x", 96), Torn)


def test_a_folder_in_the_place_of_a_segment(tmp_path):
    filled(tmp_path, GOOD)
    with opened(tmp_path) as store:
        (store.folder / "segments" / "x.safetensors").mkdir()
        store.refresh()
        assert "Is a directory" in store.torn["x.safetensors"] and read_numbers(store, *GOOD) == [*GOOD]


def test_a_segment_says_where_its_rows_are(tmp_path):
    (file,) = filled(tmp_path, GOOD)
    found = whole(file, "float32")
    assert isinstance(found, Segment) and (found.rows, found.dim) == (len(GOOD), DIM)
    assert file.read_bytes()[found.value_at :][: 4 * DIM] == rows(0).tobytes()
