"""What encoders are fed, and what is said of items that cannot be fed to them."""

import hashlib

import pandas as pd
import pytest

from fedray.config import make_config
from fedray.embeddings.content import content_of, image_bytes, key_of, text_of
from fedray.encoders import Problem
from fedray.errors import MissingColumnError


def encoder(feature="text", **settings):
    return make_config({"encoders": {feature: {"name": "hashing", **settings}}}).encoders[feature]


def items(**columns):
    n = len(next(iter(columns.values())))
    return pd.DataFrame({"item": range(10, 10 + n), **columns})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("Heat", "A duel."), "Heat. A duel."),
        (("Heat", None), "Heat"),
        ((None, float("nan"), pd.NA, "x"), "x"),
        (("Heat", ["Crime", "Drama"]), "Heat. Crime, Drama"),
        (("Heat", 1995), "Heat. 1995"),
        (("Heat", []), "Heat"),
        (("  Heat ", "  "), "Heat"),
        (("東京物語",), "東京物語"),
    ],
)
def test_fields_become_one_text(values, expected):
    assert text_of(values) == expected


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((None, float("nan")), "no_text"),
        (("", None), "empty_text"),
        (("  \n\t",), "empty_text"),
        (({"en": "Heat"},), "wrong_type"),
        ((True,), "wrong_type"),
        (("Heat", ["a", {"b": 1}]), "wrong_type"),
        (("caf\ufffd",), "not_utf8"),
        (("half \ud83d",), "not_utf8"),
    ],
)
def test_what_is_no_text_has_a_name(values, kind):
    assert text_of(values).kind == kind


def test_the_key_is_the_sha256_of_what_is_encoded_prompt_included():
    content = content_of(encoder(prompt="a film called {}"), items(title=["Heat", "Ran"]))
    assert content.keys[0] == hashlib.sha256(b"a film called Heat").digest()
    assert content.raw(1) == "a film called Ran"
    assert content.ids == ("10", "11")


def test_equal_contents_have_one_key_and_a_changed_one_another():
    content = content_of(encoder(), items(title=["Heat", "Heat", "Heat 2"]))
    assert list(content.distinct().values()) == [0, 2]


def test_title_and_description_are_the_default_and_other_fields_are_named():
    table = items(title=["a"], description=["b"], plot=["c"])
    assert content_of(encoder(), table).raw(0) == "a. b"
    assert content_of(encoder(fields=["plot", "title"]), table).raw(0) == "c. a"
    with pytest.raises(MissingColumnError, match="no column 'plott'.*Did you mean 'plot'"):
        content_of(encoder(fields=["plott"]), table)
    with pytest.raises(MissingColumnError, match="have none of"):
        content_of(encoder(), items(plot=["c"]))


def test_images_are_read_by_path_and_every_way_of_not_being_there_has_a_name(tmp_path):
    good, empty, folder = tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"
    good.write_bytes(b"jpeg")
    empty.write_bytes(b"")
    folder.mkdir()
    assert image_bytes(str(good)) == b"jpeg"
    found = [image_bytes(v) for v in (str(empty), str(folder), str(tmp_path / "d.jpg"), None, "", 7, "a\0b")]
    kinds = ["empty_file", "unreadable", "no_image", "no_image", "no_image", "wrong_type", "unreadable"]
    assert [p.kind for p in found] == kinds


def test_a_catalogue_without_pictures_has_none(tmp_path):
    content = content_of(encoder("image"), items(title=["a", "b"]))
    assert content.keys == (None, None)
    assert content.problems == (Problem("no_image", "the catalogue names none"),) * 2


def test_a_source_may_draw_its_pictures():
    content = content_of(encoder("image"), items(title=["a", "b"]), picture=lambda row: f"{row['item']}".encode())
    assert content.keys == (key_of(b"10"), key_of(b"11"))
