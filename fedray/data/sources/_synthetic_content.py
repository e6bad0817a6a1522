"""What the synthetic catalogue shows: posters drawn from a style, texts written from themes."""

from functools import cache

import numpy as np
from jaxtyping import UInt8

from fedray import seeding

WIDTH, HEIGHT = 64, 96
# Three colours each: ground, figure, band.
PALETTES = {
    "ember": ((70, 16, 18), (232, 92, 38), (250, 190, 80)),
    "lagoon": ((8, 58, 82), (40, 178, 176), (206, 240, 228)),
    "moss": ((28, 48, 26), (112, 150, 58), (222, 214, 150)),
    "violet": ((40, 22, 74), (150, 92, 206), (240, 178, 228)),
    "paper": ((238, 230, 212), (58, 56, 62), (196, 62, 52)),
    "steel": ((120, 132, 146), (226, 232, 238), (30, 40, 60)),
}
SHAPES = ("disc", "ring", "stripes", "peak", "checks")
# A theme a line: its name, then its words.
_WORDS = """
sea harbour tide sailor reef anchor lighthouse storm island captain shell current whale
space orbit comet pilot moon station signal nebula gravity shuttle crater eclipse probe
court judge verdict witness lawyer trial alibi jury motive evidence oath appeal clerk
kitchen chef oven recipe spice supper bread butcher market pepper cellar feast honey
forest wolf cedar trail ranger lantern fern owl cabin hunter moss river thicket
music violin chorus drummer stage ballad tempo encore vinyl singer piano rehearsal jazz
war trench general bridge siege soldier letter front armistice tank medal retreat spy
romance wedding letters dance promise rose reunion stranger kiss garden summer secret ring
"""
THEMES = {line.split()[0]: tuple(line.split()[1:]) for line in _WORDS.strip().splitlines()}
_OPENINGS = ("A tale of {} and {}", "Between {} and {}", "It begins with {} and {}", "Once more {} meets {}")
_MIDDLES = ("where {} and {} decide", "and nobody forgets the {} or the {}", "until {} gives way to {}")
_ENDINGS = ("In the end only {} and {} are left.", "For all who love {} and {}.", "Then come {} and {}.")
_VOCABULARY = frozenset(word for words in THEMES.values() for word in words)


def pixels(item: int, style: str) -> UInt8[np.ndarray, "96 64 3"]:
    """The poster of an item of this style ("ember disc"); place, size and grain vary with the item."""
    palette, shape = style.split()
    ground, figure, band = (np.array(c, dtype=np.float32) for c in PALETTES[palette])
    random = seeding.generator(seeding.key(0, "synthetic", client=item))
    dx, dy, size, light = random.uniform(-1, 1, size=4)
    y, x = _grid()
    picture = np.where(_figure(shape, x - 6 * dx, y - 8 * dy, 20 + 4 * size)[..., None], figure, ground)
    picture[int(78 + 4 * dy) : int(86 + 4 * dy)] = band
    grain = random.normal(8 * light, 5, size=(HEIGHT, WIDTH, 1))
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


@cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel, from the middle of the upper part."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    return y - 38, x - WIDTH / 2


def _figure(shape: str, x: np.ndarray, y: np.ndarray, size: float) -> np.ndarray:
    """True where the figure is."""
    radius = np.hypot(x, y)
    if shape == "disc":
        return radius < size
    if shape == "ring":
        return np.abs(radius - size) < size / 4
    if shape == "stripes":
        return (x + y) % size < size / 2
    if shape == "peak":
        return (y > np.abs(x) * 1.6 - size) & (y < size)
    return ((x // (size / 2) + y // (size / 2)) % 2 == 0) & (np.abs(y) < 1.5 * size)


def text_of(main: str, second: str, share: float, random: np.random.Generator) -> tuple[str, str]:
    """Title and description; each content word is of the main theme with probability `share`."""
    of_main = random.random(8) < share
    spot = random.integers(12, size=8)
    words = [THEMES[main if m else second][i] for m, i in zip(of_main, spot)]
    form = random.integers(3, size=3)
    opening, middle = _OPENINGS[form[0]].format(*words[2:4]), _MIDDLES[form[1]].format(*words[4:6])
    title = f"{words[0].title()} and {words[1].title()}"
    return title, f"{opening}, {middle}. {_ENDINGS[form[2]].format(*words[6:8])}"


def tokens(text: str) -> list[str]:
    """The theme words in a text."""
    return [word for word in text.lower().replace(",", " ").replace(".", " ").split() if word in _VOCABULARY]
