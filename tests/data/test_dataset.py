"""From a source to the frozen data set: numbering, item ids by protocol, the catalogue, fingerprints."""

import numpy as np
import pandas as pd
import pytest

from fedray.data.dataset import client_data, describe
from fedray.data.protocols import PROTOCOLS
from fedray.types import TEST, TRAIN, VALID
from tests.data import make

N = 40
MANY = "user,item,timestamp\n" + "".join(f"{u},{(7 * u + 3 * i) % N},{i}\n" for u in range(12) for i in range(15))
ITEMS = [{"item": i, "title": f"film {i}"} for i in range(N)]
TABLE = np.arange(2 * N, dtype=np.float32).reshape(N, 2)


def test_users_and_items_are_numbered_in_the_order_of_their_ids(tmp_path):
    data = make.read(make.write(tmp_path, "user,item\n10,b\n9,b\n10,a\n10,c\n9,a\n9,c\n"))
    assert data.interactions.user_ids.tolist() == [9, 10]  # as numbers, not as text
    assert data.interactions.item_ids.tolist() == ["a", "b", "c"]
    assert data.interactions.user.tolist() == [1, 0, 1, 1, 0, 0]
    assert data.interactions.item.tolist() == [1, 1, 0, 2, 0, 2]


def test_only_clean_renumbers_the_items_and_all_that_hangs_on_them_follows(tmp_path):
    make.write(tmp_path, MANY, ITEMS, image=TABLE)
    paper, clean = make.read(tmp_path, "paper/pfedrec"), make.read(tmp_path, "clean")
    assert paper.interactions.item_ids.tolist() == list(range(N))
    ids = clean.interactions.item_ids
    assert ids.tolist() != list(range(N)) and sorted(ids.tolist()) == list(range(N))
    assert (ids[clean.interactions.item] == paper.interactions.item).all()
    assert (clean.label == paper.label).all()
    assert clean.items["item"].tolist() == ids.tolist()
    assert clean.items["title"].tolist() == [f"film {i}" for i in ids]
    assert (clean.features.tables["image"] == TABLE[ids]).all()
    assert clean.fingerprint != paper.fingerprint


def test_the_renumbering_and_the_random_split_follow_the_data_seed(tmp_path):
    make.write(tmp_path, MANY)
    first, again, other = (make.read(tmp_path, "clean", seed=s).interactions.item_ids.tolist() for s in (0, 0, 1))
    assert first == again != other


def test_a_random_validation_item_is_the_same_under_every_protocol_and_row_order(tmp_path):
    lines = [f"{u},{i}" for u in range(20) for i in range(8)]
    make.write(tmp_path, "user,item\n" + "\n".join(lines))
    kept = [make.rows_of(make.read(tmp_path, rules), VALID) for rules in PROTOCOLS]
    make.write(tmp_path, "user,item\n" + "\n".join(np.random.default_rng(0).permutation(lines)))
    kept.append(make.rows_of(make.read(tmp_path), VALID))
    assert all({u: i for u, i in sorted(k.items())} == kept[0] for k in kept)
    assert make.rows_of(make.read(tmp_path, seed=1), VALID) != kept[0]


def test_the_fingerprint_is_that_of_the_interactions_alone(tmp_path):
    first = make.read(make.write(tmp_path, MANY, ITEMS)).fingerprint
    assert make.read(make.write(tmp_path, MANY, ITEMS[::-1])).fingerprint == first
    later = make.read(make.write(tmp_path, MANY.replace(",14\n", ",0\n"), ITEMS)).fingerprint
    other = make.read(make.write(tmp_path, MANY + "3,1,99\n", ITEMS)).fingerprint
    assert len({first, later, other}) == 3
    assert len(first) == 12


def test_the_items_table_has_one_row_for_each_item_with_interactions(tmp_path):
    items = [{"item": 2, "title": "two"}, {"item": 9, "title": "unseen"}, {"item": 2, "title": "again"}, {"item": "0"}]
    data = make.read(make.write(tmp_path, items=items))
    assert data.items["item"].tolist() == [0, 1, 2, 3]
    assert data.items["title"].fillna("-").tolist() == ["-", "-", "two", "-"]
    assert (data.counts["items_without_interactions"], data.counts["items_listed_twice"]) == (1, 1)


def test_a_short_user_that_is_kept_only_trains(tmp_path):
    make.write(tmp_path, make.GOOD + "7,1,1\n7,2,2\n")
    data = make.read(tmp_path, short_users="keep")
    assert make.rows_of(data, TRAIN)["7"] == ["1", "2"]
    assert set(make.rows_of(data, TEST)) == set(make.rows_of(data, VALID)) == {"1", "2"}
    assert "7" not in make.rows_of(make.read(tmp_path), TRAIN)


def test_client_data_holds_each_users_items_ascending(tmp_path):
    data = make.read(make.write(tmp_path, "user,item,timestamp\n5,3,1\n5,1,2\n5,0,9\n5,2,8\n4,2,1\n4,0,3\n4,3,2\n"))
    clients = client_data(data)
    assert clients.client.tolist() == [0, 1]
    assert [clients.train.row(c).tolist() for c in (0, 1)] == [[2], [1, 3]]
    assert [clients.valid.row(c).tolist() for c in (0, 1)] == [[3], [2]]
    assert [clients.test.row(c).tolist() for c in (0, 1)] == [[0], [0]]
    assert clients.n_items == 4


def test_describe(tmp_path):
    told = describe(make.read(make.write(tmp_path, make.GOOD + "1,0,999\n"), name="mine"))
    assert {k: told[k] for k in ("name", "users", "items", "interactions", "train", "valid", "test")} == {
        "name": "mine", "users": 2, "items": 4, "interactions": 8, "train": 4, "valid": 2, "test": 2
    }  # fmt: skip
    assert told["density"] == 1.0
    assert (told["rows_read"], told["duplicates_dropped"]) == (9, 1)


def test_a_data_set_is_frozen(tmp_path):
    with pytest.raises(AttributeError):
        make.read(make.write(tmp_path)).name = "x"


def test_paths_are_looked_up_in_the_places_the_message_names(tmp_path, monkeypatch):
    (tmp_path / "sets" / "mine").mkdir(parents=True)
    make.write(tmp_path / "sets" / "mine")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("FEDRAY_DATA", str(tmp_path / "sets"))
    assert make.read("mine").name == "mine"
    monkeypatch.setenv("MY_SETS", str(tmp_path / "sets"))
    monkeypatch.delenv("FEDRAY_DATA")
    assert make.read("$MY_SETS/mine").name == "mine"
    (tmp_path / "sets").rename(tmp_path / "shared")
    (tmp_path / "shared" / "data").mkdir()
    (tmp_path / "shared" / "mine").rename(tmp_path / "shared" / "data" / "mine")
    assert make.read("mine").name == "mine"


def test_extra_columns_are_no_trouble(tmp_path):
    text = pd.read_csv(make.write(tmp_path) / "interactions.csv").assign(label=1, city="x").to_csv(index=False)
    assert len(make.read(make.write(tmp_path, text)).label) == 8
