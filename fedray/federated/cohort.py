"""Who takes part in a round: a function of seed and round, never of packing.

Each client has a 64-bit number for each round; the n smallest take part. The driver broadcasts only the n-th
smallest number, and every actor finds its own members by itself.
"""

import numpy as np
from jaxtyping import Bool, Int

from fedray import seeding

EVERYONE = np.uint64(0xFFFFFFFFFFFFFFFF)


def cohort_size(n_clients: int, clients_per_round: float, over_select: float = 1.0) -> int:
    """Up to 1: that ratio of all clients (at least one); above 1: that many. Times `over_select`, at most all."""
    ratio = clients_per_round <= 1
    n = max(1, int(n_clients * clients_per_round)) if ratio else int(clients_per_round)
    return min(n_clients, int(min(n, n_clients) * over_select))


def threshold(
    seed: int,
    round_: int,
    clients: Int[np.ndarray, " clients"],
    clients_per_round: float,
    over_select: float = 1.0,
) -> np.uint64:
    """The largest number that still takes part in this round."""
    n = cohort_size(len(clients), clients_per_round, over_select)
    if n == len(clients):
        return EVERYONE
    return np.partition(seeding.keys(seed, "cohort", round_, clients), n - 1)[n - 1]


def members(seed: int, round_: int, clients: Int[np.ndarray, " k"], limit: np.uint64) -> Bool[np.ndarray, " k"]:
    """Which of these clients take part."""
    if limit == EVERYONE:
        return np.ones(len(clients), np.bool_)
    return seeding.keys(seed, "cohort", round_, clients) <= limit
