"""What the sources read: MovieLens' own files, a user's folder, the synthetic catalogue."""

import time

import numpy as np
import pandas as pd
import pytest

from fedray.config import make_config
from fedray.data.dataset import client_data, load
from fedray.data.negatives import candidates
from fedray.data.protocols import protocol
from fedray.data.sources import synthetic
from fedray.data.sources.movielens import GENRES
from fedray.evaluation.controls import controls
from fedray.types import TEST, VALID
from tests.data import make

FLAGS = dict.fromkeys(GENRES, 0)


def of(rules="paper/pfedrec", **data):
    return load(make_config({"data": data}).data, protocol(rules))


# movielens


def u_item(item, title, *genres):
    flags = [str(v) for v in {**FLAGS, **dict.fromkeys(genres, 1)}.values()]
    return "|".join([str(item), title, "01-Jan-1995", "", "http://x", *flags])


@pytest.fixture
def ml100k(tmp_path):
    rows = [(2, 7, 3, 30), (2, 5, 4, 20), (2, 9, 1, 10), (1, 5, 5, 7), (1, 7, 5, 8), (1, 9, 2, 8)]
    (tmp_path / "u.data").write_text("".join("\t".join(map(str, r)) + "\n" for r in rows))
    films = [
        u_item(5, 'Miséricorde, "La" (1994)', "Drama", "War"),
        u_item(7, "unknown"),
        u_item(9, "Café", "Film-Noir"),
    ]
    (tmp_path / "u.item").write_bytes("\n".join([*films, u_item(77, "never rated")]).encode("latin-1"))
    return tmp_path


def test_movielens_100k(ml100k):
    data = of(source="movielens", path=str(ml100k))
    assert data.name == "ml100k"
    assert data.interactions.user_ids.tolist() == [1, 2]
    assert data.items["item"].tolist() == [5, 7, 9]
    assert data.items["title"].tolist() == ['Miséricorde, "La" (1994)', "unknown", "Café"]
    assert data.items["genres"].tolist() == [["Drama", "War"], [], ["Film-Noir"]]
    assert data.counts["items_without_interactions"] == 1
    assert make.rows_of(data, TEST) == {"2": ["7"], "1": ["7"]}  # user 1: equal times, 7 stands first
    assert make.rows_of(data, VALID) == {"2": ["5"], "1": ["9"]}


def test_movielens_1m_from_the_folder_above(tmp_path):
    (tmp_path / "ml-1m").mkdir()
    rows = [(1, 10, 5, 3), (1, 20, 5, 2), (1, 30, 5, 1)]
    (tmp_path / "ml-1m" / "ratings.dat").write_text("".join("::".join(map(str, r)) + "\n" for r in rows))
    films = "10::Léon: The Professional (1994)::Crime|Drama\r\n20::B|C (1990)::Comedy\r\n"
    (tmp_path / "ml-1m" / "movies.dat").write_bytes(films.encode("latin-1"))
    data = of(source="movielens", path=str(tmp_path))
    assert data.name == "ml1m"
    assert data.items["title"].tolist()[:2] == ["Léon: The Professional (1994)", "B|C (1990)"]
    assert data.items["genres"].tolist()[:2] == [["Crime", "Drama"], ["Comedy"]]
    assert pd.isna(data.items["title"][2])  # film 30 is rated and not listed
    assert make.rows_of(data, TEST) == {"1": ["10"]}


def test_movielens_without_films(ml100k):
    (ml100k / "u.item").unlink()
    assert list(of(source="movielens", path=str(ml100k)).items) == ["item"]


# folder


def test_csv_and_parquet_give_the_same(tmp_path):
    from_csv = make.read(make.write(tmp_path))
    pd.read_csv(tmp_path / "interactions.csv").set_index("user").to_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "interactions.csv").unlink()
    assert make.read(tmp_path).fingerprint == from_csv.fingerprint


def test_text_ids_byte_order_mark_quotes_and_crlf(tmp_path):
    text = '\ufeffitem,user,timestamp,note\r\n"a, b",Zoë,3,\r\n\r\n"say ""x""",Zoë,2,"two\nlines"\r\nc,Zoë,1,\r\n'
    (tmp_path / "interactions.csv").write_bytes(text.encode())
    data = make.read(tmp_path)
    assert data.interactions.user_ids.tolist() == ["Zoë"]
    assert data.interactions.item_ids.tolist() == ["a, b", "c", 'say "x"']
    assert make.rows_of(data, TEST) == {"Zoë": ["a, b"]}


@pytest.mark.parametrize(
    "times", [("2020-01-03", "2020-01-02", ""), ("2020-01-02 10:00:00", "2020-01-02 09:00:00", "")]
)
def test_dates_are_times(tmp_path, times):
    text = "user,item,timestamp\n" + "".join(f"1,{i},{t}\n" for i, t in enumerate(times))
    data = make.read(make.write(tmp_path, text))
    assert (make.rows_of(data, TEST), make.rows_of(data, VALID)) == ({"1": ["0"]}, {"1": ["1"]})
    assert data.counts["rows_without_time"] == 1


def test_a_column_may_change_its_look_late_in_a_large_file(tmp_path):
    rows = [f"{n % 400},{n // 400},{3 if n < 199_000 else 3.5}" for n in range(200_000)]
    make.write(tmp_path, "user,item,rating\n" + "\n".join(rows))
    assert (tmp_path / "interactions.csv").stat().st_size > 1 << 20
    assert len(make.read(tmp_path).label) == 200_000


def test_a_row_may_be_longer_than_a_megabyte(tmp_path):
    make.write(tmp_path)
    (tmp_path / "items.csv").write_text("item,plot\n0," + "x" * (3 << 20) + "\n1,short\n")
    assert make.read(tmp_path).items["plot"].str.len().tolist()[:2] == [3 << 20, 5]


def test_images_beside_a_list_of_items(tmp_path):
    make.write(tmp_path, items=[{"item": 0, "title": "A"}, {"item": 1, "title": "B"}])
    (tmp_path / "images").mkdir()
    for name in ("0.jpg", "2.PNG", "3.txt"):
        (tmp_path / "images" / name).write_bytes(b"x")
    items = make.read(tmp_path).items
    assert items["title"].tolist()[:2] == ["A", "B"]
    assert items["image"].notna().tolist() == [True, False, True, False]  # 2 is not in the list
    assert items["image"][0] == str(tmp_path / "images" / "0.jpg")


def test_images_alone_make_an_items_table(tmp_path):
    (make.write(tmp_path) / "images").mkdir()
    (tmp_path / "images" / "1.jpeg").write_bytes(b"x")
    assert make.read(tmp_path).items["image"].notna().tolist() == [False, True, False, False]


# synthetic


def test_the_synthetic_default_is_quick_and_follows_its_seed():
    started = time.perf_counter()
    first = of(source="synthetic")
    assert time.perf_counter() - started < 3
    again, other = of(source="synthetic"), of(source="synthetic", seed=1)
    assert (first.fingerprint, first.features.fingerprint) == (again.fingerprint, again.features.fingerprint)
    assert first.items.equals(again.items)
    assert first.fingerprint != other.fingerprint
    assert first.features.fingerprint != other.features.fingerprint
    assert first.interactions.n_users == 400
    assert (
        first.counts["users_dropped"] == first.counts["short_users_dropped"] == first.counts["rows_without_time"] == 0
    )
    assert {m: t.shape[1] for m, t in first.features.tables.items()} == {"image": 32, "text": 64}
    assert all(p.all() for p in first.features.present.values())


def test_on_synthetic_data_collaboration_beats_popularity_and_popularity_chance():
    data, rules = of("clean", source="synthetic"), protocol("clean")
    clients = client_data(data)
    scores = controls(data, clients, rules, (10,), candidates(0, clients), None)
    random, popularity, ease = (scores[c]["test"]["ndcg_at_10"] for c in ("random", "popularity", "ease"))
    assert popularity > 2 * random
    assert ease > 1.5 * popularity


def test_posters_differ_by_style_and_are_the_same_each_time():
    row = {"item": 3, "style": "ember disc"}
    first = synthetic.poster(row)
    assert (first.size, first.mode) == ((64, 96), "RGB")
    assert first.tobytes() == synthetic.poster(pd.Series(row)).tobytes()
    mean = {
        style: np.mean([np.asarray(synthetic.poster({"item": i, "style": style}), float) for i in range(20)], axis=0)
        for style in ("ember disc", "lagoon disc", "ember checks")
    }
    within = np.abs(np.asarray(first, float) - mean["ember disc"]).mean()
    assert np.abs(mean["ember disc"] - mean["lagoon disc"]).mean() > within  # another palette
    assert np.abs(mean["ember disc"] - mean["ember checks"]).mean() > 10  # another shape


def test_a_synthetic_catalogue_of_extreme_settings():
    for more in ({"groups": 1}, {"hidden_dims": 0}, {"users": 2, "items": 20, "interactions": 1000}, {"groups": 64}):
        data = of(source="synthetic", **{"users": 30, "items": 40, **more})
        assert np.bincount(data.interactions.user).min() >= 5
