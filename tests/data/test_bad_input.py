"""Bad inputs: each is refused with its own error, which names the place, and nothing is written anywhere."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedray import errors as e
from fedray.config import load_config, make_config
from fedray.data.dataset import load
from fedray.data.protocols import protocol
from tests.data.make import GOOD, write

FOLDER = {"source": "folder"}
ERROR = {**FOLDER, "duplicates": "error", "short_users": "error"}
GIVEN = {**FOLDER, "split": "given"}
ML = {"source": "movielens"}
ITEMS = [{"item": i} for i in range(4)]
FEATURES = np.ones((4, 3), np.float32)
RATED = "user,item,rating\n1,1,3\n1,2,{}\n1,3,4\n"
TEXT_IDS = GOOD.replace(",0,", ",a,").replace(",1,", ",b,").replace(",2,", ",c,").replace(",3,", ",d,")


def table(text, **more):
    return lambda folder: write(folder, text, **more)


def binary(name, body):
    return lambda folder: (folder / name).write_bytes(body)


def features(array, text=GOOD, items=None):
    return lambda folder: write(folder, text, items, image=array)


def with_file(name, body):
    """Good interactions and one more file."""

    def make(folder):
        file = write(folder) / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(body)

    return make


def one(value, where=(2, 1)):
    out = FEATURES.copy()
    out[where] = value
    return out


def parquet(**columns):
    return lambda folder: pd.DataFrame(columns).to_parquet(folder / "interactions.parquet")


DATA = [
    # columns
    ("user_missing", FOLDER, table("userid,item\n1,2\n"), e.MissingColumnError, "'userid'"),
    ("item_missing", FOLDER, table("user,thing\n1,2\n"), e.MissingColumnError, "The columns are user, thing"),
    ("semicolons", FOLDER, table("user;item\n1;2\n"), e.MissingColumnError, "user;item"),
    ("split_missing", GIVEN, table(GOOD), e.MissingColumnError, "'split'"),
    ("column_twice", FOLDER, table("user,item,item\n1,2,3\n"), e.FileFormatError, "'item' is given twice"),
    ("two_times", FOLDER, table("user,item,time,timestamp\n1,2,3,4\n"), e.FileFormatError, "'timestamp'"),
    ("items_without_item", FOLDER, table(GOOD, items=[{"id": 1}]), e.MissingColumnError, "items.jsonl"),
    # values
    ("nan_rating", FOLDER, table(RATED.format("nan")), e.BadRatingError, "interactions.csv, row 3: rating is missing"),
    ("no_rating", FOLDER, table(RATED.format("")), e.BadRatingError, "row 3"),
    ("infinite_rating", FOLDER, table(RATED.format("inf")), e.BadRatingError, "row 3: rating is inf"),
    ("text_rating", FOLDER, table(RATED.format("good")), e.BadRatingError, "row 3: rating is 'good'"),
    ("boolean_rating", FOLDER, table("user,item,rating\n1,1,true\n"), e.BadRatingError, "row 2: rating is True"),
    ("negative_user", FOLDER, table("user,item\n1,1\n-5,2\n"), e.BadIdError, "row 3: user id is -5"),
    ("negative_item", FOLDER, table("user,item\n1,1\n5,-2\n"), e.BadIdError, "row 3: item id is -2"),
    ("empty_user", FOLDER, table("user,item\n1,1\n\n,2\n"), e.BadIdError, "row 4: user id is empty"),
    ("blank_item", FOLDER, table("user,item\n1,  \n"), e.BadIdError, "row 2: item id is empty"),
    ("nan_id", FOLDER, table("user,item\na,b\nNaN,b\n"), e.BadIdError, "row 3: user id is empty"),
    ("nan_number_id", FOLDER, parquet(user=[1.0, np.nan], item=[1, 2]), e.BadIdError, "interactions.parquet, row 2"),
    ("fraction_id", FOLDER, parquet(user=[1.0, 2.5], item=[1, 2]), e.BadIdError, "row 2: user id is 2.5"),
    ("infinite_time", FOLDER, table("user,item,timestamp\n1,2,inf\n"), e.BadTimestampError, "row 2: timestamp is inf"),
    ("text_time", FOLDER, table("user,item,timestamp\n1,2,late\n"), e.BadTimestampError, "row 2: timestamp is 'late'"),
    ("huge_time", FOLDER, table("user,item,timestamp\n1,2,1e300\n"), e.BadTimestampError, "row 2"),
    ("bad_split", GIVEN, table("user,item,split\n1,2,train\n1,3,dev\n"), e.BadSplitError, "row 3: split is 'dev'"),
    ("no_split", GIVEN, table("user,item,split\n1,2,0\n1,3,\n"), e.BadSplitError, "row 3: split is missing"),
    ("no_validation", GIVEN, table("user,item,split\n1,2,0\n1,3,2\n"), e.BadSplitError, "no interaction is for valid"),
    # pairs and users
    ("pair_twice", ERROR, table(GOOD + "2,3,9\n"), e.DuplicatePairError, "row 10: user 2, item 3 is given again"),
    ("short_user", ERROR, table(GOOD + "7,1,9\n"), e.TooFewInteractionsError, "user 7 has 1 interactions"),
    ("all_short", FOLDER, table("user,item\n1,2\n2,2\n"), e.EmptyFileError, "none of 2 interactions"),
    ("all_short_kept", {**FOLDER, "short_users": "keep"}, table("user,item\n1,2\n"), e.BadSplitError, "for valid"),
    ("core_empty", {**FOLDER, "min_item_interactions": 3}, table(GOOD), e.EmptyFileError, "min_item_interactions"),
    # files
    ("no_interactions", FOLDER, binary("items.csv", b"item\n1\n"), e.MissingPathError, "interactions.csv"),
    ("no_folder", {**FOLDER, "path": "not/there"}, table(GOOD), e.MissingPathError, "'not/there'"),
    ("no_home", {**FOLDER, "path": "~nobody-of-that-name/x"}, table(GOOD), e.MissingPathError, "~nobody-of-that-name"),
    ("empty_file", FOLDER, table(""), e.EmptyFileError, "interactions.csv: the file is empty"),
    ("header_only", FOLDER, table("user,item\n"), e.EmptyFileError, "interactions.csv: there is no row"),
    ("latin1", FOLDER, binary("interactions.csv", b"user,item\n1,2\n1,caf\xe9\n"), e.EncodingError, "row 3: byte 0xe9"),
    ("utf16", FOLDER, binary("interactions.csv", GOOD.encode("utf-16")), e.EncodingError, "row 1: byte 0xff"),
    ("field_missing", FOLDER, table("user,item,rating\n1,2,3\n1,3\n"), e.FileFormatError, "row 3: 2 fields"),
    ("field_too_many", FOLDER, table("user,item\n1,2\n\n1,2,3\n"), e.FileFormatError, "row 4: 3 fields"),
    ("open_quote", FOLDER, table('user,item\n1,"2\n1,3\n'), e.BadIdError, "row 2: item id '2\\n1"),
    ("not_parquet", FOLDER, binary("interactions.parquet", GOOD.encode()), e.FileFormatError, "interactions.parquet"),
    ("csv_and_parquet", FOLDER, with_file("interactions.parquet", b"x"), e.FileFormatError, "are both there"),
    (
        "bad_json",
        FOLDER,
        with_file("items.jsonl", b'{"item": 1}\n{"item": \n'),
        e.FileFormatError,
        "items.jsonl, row 2",
    ),
    ("json_list", FOLDER, with_file("items.jsonl", b"[1]\n"), e.FileFormatError, "items.jsonl, row 1: holds list"),
    (
        "item_empty",
        FOLDER,
        with_file("items.jsonl", b'{"item": 1}\n\n{"title": ""}'),
        e.BadIdError,
        "items.jsonl, row 3",
    ),
    ("ratings_dat", ML, binary("ratings.dat", b"1::2::3::4\n1::2:3::4\n"), e.FileFormatError, "ratings.dat, row 2"),
    ("u_data", ML, binary("u.data", b"1\t2\t3\t4\n1\t2\t3\n"), e.FileFormatError, "u.data, row 2: 3 fields"),
    ("no_movielens", ML, table(GOOD), e.MissingPathError, "u.data"),
    # features
    ("rows_missing", FOLDER, features(FEATURES[:3]), e.FeatureShapeError, "image.npy: there are 3 rows"),
    ("rows_too_many", FOLDER, features(np.ones((5, 2)), GOOD, ITEMS), e.FeatureShapeError, "expected 4"),
    ("one_axis", FOLDER, features(np.ones(4)), e.FeatureShapeError, "(4,)"),
    ("no_axis", FOLDER, features(np.array(1.0)), e.FeatureShapeError, "()"),
    ("nan_feature", FOLDER, features(one(np.nan)), e.FeatureValueError, "image.npy: nan in row 2"),
    ("huge_feature", FOLDER, features(one(1.0).astype(float) * 1e300), e.FeatureValueError, "inf in row 0"),
    ("text_feature", FOLDER, features(np.full((4, 2), "x")), e.FeatureValueError, "<U1"),
    ("pickle", FOLDER, features(np.full((4, 2), None)), e.FileFormatError, "image.npy: not readable"),
    ("not_npy", FOLDER, with_file("features/text.npy", b"PK\x03\x04"), e.FileFormatError, "text.npy: not readable"),
    ("text_ids_alone", FOLDER, features(FEATURES, TEXT_IDS), e.FeatureShapeError, "item_ids.txt"),
]
WITH_IDS = [
    ("ids_missing", "0\n1\n2\n", "item_ids.txt: 3 ids; expected 4"),
    ("ids_twice", "0\n1\n2\n1\n", "item 1 has two rows"),
    ("ids_of_others", "a\nb\nc\nd\n", "none of the 4 rows"),
]


def make_ids(lines):
    def make(folder):
        write(folder, image=FEATURES)
        (folder / "features" / "item_ids.txt").write_text(lines)

    return make


DATA += [(name, FOLDER, make_ids(lines), e.FeatureShapeError, said) for name, lines, said in WITH_IDS]


def listing(folder: Path):
    return {p.relative_to(folder): (p.is_dir() or p.read_bytes()) for p in folder.rglob("*")}


@pytest.mark.parametrize("data, make, kind, said", [pytest.param(*row[1:], id=row[0]) for row in DATA])
def test_bad_data(tmp_path, monkeypatch, data, make, kind, said):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    before = listing(tmp_path)
    config = make_config({"data": {"path": str(tmp_path), **data}}).data
    with pytest.raises(e.FedrayError) as caught:
        load(config, protocol("clean"))
    assert type(caught.value) is kind, caught.value
    assert said in str(caught.value)
    assert caught.value.exit_code == 2
    assert listing(tmp_path) == before


# What stands in the YAML file, and what --set says.
CONFIG = [
    ("key", "train: {round: 3}", (), e.UnknownKeyError, "Did you mean 'rounds'?"),
    ("section", "trian: {rounds: 3}", (), e.UnknownKeyError, "Did you mean 'train'?"),
    ("source_key", "data: {source: synthetic, user: 3}", (), e.UnknownKeyError, "'data.user'"),
    ("foreign_key", "data: {source: folder, path: x, users: 3}", (), e.UnknownKeyError, "'data.users'"),
    ("text_for_number", "train: {rounds: many}", (), e.WrongTypeError, "train.rounds is 'many'"),
    ("fraction_for_number", "train: {rounds: 1.5}", (), e.WrongTypeError, "train.rounds is 1.5"),
    ("true_for_number", "train: {rounds: true}", (), e.WrongTypeError, "rounds is true"),
    ("list_for_section", "train: [1]", (), e.WrongTypeError, "train is [1]"),
    ("list_for_data", "data: [1]", (), e.WrongTypeError, "data is [1]"),
    ("zero_rounds", "train: {rounds: 0}", (), e.OutOfRangeError, "train.rounds is 0"),
    ("unknown_policy", "data: {short_users: hide}", (), e.OutOfRangeError, "'drop', 'keep' or 'error'"),
    ("infinite", "train: {weight_decay: .inf}", (), e.OutOfRangeError, "weight_decay is inf"),
    ("nan", "backbone: {lr: .nan}", (), e.OutOfRangeError, "lr is nan"),
    ("empty_path", "data: {source: folder, path: ''}", (), e.OutOfRangeError, "data.path is ''"),
    ("no_path", "data: {source: folder}", (), e.MissingKeyError, "data.path"),
    ("source", "data: {source: foldr}", (), e.UnknownNameError, "Did you mean 'folder'?"),
    ("helper_as_source", "data: {source: _tables}", (), e.UnknownNameError, "'_tables'"),
    ("backbone", "backbone: {name: fcff}", (), e.UnknownNameError, "Did you mean 'fcf'?"),
    ("plugin", "plugins: {dualpr: {}}", (), e.UnknownNameError, "Did you mean 'dualper'?"),
    ("twice", "seed: 1\nseed: 2", (), e.ConfigFileError, "'seed' is given twice"),
    ("alias", "data: &d {source: synthetic}\nbackbone: *d", (), e.ConfigFileError, "aliases"),
    ("sequence", "- 1", (), e.ConfigFileError, "holds list"),
    ("nothing", "", (), e.ConfigFileError, "holds NoneType"),
    ("not_yaml", "train: {rounds: ", (), e.ConfigFileError, "line"),
    ("set_without_value", "{}", ("train.rounds",), e.ConfigError, "--set 'train.rounds'"),
    ("set_below_a_value", "seed: 1", ("seed.x=2",), e.ConfigError, "seed is a value"),
    ("set_unknown", "{}", ("train.round=2",), e.UnknownKeyError, "Did you mean 'rounds'?"),
    ("set_not_yaml", "{}", ("train.rounds=[",), e.ConfigFileError, "--set train.rounds"),
]


@pytest.mark.parametrize("text, sets, kind, said", [pytest.param(*row[1:], id=row[0]) for row in CONFIG])
def test_bad_config(tmp_path, text, sets, kind, said):
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(e.FedrayError) as caught:
        load_config(file, list(sets))
    assert said in str(caught.value)
    assert type(caught.value) is kind, caught.value
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text(encoding="utf-8") == text


def test_a_configuration_that_is_not_utf8(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_bytes(b"name: caf\xe9")
    with pytest.raises(e.ConfigFileError, match=r"job\.yaml: not UTF-8 at byte 9"):
        load_config(file)


def test_a_configuration_that_is_not_there(tmp_path):
    (tmp_path / "job.yaml").write_text("{}")
    with pytest.raises(e.MissingPathError, match=r"Did you mean 'job\.yaml'"):
        load_config(tmp_path / "jobb.yaml")


def test_a_protocol_that_does_not_exist():
    with pytest.raises(e.UnknownNameError, match="Did you mean 'paper/pfedrec'"):
        protocol("paper/pfedrek")


def test_two_releases_of_movielens(tmp_path):
    for folder, file in (("ml-100k", "u.data"), ("ml-1m", "ratings.dat")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("x")
    config = make_config({"data": {"path": str(tmp_path), **ML}}).data
    with pytest.raises(e.FileFormatError, match="both there"):
        load(config, protocol("clean"))
