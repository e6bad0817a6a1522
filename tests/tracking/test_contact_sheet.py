"""Contact sheets: which items are on them, and what is written below."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from fedray.config import make_config
from fedray.data.sources import synthetic
from fedray.tracking.contact_sheet import WIDTH, choose_rows, contact_sheet, nearest, shown, wrapped
from fedray.tracking.figures import png

RNG = np.random.Generator(np.random.Philox(4))
VECTORS = RNG.normal(size=(30, 6)).astype(np.float32)
ALL = np.ones(30, bool)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_rows_are_the_most_popular_and_a_spread_over_the_rest():
    popularity = np.arange(105)[::-1]
    rows = choose_rows(np.ones(105, bool), popularity)
    assert rows == [0, 1, 2, 3, 4, 15, 35, 55, 75, 95]
    assert choose_rows(np.ones(105, bool), popularity) == rows
    assert choose_rows(popularity % 2 == 0, popularity, n=4) == [0, 2, 28, 80]


@pytest.mark.parametrize("n", [0, 1, 4, 10, 11, 12])
def test_few_items_are_taken_once_each_and_equals_in_their_order(n):
    rows = choose_rows(np.arange(20) < n, np.zeros(20))
    assert len(rows) == len(set(rows)) == min(n, 10) and rows == sorted(rows) and all(row < n for row in rows)


def test_neighbours_are_those_of_the_definition():
    present = RNG.random(30) < 0.7
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    for row in np.flatnonzero(present)[:5]:
        cosine = {i: float(unit[i] @ unit[row]) for i in range(30) if present[i] and i != row}
        found = nearest(VECTORS, present, row, 4)
        assert found.rows.tolist() == sorted(cosine, key=lambda i: -cosine[i])[:4]
        assert found.cosine == pytest.approx([cosine[i] for i in found.rows], abs=1e-5)
        assert not found.same.any()


def test_equal_vectors_are_shown_marked_and_in_the_order_of_rows():
    vectors = VECTORS.copy()
    vectors[[3, 17]] = vectors[8]
    vectors[20] = 2 * vectors[8]
    vectors[9] = 0
    found = nearest(vectors, ALL, 8, 4)
    assert found.rows[:3].tolist() == [3, 17, 20] and found.same.tolist() == [True, True, False, False]
    assert nearest(vectors, ALL, 9, 30).cosine.tolist() == [0] * 29
    below = texts(contact_sheet(vectors, ALL, [f"film {i}" for i in range(30)], None, [8], neighbours=3))
    assert below[3:] == ["", "film 8", "1.00  same vector", "film 3", "1.00  same vector", "film 17", "1.00", "film 20"]


def test_an_item_without_the_feature_has_no_neighbours_and_is_none():
    present = ALL & (np.arange(30) != 5)
    assert not any(5 in nearest(VECTORS, present, row, 29).rows for row in range(30))
    below = texts(contact_sheet(VECTORS, present, ["x"] * 30, None, [5]))
    assert "the 29 items" in below[2] and below[3:] == ["no vector", "x"]
    assert len(texts(contact_sheet(VECTORS[:3], ALL[:3], ["x"] * 3, None, [0, 1]))) == 3 + 2 * 6


def test_posters_keep_their_shape_in_a_png_of_the_width_promised():
    shapes = {0: (64, 96), 1: (300, 20), 2: (5, 700), 3: (40, 40)}
    modes = dict(enumerate(("RGB", "RGBA", "L", "P", "CMYK")))
    vectors = VECTORS[:5]

    def picture(i):
        return Image.new(modes[i], shapes[i]) if i in shapes else None

    figure = contact_sheet(vectors, ALL[:5], list("abcde"), picture, [0], title="posters")
    boxes = {}
    for image, row in zip(figure.axes[0].images, [0, *[i for i in nearest(vectors, ALL[:5], 0, 6).rows if i != 4]]):
        left, right, bottom, top = image.get_extent()
        boxes[int(row)] = (right - left, bottom - top)
        assert image.get_array().shape[:2] == (bottom - top, right - left)
    for i, (w, h) in shapes.items():
        assert boxes[i] == pytest.approx((w * min(boxes[i][0] / w, boxes[i][1] / h), boxes[i][1]), abs=1)
        assert boxes[i][1] <= 150 and boxes[i][0] <= 180 and max(boxes[i][1] / 150, boxes[i][0] / 179) > 0.98
    with Image.open(io.BytesIO(png(figure))) as made:
        assert made.width == WIDTH == 1400


def test_titles_of_any_kind_warn_of_nothing():
    odd = ["七人の侍", None, float("nan"), "", "$\\frac{1}{2", "a\nb\tc", "\ud800\U0010fffe", "x" * 200, "七 Seven"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = contact_sheet(VECTORS[:12], ALL[:12], odd, None, [0, 6], neighbours=11, title="七 $")
        png(figure)
    found = texts(figure)
    assert {"item 1", "item 2", "item 3", "item 6", "item 11", "$\\frac{1}{2", "a b c"} <= set(found)


def test_a_letter_without_a_glyph_is_a_box():
    assert shown("ab \U000f0000 c") == "ab □ c" and shown("e\u0301") == "é" and shown(None) == ""


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Heat (1995)", ["Heat (1995)"]),
        ("Empire Strikes Back, The", ["Empire", "Strikes Ba…"]),
        ("one two", ["one two"]),
        ("twelve chars", ["twelve", "chars"]),
        ("exactly-11- and more", ["exactly-11-", "and more"]),
        ("Donaudampfschifffahrt", ["Donaudampfs", "chifffahrt"]),
        ("七人の侍七人の侍七人の侍", ["七人の侍七", "人の侍七人…"]),
        ("", []),
    ],
)
def test_titles_take_two_lines(text, lines):
    assert wrapped(text, 11) == lines


def test_synthetic_items_stand_beside_their_like():
    raw = synthetic.load(make_config({"data": {"items": 80, "users": 30}}).data)
    vectors = raw.features["image"].table
    style = raw.items["style"].tolist()
    found = nearest(vectors, np.ones(80, bool), 0, 3)
    assert all(style[i].split()[0] == style[0].split()[0] for i in found.rows)
    posters = [synthetic.poster(row) for _, row in raw.items.iterrows()]
    figure = contact_sheet(vectors, np.ones(80, bool), raw.items["title"].tolist(), posters.__getitem__, [0, 7])
    assert len(figure.axes[0].images) == 14 and png(figure).startswith(b"\x89PNG")
