"""The folders of FedVLR, GFMFR and MMRec: read as published, equal to the same data in a user's folder."""

import numpy as np
import pytest

from fedray import errors as e
from fedray.config import make_config
from fedray.data.dataset import load
from fedray.data.protocols import protocol
from fedray.types import TEST, TRAIN, VALID
from tests.data import make

LABELS = (0, 0, 1, 2)
ROWS = [(u, i, 1.0, 100 * u + i, LABELS[i]) for u in (0, 1) for i in range(4)]
UNLABELLED = [row[:4] for row in ROWS]
FEDVLR = ("userID", "itemID", "rating", "timestamp", "split_label")
GFMFR = ("userId", "itemId", "rating", "timestamp")
MMREC = ("userID", "itemID", "rating", "timestamp", "x_label")
RECBOLE = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
IMAGE = (np.arange(8, dtype=np.float16) / 3).reshape(4, 2)
TEXT = np.arange(12, dtype=np.float32).reshape(4, 3)


def text(header, rows, comma=","):
    return "".join(comma.join(map(str, row)) + "\n" for row in [header, *rows])


def fedvlr(folder, body=None, **features):
    (folder / "inter.csv").write_text(text(FEDVLR, ROWS) if body is None else body)
    for modality, table in features.items():
        np.save(folder / f"{modality}_features.npy", table)
    return folder


def mmrec(folder, body=None, **features):
    (folder / "baby.inter").write_text(text(MMREC, ROWS, "\t") if body is None else body)
    for modality, table in features.items():
        np.save(folder / f"{modality}_feat.npy", table)
    return folder


WRITE = {"fedvlr": fedvlr, "mmrec": mmrec}
SUFFIX = {"fedvlr": "features", "mmrec": "feat"}
COMMA = {"fedvlr": ",", "mmrec": "\t"}
HEADER = {"fedvlr": FEDVLR, "mmrec": MMREC}
FILE = {"fedvlr": "inter.csv", "mmrec": "baby.inter"}
both = pytest.mark.parametrize("source", WRITE)


def read(folder, source, rules="paper/pfedrec", **data):
    config = make_config({"data": {"source": source, "path": str(folder), **data}}).data
    return load(config, protocol(rules))


def parts(data):
    return [int((data.label == part).sum()) for part in (TRAIN, VALID, TEST)]


def as_folder(folder, body=None, **features):
    """The same rows in the form that `source: folder` reads."""
    folder.mkdir()
    header = ("user", "item", "rating", "timestamp", "split")
    return make.read(make.write(folder, text(header, ROWS) if body is None else body, **features), split="given")


def same(a, b):
    assert a.fingerprint == b.fingerprint
    assert np.array_equal(a.interactions.time, b.interactions.time)
    assert a.features.fingerprint == b.features.fingerprint
    assert a.counts == b.counts


# What is read


@both
def test_the_same_as_in_a_folder_of_ones_own(tmp_path, source):
    data = read(WRITE[source](tmp_path, image=IMAGE, text=TEXT), source)
    same(data, as_folder(tmp_path / "own", image=IMAGE, text=TEXT))
    assert parts(data) == [4, 2, 2]
    assert (make.rows_of(data, VALID), make.rows_of(data, TEST)) == ({"0": ["2"], "1": ["2"]}, {"0": ["3"], "1": ["3"]})


def test_the_name_is_that_of_the_folder_or_of_the_file(tmp_path):
    (tmp_path / "KU").mkdir()
    assert read(fedvlr(tmp_path / "KU"), "fedvlr").name == "KU"
    assert read(mmrec(tmp_path), "mmrec").name == "baby"
    assert read(tmp_path, "mmrec", name="mine").name == "mine"


@both
def test_half_precision_is_widened_exactly(tmp_path, source):
    table = read(WRITE[source](tmp_path, image=IMAGE), source).features.tables["image"]
    assert table.dtype == np.float32
    assert (table.astype(np.float16) == IMAGE).all() and (table == IMAGE.astype(np.float32)).all()


@both
def test_features_are_optional_and_of_any_modality(tmp_path, source):
    assert read(WRITE[source](tmp_path), source).features is None
    features = read(WRITE[source](tmp_path, text=TEXT, audio=IMAGE), source).features
    assert {m: t.shape for m, t in features.tables.items()} == {"audio": (4, 2), "text": (4, 3)}
    assert features.tables["text"].tolist() == TEXT.tolist()


@both
def test_more_rows_than_items_are_allowed_where_nobody_lists_the_items(tmp_path, source):
    table = read(WRITE[source](tmp_path, image=np.vstack([IMAGE, IMAGE])), source).features.tables["image"]
    assert table.tolist() == IMAGE.astype(np.float32).tolist()


@both
def test_what_is_not_wanted_is_never_opened(tmp_path, source):
    WRITE[source](tmp_path, image=IMAGE)
    np.save(tmp_path / "user_graph_dict.npy", np.array({"a": 1}, object), allow_pickle=True)
    for name in ("similarity.npy", "u_id_mapping.csv", f"._image_{SUFFIX[source]}.npy", "._baby.inter"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert set(read(tmp_path, source).features.tables) == {"image"}


@both
@pytest.mark.parametrize("comma", [",", "\t"])
def test_original_ids_stay_text_and_become_a_column_of_the_items(tmp_path, source, comma):
    ids = [("0000031852", 1), ("B00X", 0), ('7"', 3), ("1881509818", 2), ("never bought", 4)]
    (tmp_path / "i_id_mapping.csv").write_text(text(("asin", "itemID"), ids, comma))
    data = read(WRITE[source](tmp_path, image=np.vstack([IMAGE, IMAGE[:1]])), source)
    assert data.items["item"].tolist() == [0, 1, 2, 3]
    assert data.items["original_id"].tolist() == ["B00X", "0000031852", "1881509818", '7"']
    assert data.counts["items_without_interactions"] == 1


@both
def test_of_two_item_columns_in_a_mapping_the_second_is_the_number(tmp_path, source):
    body = text(("item_id", "itemID", "note"), [(90 + i, i, "x") for i in range(4)])
    (tmp_path / "i_id_mapping.csv").write_text(body)
    items = read(WRITE[source](tmp_path), source).items
    assert items["original_id"].tolist() == ["90", "91", "92", "93"] and list(items) == ["item", "original_id"]


@both
def test_duplicates_are_cleaned_as_everywhere_and_counted(tmp_path, source):
    rows = [*ROWS, ROWS[0], (1, 1, 1.0, 999, 0)]
    data = read(WRITE[source](tmp_path, text(HEADER[source], rows, COMMA[source])), source)
    assert data.counts["duplicates_dropped"] == 2 and parts(data) == [4, 2, 2]
    assert 999 in data.interactions.time.tolist()
    with pytest.raises(e.DuplicatePairError, match="row 10"):
        read(tmp_path, source, duplicates="error")


@both
@pytest.mark.parametrize("header", [GFMFR, RECBOLE, ("USERID", "item_id", " Rating ", "timestamp:float")])
def test_other_spellings_without_labels(tmp_path, source, header):
    WRITE[source](tmp_path, text(header, UNLABELLED, COMMA[source]))
    data = read(tmp_path, source, split="leave_one_out")
    assert parts(data) == [4, 2, 2] and data.interactions.time.tolist() == [r[3] for r in ROWS]
    with pytest.raises(e.MissingColumnError) as caught:
        read(tmp_path, source)
    assert f"no column {HEADER[source][-1]!r}" in str(caught.value)
    assert "Set data.split: leave_one_out" in caught.value.mend and header[0] in caught.value.mend


@both
def test_the_files_labels_can_be_left_aside(tmp_path, source):
    rows = [(u, i, r, t, 2 - s) for u, i, r, t, s in ROWS]
    WRITE[source](tmp_path, text(HEADER[source], rows, COMMA[source]))
    assert make.rows_of(read(tmp_path, source), TEST) == {"0": ["0", "1"], "1": ["0", "1"]}
    assert make.rows_of(read(tmp_path, source, split="leave_one_out"), TEST) == {"0": ["3"], "1": ["3"]}


def test_columns_in_any_order_more_of_them_quotes_and_a_byte_order_mark(tmp_path):
    rows = [(s, "x,y", i, u, t) for u, i, _, t, s in ROWS]
    body = text(("split_label", "time", "itemID", "userID", "timestamp"), [])
    body += "".join(f'{s},"{x}",{i},{u},{t}\r\n' for s, x, i, u, t in rows)
    fedvlr(tmp_path, "\ufeff" + body.replace("userID", '"userID"').replace("\n", "\r\n", 1))
    assert parts(read(tmp_path, "fedvlr")) == [4, 2, 2]


def test_quotes_in_tokens_of_recbole_are_kept(tmp_path):
    rows = [(f'u"{u}', f"00{i}", r, t) for u, i, r, t in UNLABELLED]
    data = read(mmrec(tmp_path, text(RECBOLE, rows, "\t")), "mmrec", split="leave_one_out")
    assert data.interactions.user_ids.tolist() == ['u"0', 'u"1']
    assert data.interactions.item_ids.tolist() == ["000", "001", "002", "003"]


# What is refused


def table(body, **features):
    return lambda folder, source: WRITE[source](folder, body.replace(",", COMMA[source]), **features)


def good(**features):
    return lambda folder, source: WRITE[source](folder, None, **features)


def beside(name, body):
    """Good interactions and one more file; FEAT stands for the ending of features."""

    def write(folder, source):
        WRITE[source](folder)
        (folder / name.replace("FEAT", SUFFIX[source])).write_bytes(body)

    return write


def pickled(folder, source):
    np.save(WRITE[source](folder) / f"image_{SUFFIX[source]}.npy", np.full((4, 2), None), allow_pickle=True)


TEXT_IDS = "userID,itemID,x_label\n1,a,0\n1,b,1\n1,c,2\n"
BAD = [
    ("empty", table(""), e.EmptyFileError, "FILE: the file is empty"),
    ("header_only", table(text(FEDVLR, [])), e.EmptyFileError, "FILE: there is no row"),
    ("no_user", table("user,itemID,x_label\n1,2,0\n"), e.MissingColumnError, "FILE: there is no column 'userID'"),
    ("no_item", table("userID,asin,x_label\n1,2,0\n"), e.MissingColumnError, "The columns are userID, asin, x_label"),
    ("user_twice", table("userID,user_id,itemID\n1,1,2\n"), e.FileFormatError, "'userID' and 'user_id' are both there"),
    ("two_labels", table("userID,itemID,x_label,split_label\n1,1,0,0\n"), e.FileFormatError, "'split_label' are both"),
    ("same_twice", table("userID,userID,itemID\n1,1,2\n"), e.FileFormatError, "both there"),
    ("field_missing", table(text(FEDVLR, [*ROWS, (1, 2)])), e.FileFormatError, "FILE, row 10: 2 fields"),
    ("label", table(text(FEDVLR, [*ROWS, (1, 5, 1.0, 3, 3)])), e.BadSplitError, "FILE, row 10: split is 3"),
    ("minus_label", table(text(FEDVLR, [*ROWS, (1, 5, 1.0, 3, -1)])), e.BadSplitError, "row 10: split is -1"),
    ("no_label", table(text(FEDVLR, [*ROWS, (1, 5, 1.0, 3, "")])), e.BadSplitError, "row 10: split is missing"),
    ("all_train", table("userID,itemID,x_label\n1,2,0\n"), e.BadSplitError, "no interaction is for valid"),
    ("rating", table(text(FEDVLR, [*ROWS, (1, 5, "nan", 3, 0)])), e.BadRatingError, "FILE, row 10: rating"),
    ("negative_item", table(text(FEDVLR, [*ROWS, (1, -5, 1.0, 3, 0)])), e.BadIdError, "FILE, row 10: item id is -5"),
    ("vector", good(image=TEXT[:, 0]), e.FeatureShapeError, "image_FEAT.npy: the shape is (4,)"),
    ("cube", good(image=TEXT[None]), e.FeatureShapeError, "image_FEAT.npy: the shape is (1, 4, 3)"),
    ("few_rows", good(text=TEXT[:3]), e.FeatureShapeError, "text_FEAT.npy: there are 3 rows; expected at least 4"),
    ("text_ids", table(TEXT_IDS, image=TEXT), e.FeatureShapeError, "Row r is item id r"),
    ("nan", good(text=np.where(TEXT == 7, np.nan, TEXT)), e.FeatureValueError, "text_FEAT.npy: nan in row 2"),
    ("pickle", pickled, e.FileFormatError, "image_FEAT.npy: not readable: Object arrays cannot be loaded"),
    ("not_npy", beside("text_FEAT.npy", b"PK\x03\x04"), e.FileFormatError, "text_FEAT.npy: not readable"),
    ("mapping_empty", beside("i_id_mapping.csv", b""), e.EmptyFileError, "i_id_mapping.csv: the file is empty"),
    ("mapping_column", beside("i_id_mapping.csv", b"asin,id\nB0,1\n"), e.MissingColumnError, "are asin, id"),
    ("mapping_alone", beside("i_id_mapping.csv", b"itemID\n1\n"), e.MissingColumnError, "beside another"),
    ("mapping_id", beside("i_id_mapping.csv", b"asin,itemID\nB0,-1\n"), e.BadIdError, "mapping.csv, row 2: item id is"),
    ("latin1", beside("i_id_mapping.csv", b"asin,itemID\ncaf\xe9,1\n"), e.EncodingError, "row 2: byte 0xe9"),
]


@both
@pytest.mark.parametrize("write, kind, said", [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_bad_data(tmp_path, source, write, kind, said):
    write(tmp_path, source)
    with pytest.raises(e.FedrayError) as caught:
        read(tmp_path, source, "clean")
    assert type(caught.value) is kind, caught.value
    assert said.replace("FEAT", SUFFIX[source]).replace("FILE", FILE[source]) in str(caught.value)
    assert caught.value.exit_code == 2


@both
def test_a_feature_row_too_many_for_a_list_of_items(tmp_path, source):
    (tmp_path / "i_id_mapping.csv").write_text(text(("asin", "itemID"), [(f"B{i}", i) for i in range(4)]))
    WRITE[source](tmp_path, image=np.vstack([IMAGE, IMAGE]))
    with pytest.raises(e.FeatureShapeError, match="there are 8 rows; expected 4, for the item ids 0 to 3"):
        read(tmp_path, source)


@pytest.mark.parametrize("source, name", [("fedvlr", r"inter\.csv"), ("mmrec", r"\.inter file")])
def test_a_folder_without_interactions(tmp_path, source, name):
    np.save(tmp_path / f"image_{SUFFIX[source]}.npy", IMAGE)
    with pytest.raises(e.MissingPathError, match=f"holds no {name}.*data.source: folder"):
        read(tmp_path, source)
    with pytest.raises(e.MissingPathError, match="'not/there' does not exist"):
        read("not/there", source)


def test_two_inter_files(tmp_path):
    (mmrec(tmp_path) / "sports.inter").write_text("x")
    with pytest.raises(e.FileFormatError, match=r"baby\.inter and sports\.inter are both there"):
        read(tmp_path, "mmrec")


# The real set


@pytest.fixture
def ku(real_data, tmp_path):
    """KU as its authors ship it, made anew from the renamed copy."""
    kept = real_data("ku")
    rows = (kept / "interactions.csv").read_text().partition("\n")[2]
    (tmp_path / "inter.csv").write_text(",".join(FEDVLR) + "\n" + rows)
    for modality in ("image", "text"):
        (tmp_path / f"{modality}_features.npy").write_bytes((kept / "features" / f"{modality}.npy").read_bytes())
    ids = [line.split(",")[::-1] for line in (kept / "items.csv").read_text().split()[1:]]
    (tmp_path / "i_id_mapping.csv").write_text(text(("asin", "itemID"), ids))
    return tmp_path


@pytest.mark.data
@pytest.mark.parametrize("rules", ["clean", "paper/pfedrec"])
def test_ku_as_published_is_the_ku_of_the_folder_source(real_data, ku, rules):
    data, own = read(ku, "fedvlr", rules), make.read(real_data("ku"), rules, split="given")
    same(data, own)
    assert all(np.array_equal(data.features.tables[m], own.features.tables[m]) for m in ("image", "text"))
    assert (data.interactions.n_users, data.interactions.n_items) == (204, 560)
    assert data.counts["duplicates_dropped"] == 5 and parts(data) == [3076, 204, 204]
    assert data.items["original_id"].astype(int).tolist() == own.items["ninerec_item"].astype(int).tolist()


@pytest.mark.data
def test_ku_in_the_form_of_mmrec(ku):
    data = read(ku, "fedvlr", "clean")
    body = (ku / "inter.csv").read_text().replace(",", "\t").replace("split_label", "x_label")
    (ku / "ku.inter").write_text(body)
    for file in ku.glob("*_features.npy"):
        file.rename(ku / file.name.replace("_features", "_feat"))
    same(read(ku, "mmrec", "clean"), data)
