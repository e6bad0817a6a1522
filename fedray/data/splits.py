"""Which interaction is for training, which for validation, which for the test.

Leave-one-out: a user's latest interaction is its test, the second latest its validation. Among equal times
the row that comes first in the file counts as latest: the rank of PFedRec's data loader, kept so that its
tables can be reproduced. A missing time is never the latest. Where the times run out, the next one is drawn
at random among the user's rows without time, by user and seed alone: not by file order or protocol.
"""

import numba
import numpy as np
from jaxtyping import Int, UInt64

from fedray import seeding
from fedray.types import MISSING_TIME, TEST, TRAIN, VALID

LEAST = 3


def leave_one_out(
    user: Int[np.ndarray, " n"], item: Int[np.ndarray, " n"], time: Int[np.ndarray, " n"], seed: int
) -> Int[np.ndarray, " n"]:
    """TRAIN, VALID or TEST for each row, rows in file order; users with fewer than three rows only train.

    `user` and `item` are dense ids in the order of the external ids, so that the random draw does not
    depend on how items are permuted later.
    """
    length = np.bincount(user)
    order = np.lexsort((_tie_order(user, item, time, seed), ~time, user))
    place = _place_in_user(user[order], length)
    label = np.full(len(user), TRAIN, dtype=np.int8)
    enough = length[user[order]] >= LEAST
    label[order[enough & (place == 0)]] = TEST
    label[order[enough & (place == 1)]] = VALID
    return label


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
