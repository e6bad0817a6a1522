"""Which interaction is for training, which for validation, which for the test.

Leave-one-out: a user's latest interaction is its test, the second latest its validation. Among equal times
the row that comes first in the file counts as latest: the rank of PFedRec's data loader, kept so that its
tables can be reproduced. A missing time is never the latest. Where the times run out, the next one is drawn
at random among the user's rows without time, by user and seed alone: not by file order or protocol.

Cold items (`data.cold_items: 0.1`) stand for items that come into the catalogue after the training: they have content
and no interaction. A share of the items, drawn from the data's seed before items are renumbered, is in nobody's
training or validation set. A user's latest cold item is its test item, so that there are as many cold targets as can
be (where histories are long, nearly every user has one: read the whole test as one of cold items then). Its other
cold rows are dropped from the data, and it takes its latest other item to validation. A user without a cold item
keeps its split. Users left with fewer than three rows are short (`data.short_users`). Under labels that the file
gives, cold rows for training and validation are dropped, and no label is changed. The catalogue was settled before
any row is dropped. Dropped items rank as what a client does not know, for every method and control alike.
"""

import numba
import numpy as np
from jaxtyping import Bool, Int, UInt64

from fedray import seeding
from fedray.types import MISSING_TIME, TEST, TRAIN, VALID

LEAST = 3
DROPPED = -1


def leave_one_out(
    user: Int[np.ndarray, " n"],
    item: Int[np.ndarray, " n"],
    time: Int[np.ndarray, " n"],
    seed: int,
    cold: Bool[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, " n"]:
    """TRAIN, VALID, TEST or (cold rows alone) DROPPED for each row, rows in file order; users with fewer than three
    rows left only train.

    `user` and `item` are dense ids in the order of the external ids, so that the random draw does not
    depend on how items are permuted later. cold: the rows of cold items.
    """
    cold = np.zeros(len(user), dtype=bool) if cold is None else cold
    length, n_cold = np.bincount(user), np.bincount(user, cold).astype(np.int64)
    order = np.lexsort((_tie_order(user, item, time, seed), ~time, ~cold, user))
    owner = user[order]
    place = _place_in_user(owner, length)  # cold rows first
    enough = rows_left(length, n_cold)[owner] >= LEAST
    label = np.where(cold, DROPPED, TRAIN).astype(np.int8)
    label[order[enough & (place == 0)]] = TEST
    label[order[enough & (place == np.maximum(n_cold[owner], 1))]] = VALID
    return label


def most_recent(
    label: Int[np.ndarray, " n"],
    user: Int[np.ndarray, " n"],
    item: Int[np.ndarray, " n"],
    time: Int[np.ndarray, " n"],
    n: int,
    seed: int,
) -> Int[np.ndarray, " n"]:
    """`label` with all but each user's n latest training rows DROPPED; latest as in `leave_one_out`."""
    train = label == TRAIN
    order = np.lexsort((_tie_order(user, item, time, seed), ~time, ~train, user))
    place = _place_in_user(user[order], np.bincount(user))
    out = label.copy()
    out[order[(place >= n) & train[order]]] = DROPPED
    return out


def rows_left(length: Int[np.ndarray, " users"], n_cold: Int[np.ndarray, " users"]) -> Int[np.ndarray, " users"]:
    """How many of a user's rows are left where one of its cold rows stays."""
    return length - np.maximum(n_cold - 1, 0)


def choose_cold(n_items: int, share: float, seed: int) -> Int[np.ndarray, " cold"]:
    """This share of the items (to the nearest whole number), ascending; each set is as likely as another."""
    chosen = seeding.generator(seeding.key(seed, "cold_items")).permutation(n_items)[: round(share * n_items)]
    return np.sort(chosen).astype(np.int64)


def _place_in_user(sorted_user: Int[np.ndarray, " n"], length: np.ndarray) -> Int[np.ndarray, " n"]:
    """0, 1, 2, ... within each user's run of rows."""
    return np.arange(len(sorted_user)) - (np.cumsum(length) - length)[sorted_user]


def _tie_order(
    user: Int[np.ndarray, " n"], item: Int[np.ndarray, " n"], time: Int[np.ndarray, " n"], seed: int
) -> UInt64[np.ndarray, " n"]:
    """What decides among equal times: the place in the file; among missing ones a random number."""
    tie = np.arange(len(user), dtype=np.uint64)
    missing = np.flatnonzero(time == MISSING_TIME)
    if len(missing):
        missing = missing[np.lexsort((item[missing], user[missing]))]
        owner = user[missing]
        place = _place_in_user(owner, np.bincount(owner))
        tie[missing] = _draws(seeding.keys(seed, "split", 0, owner), place)
    return tie


@numba.njit(numba.uint64[:](numba.uint64[:], numba.int64[:]), cache=True)
def _draws(keys: np.ndarray, place: np.ndarray) -> np.ndarray:
    out = np.empty(len(keys), np.uint64)
    for i in range(len(keys)):
        out[i] = seeding.draw(keys[i], np.uint64(place[i]))
    return out
