"""The real sets: the published sizes, the split they are meant to have, and quick to load."""

import time

import numpy as np
import pandas as pd
import pytest

from fedray.data.dataset import client_data
from fedray.types import TEST, TRAIN, VALID
from tests.data import make

pytestmark = pytest.mark.data


def sizes(data):
    return data.interactions.n_users, data.interactions.n_items, len(data.label)


def parts(data):
    return [int((data.label == part).sum()) for part in (TRAIN, VALID, TEST)]


def test_movielens_100k(real_data):
    data = make.read(real_data("ml-100k"), "clean")
    assert sizes(data) == (943, 1682, 100_000)
    assert parts(data) == [100_000 - 2 * 943, 943, 943]
    assert data.items["image"].notna().sum() == 1667
    assert data.items["plot_short"].notna().sum() == 1671
    clients = client_data(data)
    assert (clients.test.lengths() == 1).all() and clients.train.lengths().min() == 18


def test_the_ranks_are_those_of_the_authors_loader(real_data):
    """PFedRec's data.py: groupby('userId')['timestamp'].rank(method='first', ascending=False), 1 test, 2 valid."""
    for name in ("ml-100k", "amazon-video"):
        data = make.read(real_data(name))
        frame = pd.DataFrame({"user": data.interactions.user, "time": data.interactions.time})
        rank = frame.groupby("user")["time"].rank(method="first", ascending=False).to_numpy()
        assert np.array_equal(data.label, np.select([rank == 1, rank == 2], [TEST, VALID], TRAIN))


def test_movielens_1m_tests_on_exactly_the_rows_with_a_time(real_data):
    folder = real_data("ml-1m")
    started = time.perf_counter()
    data = make.read(folder, "clean")
    clients = client_data(data)
    assert time.perf_counter() - started < 10
    assert sizes(data) == (6040, 3706, 1_000_209)
    assert parts(data) == [1_000_209 - 2 * 6040, 6040, 6040]
    raw = pd.read_parquet(folder / "interactions.parquet")
    assert np.array_equal(data.label == TEST, raw["timestamp"].notna().to_numpy())
    assert data.counts["rows_without_time"] == 1_000_209 - 6040
    assert data.counts["items_without_interactions"] == 177
    assert (clients.valid.lengths() == 1).all()


def test_movielens_1m_validation_items_are_drawn_evenly(real_data):
    """Place of the validation item among the user's other rows: uniform, mean 0.5."""
    data = make.read(real_data("ml-1m"))
    rest = np.flatnonzero(data.label != TEST)
    user = data.interactions.user[rest]
    place = pd.Series(user).groupby(user).cumcount().to_numpy() / np.bincount(user)[user]
    drawn = place[data.label[rest] == VALID]
    assert drawn.mean() == pytest.approx(0.5, abs=4 * 0.29 / np.sqrt(6040))


def test_amazon_video(real_data):
    data = make.read(real_data("amazon-video"))
    assert sizes(data) == (8072, 11_830, 63_836)
    assert parts(data)[1:] == [8072, 8072]
    assert all(isinstance(i, str) for i in data.interactions.item_ids[:5])


def test_ku_with_its_own_split_and_features(real_data):
    data = make.read(real_data("ku"), "clean", split="given")
    assert sizes(data) == (204, 560, 3484)
    assert data.counts["duplicates_dropped"] == 5
    assert parts(data) == [3081 - 5, 204, 204]  # all five second copies are training rows
    raw = np.load(real_data("ku") / "features" / "image.npy")
    assert raw.dtype == np.float16
    table = data.features.tables["image"]
    assert (table == raw.astype(np.float32)[data.interactions.item_ids]).all()
    assert set(data.features.tables) == {"image", "text"} and table.dtype == np.float32
    assert np.allclose(np.linalg.norm(table, axis=1), 1, atol=1e-2)


def test_the_split_of_ku_is_leave_one_out_by_time(real_data):
    given, by_time = (make.read(real_data("ku"), split=s) for s in ("given", "leave_one_out"))
    assert (given.label == by_time.label).mean() > 0.98
