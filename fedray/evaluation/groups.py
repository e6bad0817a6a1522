"""Groups of clients at the selected round: what each likes, and how well each is served.

Liked are the items of highest preference, a probability that the server has of each item for each group. They are much
the same in all groups where popularity speaks; what a group likes more than others do is told by its preference above
the mean over the groups that have members.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from fedray.evaluation.users import GROUP, Users

SHOWN = 8
"""Items of a group."""


class Liked(NamedTuple):
    """Of one group: its number, how many clients are in it, and (item, preference), (item, preference above the mean
    over groups), highest first; the second is empty where there is no other group."""

    group: int
    clients: int
    most: tuple[tuple[int, float], ...]
    more: tuple[tuple[int, float], ...]


class Served(NamedTuple):
    """Over the clients of a group (-1: of none): how many, their mean metric and its standard error (NaN of one)."""

    group: int
    clients: int
    mean: float
    error: float


def liked(preference: Float[np.ndarray, "G M"], group: Int[np.ndarray, " N"], shown: int = SHOWN) -> tuple[Liked, ...]:
    """Of the groups that have members, by number."""
    size = np.bincount(group[group >= 0], minlength=len(preference))
    there = np.flatnonzero(size)
    mean = preference[there].mean(axis=0, dtype=np.float64) if len(there) else np.zeros(0)
    more = {int(g): _top(preference[g] - mean, shown) if len(there) > 1 else () for g in there}
    return tuple(Liked(g, int(size[g]), _top(preference[g], shown), above) for g, above in more.items())


def _top(values: Float[np.ndarray, " M"], n: int) -> tuple[tuple[int, float], ...]:
    """Of equals the lower item."""
    return tuple((int(i), float(values[i])) for i in np.argsort(-values, kind="stable")[:n])


def served(users: Users, metric: str) -> tuple[Served, ...]:
    """Of each group that has test items, by number."""
    if GROUP not in users or metric not in users:
        return ()
    return tuple(_served(int(g), users[metric][users[GROUP] == g]) for g in np.unique(users[GROUP]))


def _served(group: int, values: Float[np.ndarray, " clients"]) -> Served:
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Served(group, n, float(np.mean(values)), error)


def names_of(items: pd.DataFrame) -> list[str]:
    """The title of each item on one line; `item 17`, by the source's id, where it has none."""
    titles = items["title"] if "title" in items else [None] * len(items)
    plain = (" ".join(title.split()) if isinstance(title, str) else "" for title in titles)
    return [title or f"item {item}" for title, item in zip(plain, items["item"])]


def markdown(found: Sequence[Liked], names: Sequence[str], title: str) -> str:
    """A table a group."""
    parts = [f"{title}\n"]
    for one in found:
        head = ("liked most", "preference", "more than others", "above the mean")
        rule = ("---", "---:") * 2
        more = [*one.more, *[None] * (len(one.most) - len(one.more))]
        rows = [(*_cells(a, names, ""), *_cells(b, names, "+")) for a, b in zip(one.most, more)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
        parts.append(f"## Group {one.group} ({one.clients:,} clients)\n\n{table}\n")
    return "\n".join(parts)


def _cells(entry: tuple[int, float] | None, names: Sequence[str], sign: str) -> tuple[str, str]:
    if entry is None:
        return "", ""
    return names[entry[0]].replace("\\", "\\\\").replace("|", "\\|"), f"{entry[1]:{sign}.4f}"
