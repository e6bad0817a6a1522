"""Feature tables: aligned to the dense items, float32, masked where an item has none."""

import numpy as np
import pytest

from fedray.data.features import align, shuffled
from fedray.data.sources import RawFeature
from tests.data import make
from tests.helpers import tiny_features

TABLE = np.arange(8, dtype=np.float16).reshape(4, 2)


def one(table=TABLE, item=None, item_ids=(0, 1, 2, 3), listed=None):
    raw = {"image": RawFeature(table, None if item is None else np.array(item, object), "image.npy")}
    features, counts = align(raw, np.array(item_ids), listed)
    return features.tables["image"], features.present["image"], counts


def test_rows_follow_the_dense_items():
    table, present, counts = one(item_ids=(2, 0, 3, 1))
    assert table.tolist() == [[4, 5], [0, 1], [6, 7], [2, 3]]
    assert table.dtype == np.float32
    assert present.all() and counts == {"items_without_image": 0}


def test_ids_name_the_rows_and_missing_ones_are_masked():
    table, present, counts = one(item=["c", "a", "zzz", "d"], item_ids=("a", "b", "c"))
    assert table.tolist() == [[2, 3], [0, 0], [0, 1]]
    assert present.tolist() == [True, False, True]
    assert counts == {"items_without_image": 1}


def test_integer_items_and_the_same_numbers_as_text():
    assert one(item=["3", "2", "1", "0"])[0].tolist() == TABLE[::-1].tolist()


def test_gaps_in_the_ids_need_rows_up_to_the_largest():
    assert one(item_ids=(0, 3))[0].tolist() == [[0, 1], [6, 7]]
    assert one(item_ids=(0, 2))[0].shape == (2, 2)  # more rows than known items, and nobody says it is wrong
    assert one(item_ids=(0, 2), listed=np.array([0, 2, 3]))[0].shape == (2, 2)


def test_nobody_can_write_into_a_table():
    table, present, _ = one()
    with pytest.raises(ValueError):
        table[0, 0] = 1
    with pytest.raises(ValueError):
        present[0] = False


def test_the_fingerprint_covers_values_names_and_masks():
    def of(table, item, name="image"):
        return align({name: RawFeature(table, np.array(item), "x")}, np.arange(4), None)[0].fingerprint

    zero = np.vstack([TABLE[:3], [[0, 0]]])
    prints = [
        of(TABLE, range(4)),
        of(TABLE + 1, range(4)),
        of(TABLE, range(4), "text"),
        of(zero, range(4)),
        of(zero, [0, 1, 2, 9]),  # the same values, but item 3 has none
    ]
    assert len(set(prints)) == 5
    assert of(TABLE, range(4)) == of(TABLE.astype(np.float64)[::-1], [3, 2, 1, 0])


def test_no_features():
    assert align({}, np.arange(3)) == (None, {})


def test_float16_files_with_ids_of_their_own(tmp_path):
    make.write(tmp_path, image=TABLE, text=TABLE.astype(np.float64) * 2)
    (tmp_path / "features" / "item_ids.txt").write_text("3\n2\n1\n0\n")
    (tmp_path / "features" / "text.ids.txt").write_text("0\n1\n2\n55\n")
    features = make.read(tmp_path).features
    assert features.tables["image"].tolist() == TABLE[::-1].tolist()
    assert features.tables["text"].tolist() == [[0, 2], [4, 6], [8, 10], [0, 0]]
    assert features.present["text"].tolist() == [True, True, True, False]


def test_items_dropped_by_the_core_may_have_rows(tmp_path):
    text = make.GOOD + "1,4,1\n"  # item 4 has one row only
    make.write(tmp_path, text, items=[{"item": i} for i in range(6)], image=np.ones((6, 1)))
    data = make.read(tmp_path, min_item_interactions=2)
    assert data.features.tables["image"].shape == (4, 1)
    assert data.counts["items_without_interactions"] == 2


def test_shuffled_features_stay_together_and_belong_to_others():
    given = tiny_features(40)
    other = shuffled(given, 3)
    places = [np.flatnonzero((given.tables["text"] == row).all(1))[0] for row in other.tables["text"] if row.any()]
    assert len(set(places)) == len(places)
    for m in given.tables:
        assert sorted(map(tuple, other.tables[m].tolist())) == sorted(map(tuple, given.tables[m].tolist()))
        np.testing.assert_array_equal(other.present[m], other.tables[m].any(1))
    assert (other.tables["text"] != given.tables["text"]).any(1).mean() > 0.8
    np.testing.assert_array_equal(shuffled(given, 3).tables["text"], other.tables["text"])
    assert shuffled(given, 4).fingerprint != other.fingerprint != given.fingerprint
