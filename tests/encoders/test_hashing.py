"""The encoder without weights: its numbers as its docstring says, since stores keep them."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from fedray.encoders import Problem, hashing
from tests.encoders.models import file_of, noise, picture


def encoder(input, dim=256):
    return hashing.make(hashing.Config(input=input, dim=dim), "cpu", 10_000_000)


def text(words, dim=256):
    return encoder("text", dim).prepare(words)


def image(picture, dim=256):
    return encoder("image", dim).prepare(picture if isinstance(picture, bytes) else file_of(picture, "PNG"))


def test_a_word_has_its_place_and_sign():
    row = text("Toy STORY, toy")
    expected = np.zeros(256)
    for word, weight in (("toy", 1 + np.log(2)), ("story", 1.0)):
        code = zlib.crc32(word.encode())
        expected[(code & 0x7FFFFFFF) % 256] += weight if code >> 31 else -weight
    assert np.allclose(row, expected / np.linalg.norm(expected), atol=1e-7)
    assert row.dtype == np.float32


def test_order_case_and_punctuation_do_not_matter():
    assert np.array_equal(text("The old man -- and the sea!"), text("sea the AND old the_man"))
    assert not np.array_equal(text("the old man"), text("the old woman"))


def test_words_of_every_script():
    rows = [text(t) for t in ("Всё о войне", "夜の星", "película única", "٣ نجوم", "1984")]
    assert all(np.isclose(np.linalg.norm(row), 1) for row in rows)
    assert np.array_equal(text("ПЕЛИКУЛА"), text("пеликула"))


@pytest.mark.parametrize("words", ["...", "_", "\N{FIRE}", " - "])
def test_a_text_without_a_word(words):
    assert text(words).kind == "empty_text"


def test_words_that_cancel_out_still_give_a_row():
    """With two entries, of two words at random one pair in four has one entry and opposite signs."""
    rows = [text(f"w{a} w{b}", dim=2) for a in range(12) for b in range(a)]
    assert np.allclose([np.linalg.norm(row) for row in rows], 1)


def test_alike_pictures_are_near_and_others_far():
    base = noise(0, (200, 150))
    smaller = image(base.resize((100, 75)))
    jpeg = image(file_of(base, "JPEG", quality=80))
    others = [image(noise(seed)) for seed in range(1, 9)]
    assert min(image(base) @ smaller, image(base) @ jpeg) > 0.98
    assert max(image(base) @ other for other in others) < 0.95


def test_the_places_of_colours_count():
    left = Image.new("RGB", (64, 64), "red")
    left.paste("blue", (32, 0, 64, 64))
    right = left.rotate(180)
    assert np.allclose(image(left)[:64], image(right)[:64])
    assert not np.allclose(image(left)[64:], image(right)[64:])


def test_numbers_of_one_picture():
    """One colour: one cell of the cube holds all, and every field of the grid its red, green and blue."""
    row = image(Image.new("RGB", (7, 9), (255, 0, 51)))
    expected = np.zeros(256)
    expected[3 * 16] = 1
    expected[64:] = np.tile([1, 0, 0.2], 64) / np.sqrt(192)
    assert np.allclose(row, expected / np.linalg.norm(expected), atol=1e-7)


@pytest.mark.parametrize("dim", [2, 3, 100, 256, 300])
def test_any_length(dim):
    for row in (image(picture(0), dim), image(Image.new("RGB", (3, 3)), dim), text("a b c", dim)):
        assert row.shape == (dim,)
        assert np.isclose(np.linalg.norm(row), 1)
    whole, folded = image(picture(0), 256), image(picture(0), 100)
    again = np.bincount(np.arange(256) % 100, whole, 100)
    assert np.allclose(folded, again / np.linalg.norm(again), atol=1e-6)


def test_a_bomb_is_a_problem():
    body = io.BytesIO()
    Image.new("L", (4000, 4000)).save(body, "PNG")
    assert isinstance(image(body.getvalue()), Problem)
