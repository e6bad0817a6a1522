"""The embedded default: a made-up catalogue with posters and texts, and users who care for one or the other.

An item has a *style* (palette and shape, seen on its poster), a *theme* (seen in its title and description),
and hidden qualities that no content shows. User u belongs to group u % groups: group 0 cares mostly for
looks, group 1 mostly for themes, the others for a mixture. Tastes are the group's plus the user's own, so
that interactions have a low-rank structure (6 + 5 + 8 + hidden dimensions) that collaboration finds and
content explains in part; some items are popular with all. Everything follows from `data.seed`.
"""

import io
import zlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from PIL import Image
from pydantic import Field

from fedray import seeding
from fedray.config import DataConfig
from fedray.data.sources import RawData, RawFeature
from fedray.data.sources._synthetic_content import PALETTES, SHAPES, THEMES, pixels, text_of, tokens

TEXT_DIMS = 64
FIRST_TIME, LONGEST_GAP = 1_600_000_000, 200_000
LEAST_INTERACTIONS = 5
_SCORES_AT_ONCE = 1 << 22


class Config(DataConfig):
    """Settings of the `synthetic` source."""

    source: Literal["synthetic"] = "synthetic"
    users: int = Field(400, ge=2, le=1_000_000)
    items: int = Field(600, ge=20, le=100_000)
    interactions: float = Field(35.0, ge=5, description="mean per user before clipping to half the items")
    skew: float = Field(0.5, ge=0, le=2, description="spread of log interactions per user")
    groups: int = Field(4, ge=1, le=64, description="groups of users that weigh looks and themes differently")
    hidden_dims: int = Field(3, ge=0, le=64, description="item qualities that neither poster nor text shows")
    own_taste: float = Field(0.4, ge=0, le=1, description="0: as the group likes; 1: all one's own")
    popularity: float = Field(0.7, ge=0, description="spread of the items' general appeal")
    signal: float = Field(3.5, ge=0, description="spread of taste against a noise of 1")


class _Catalogue(NamedTuple):
    """Latent description of n items; shares of the two themes sum to 1."""

    palette: Int[np.ndarray, " n"]
    shape: Int[np.ndarray, " n"]
    theme: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]
    share: Float[np.ndarray, " n"]
    hidden: Float[np.ndarray, "n h"]


def load(config: Config) -> RawData:
    """The catalogue, its features (image 32 columns, text 64) and the interactions, ordered by time."""
    rng = seeding.generator(seeding.key(config.seed, "synthetic"))
    catalogue = _draw_catalogue(config, rng)
    items = _describe(catalogue, rng)
    frame = _interactions(config, catalogue, rng)
    ids = items["item"].to_numpy()
    features = {
        "image": RawFeature(_image_features(items), ids, "synthetic posters"),
        "text": RawFeature(_text_features(items), ids, "synthetic descriptions"),
    }
    return RawData(frame, items, config.name or "synthetic", "synthetic interactions", features)


def poster(item_row: Mapping[str, Any] | pd.Series) -> Image.Image:
    """The poster of a row of the items table: 64 x 96 RGB, a function of its `item` and `style` alone."""
    return Image.fromarray(pixels(int(item_row["item"]), str(item_row["style"])))


def image_bytes(item_row: Mapping[str, Any]) -> bytes:
    """The poster as a PNG file: what image encoders of this catalogue are fed."""
    out = io.BytesIO()
    poster(item_row).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _draw_catalogue(config: Config, rng: np.random.Generator) -> _Catalogue:
    n = config.items
    theme = rng.integers(len(THEMES), size=n)
    return _Catalogue(
        palette=rng.integers(len(PALETTES), size=n),
        shape=rng.integers(len(SHAPES), size=n),
        theme=theme,
        second=(theme + rng.integers(1, len(THEMES), size=n)) % len(THEMES),
        share=rng.uniform(0.6, 1.0, size=n),
        hidden=rng.normal(size=(n, config.hidden_dims)),
    )


def _describe(catalogue: _Catalogue, rng: np.random.Generator) -> pd.DataFrame:
    """Columns item, title, description, theme, style."""
    palettes, shapes, themes = list(PALETTES), list(SHAPES), list(THEMES)
    texts = [text_of(themes[a], themes[b], s, rng) for a, b, s in zip(*catalogue[2:5])]
    return pd.DataFrame(
        {
            "item": np.arange(len(texts)),
            "title": [title for title, _ in texts],
            "description": [description for _, description in texts],
            "theme": [themes[t] for t in catalogue.theme],
            "style": [f"{palettes[p]} {shapes[s]}" for p, s in zip(catalogue.palette, catalogue.shape)],
        }
    )


def _interactions(config: Config, catalogue: _Catalogue, rng: np.random.Generator) -> pd.DataFrame:
    """Each user takes the items of highest appeal plus Gumbel noise, in random order of time."""
    aspects = _aspects(catalogue)
    group = np.arange(config.users) % config.groups
    tastes = [_tastes(config, group, a.shape[1], rng) for a in aspects]
    weights = _weights(config)[group]
    appeal = rng.normal(0.0, config.popularity, size=config.items)
    length = _lengths(config, rng)
    parts = []
    step = max(1, _SCORES_AT_ONCE // config.items)
    for start in range(0, config.users, step):
        rows = slice(start, start + step)
        like = sum(weights[rows, j : j + 1] * (tastes[j][rows] @ aspects[j].T) for j in range(3))
        noisy = config.signal * like + appeal + rng.gumbel(size=(len(group[rows]), config.items))
        parts.append(_chosen(start, length[rows], noisy))
    user, item = (np.concatenate(column) for column in zip(*parts))
    return _in_time(user, item, rng)


def _aspects(catalogue: _Catalogue) -> list[Float[np.ndarray, "items dims"]]:
    """Items by looks, themes and hidden qualities, each centred and of unit mean square per row."""
    themes = np.eye(len(THEMES))
    share = catalogue.share[:, None]
    blocks = [
        np.hstack([np.eye(len(PALETTES))[catalogue.palette], np.eye(len(SHAPES))[catalogue.shape]]),
        share * themes[catalogue.theme] + (1 - share) * themes[catalogue.second],
        catalogue.hidden,
    ]
    centred = [b - b.mean(axis=0) for b in blocks]
    return [c / np.sqrt(max(float((c**2).sum(axis=1).mean()), 1e-12)) for c in centred]


def _tastes(
    config: Config, group: Int[np.ndarray, " users"], dims: int, rng: np.random.Generator
) -> Float[np.ndarray, "users dims"]:
    """The group's direction mixed with the user's own, unit variance in each dimension."""
    shared = rng.normal(size=(config.groups, dims))[group]
    own = rng.normal(size=(config.users, dims))
    return np.sqrt(1 - config.own_taste) * shared + np.sqrt(config.own_taste) * own


def _weights(config: Config) -> Float[np.ndarray, "groups 3"]:
    """How much each group cares for looks, themes and hidden qualities; squares sum to 1."""
    looks = np.concatenate([[0.9, 0.1], np.linspace(0.35, 0.65, max(config.groups - 2, 0))])[: config.groups]
    hidden = np.full(len(looks), 0.2 if config.hidden_dims else 0.0)
    return np.sqrt(np.stack([(1 - hidden) * looks, (1 - hidden) * (1 - looks), hidden], axis=1))


def _lengths(config: Config, rng: np.random.Generator) -> Int[np.ndarray, " users"]:
    """Interactions per user, log-normal about the mean."""
    spread = rng.normal(-0.5 * config.skew**2, config.skew, size=config.users)
    length = np.rint(config.interactions * np.exp(spread)).astype(np.int64)
    return np.clip(length, LEAST_INTERACTIONS, config.items // 2)


def _chosen(
    start: int, length: Int[np.ndarray, " rows"], score: Float[np.ndarray, "rows items"]
) -> tuple[np.ndarray, np.ndarray]:
    """The `length[u]` items of highest score of each user, as (user, item) rows."""
    top = int(length.max())
    best = np.argpartition(-score, top - 1, axis=1)[:, :top]
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(score, best, 1), axis=1), 1)
    row, place = np.nonzero(np.arange(top) < length[:, None])
    return start + row, best[row, place]


def _in_time(user: Int[np.ndarray, " n"], item: Int[np.ndarray, " n"], rng: np.random.Generator) -> pd.DataFrame:
    """The rows in random order within each user, with times that rise by random gaps."""
    order = np.lexsort((rng.random(len(user)), user))
    gaps = np.cumsum(rng.integers(1, LONGEST_GAP, size=len(user)))
    first = np.concatenate([[0], np.flatnonzero(np.diff(user)) + 1])
    time = FIRST_TIME + gaps - np.repeat(gaps[first], np.bincount(user))
    frame = pd.DataFrame({"user": user, "item": item[order], "time": time})
    return frame.set_axis(np.arange(1, len(frame) + 1), axis="index")


def _image_features(items: pd.DataFrame) -> Float[np.ndarray, "items 32"]:
    """Shares of 27 colours, and the brightness of five horizontal bands, of each poster."""
    out = np.empty((len(items), 32), np.float32)
    for row, (item, style) in enumerate(zip(items["item"], items["style"])):
        picture = pixels(int(item), style)
        cell = np.minimum(picture.reshape(-1, 3) // 86, 2) @ np.array([9, 3, 1])
        out[row, :27] = np.bincount(cell, minlength=27) / len(cell)
        bands = np.array_split(picture.mean(axis=2), 5)
        out[row, 27:] = [band.mean() / 255 for band in bands]
    return out


def _text_features(items: pd.DataFrame) -> Float[np.ndarray, "items 64"]:
    """Signed hashed word counts of title and description, unit length."""
    out = np.zeros((len(items), TEXT_DIMS), np.float32)
    for row, text in enumerate(items["title"] + " " + items["description"]):
        for word in tokens(text):
            code = zlib.crc32(word.encode())
            out[row, code % TEXT_DIMS] += 1 if code >> 16 & 1 else -1
    norm = np.linalg.norm(out, axis=1, keepdims=True)
    return out / np.maximum(norm, np.float32(1e-12))
