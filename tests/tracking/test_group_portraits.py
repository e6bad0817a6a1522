"""Pictures of groups say what they show: a point a client, a step a round, a bar an item."""

import math

import numpy as np

from fedray.evaluation.groups import Served, liked
from fedray.federated.method import Portrait
from fedray.tracking import group_portraits
from fedray.tracking.figures import PALETTE, png
from fedray.types import RoundReport


def reports(n=3):
    numbers = {"group/size_0": 3.0, "group/size_1": 2.0, "group/fit_loss": 0.5}
    return [RoundReport(r, numbers | ({"group/stability": 0.9} if r > 1 else {}), {}, 0, 0, 1) for r in range(1, n + 1)]


def portrait(group, client=None, items=4):
    group = np.array(group, np.int32)
    client = np.flatnonzero(group >= 0) if client is None else np.array(client)
    at = np.stack([client, -client], axis=1).astype(np.float32)
    preference = np.random.default_rng(0).random((group.max() + 1, items)).astype(np.float32)
    return Portrait(group, client, at, np.array([0.5, 0.25], np.float32), preference)


def shades(axes):
    return [tuple(colour) for colour in axes.collections[0].get_facecolors()[:, :3].round(3)]


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_sizes_stability_loss_and_a_bar_a_group():
    means = [Served(0, 3, 0.2, 0.1), Served(1, 1, 0.4, math.nan)]
    figure = group_portraits.groups(reports(), portrait([0, 0, 0, 1, 1]), means, 2)
    sizes, stability, loss, bars = figure.axes
    assert len(sizes.collections) == 2 and sizes.get_xlim() == (0.5, 3.5)
    assert list(stability.lines[0].get_xdata()) == [2, 3] and list(loss.lines[0].get_ydata()) == [0.5] * 3
    assert [bar.get_height() for bar in bars.patches] == [0.2, 0.4] and bars.lines[-1].get_ydata()[0] == 0.25
    assert labels(figure) == ["group 0 (3)", "group 1 (2)"] and png(figure).startswith(b"\x89PNG")


def test_the_map_has_a_point_a_client_of_the_round_in_the_colour_of_its_group():
    figure = group_portraits.plane(portrait([0, 1, -1, 1, 0], client=[1, 3, 4]))
    (axes,) = figure.axes
    assert axes.collections[0].get_offsets().tolist() == [[1, -1], [3, -3], [4, -4]]
    first, second, third = shades(axes)
    assert first == second != third and axes.get_title(loc="left") == "3 clients"
    assert axes.get_xlabel() == "1st principal axis, 50% of the variance"
    assert labels(figure) == ["group 0 (2)", "group 1 (2)"] and png(figure)


def test_of_many_clients_some_are_drawn_and_the_title_says_so(monkeypatch):
    monkeypatch.setattr(group_portraits, "POINTS", 5)
    (axes,) = group_portraits.plane(portrait([0] * 1000)).axes
    assert axes.collections[0].get_offsets()[:, 0].tolist() == [0, 249, 499, 749, 999]
    assert axes.get_title(loc="left") == "5 of 1,000 clients, evenly by id"


def test_the_largest_groups_have_the_colours():
    many = [g for g in range(10) for _ in range(1 if g in (2, 5) else 3)]
    colours = group_portraits.colours_of(np.array(many))
    assert list(colours) == [0, 1, 3, 4, 6, 7, 8, 9] and list(colours.values()) == list(PALETTE)
    assert labels(group_portraits.plane(portrait(many)))[-1] == "2 smaller groups (2)"


def test_items_by_title_six_groups_a_page():
    held = portrait([g for g in range(8) for _ in range(2)])
    names = ["$5 and $6", "片名", "x" * 90, "plain"]
    pages = group_portraits.items(liked(held.preference, held.group, 2), names, "title")
    assert list(pages) == ["group_items", "group_items_2"] and all(map(png, pages.values()))
    assert [len(figure.axes) for figure in pages.values()] == [12, 4]
    left = pages["group_items"].axes[0]
    assert len(left.patches) == 2 and left.get_title(loc="left") == "group 0 (2 clients): liked most"
    shown = {text.get_text() for axes in pages["group_items"].axes for text in axes.get_yticklabels()}
    assert "$5 and $6" in shown and max(map(len, shown)) <= group_portraits.TITLE


def test_of_very_many_groups_the_largest_have_a_page():
    held = portrait([g for g in range(30) for _ in range(1 + (g == 29))])
    pages = group_portraits.items(liked(held.preference, held.group, 1), ["a", "b", "c", "d"])
    assert list(pages)[-1] == "group_items_4" and sum(len(f.axes) for f in pages.values()) == 48
    assert pages["group_items_4"].axes[-2].get_title(loc="left").startswith("group 29")
    assert "the 24 largest of 30 groups" in pages["group_items"].get_suptitle()


def test_nobody_in_a_group_can_be_drawn():
    nobody = Portrait(
        np.full(3, -1), np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros(2), np.full((2, 4), 0.5, np.float32)
    )
    assert png(group_portraits.plane(nobody)) and png(group_portraits.groups([], nobody, [], 1))
    assert not group_portraits.items(liked(nobody.preference, nobody.group), [])
