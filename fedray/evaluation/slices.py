"""Test metrics over some of the clients: `cold_items/ndcg_at_10` beside `ndcg_at_10`, of a run and of its controls.

    cold_items   clients whose test items nobody has in training
    tail         clients whose test items are outside the head: the items most popular in training that together
                 have 80 % of the training interactions (the fewest that do; ties by dense item id). Cold items are
                 tail, too
    cold_users   clients with few training items: no more than the lower quartile, the least number that a quarter
                 of the clients with a test item do not exceed. With ties these are more than a quarter

A client with several test items is in a slice of items if all of them are. Only hr and ndcg in the protocol's own
ranking are sliced. The entrypoint knows the table and gets each client's test metrics at the end (`users`): it alone
computes slices, no client learns of another's items. `<slice>/targets` is the number of test items.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from fedray.evaluation.metrics import AMONG_COLD, sliced
from fedray.evaluation.users import Users
from fedray.sections import Slice
from fedray.types import ClientData

HEAD = 0.8
TARGETS = "targets"


def masks(data: ClientData, names: Sequence[Slice]) -> dict[str, Bool[np.ndarray, " clients"]]:
    """Which clients are in each slice; `data` are all of them."""
    popularity = np.bincount(data.train.values, minlength=data.n_items)
    found = {
        "cold_items": _all_targets(data, popularity == 0),
        "tail": _all_targets(data, ~head(popularity)),
        "cold_users": _few(data),
    }
    return {name: found[name] for name in names}


def head(popularity: np.ndarray) -> Bool[np.ndarray, " items"]:
    """The fewest most popular items that have 80 % of the interactions."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    out = np.zeros(len(popularity), dtype=bool)
    out[order[before < HEAD * popularity.sum()]] = True
    return out


def _all_targets(data: ClientData, chosen: Bool[np.ndarray, " items"]) -> Bool[np.ndarray, " clients"]:
    n = data.test.lengths()
    row = np.repeat(np.arange(len(data)), n)
    return (n > 0) & (np.bincount(row[chosen[data.test.values]], minlength=len(data)) == n)


def _few(data: ClientData) -> Bool[np.ndarray, " clients"]:
    tested, n = data.test.lengths() > 0, data.train.lengths()
    if not tested.any():
        return tested
    return tested & (n <= np.quantile(n[tested], 0.25, method="inverted_cdf"))


def of_run(users: Users, data: ClientData, names: Sequence[Slice]) -> dict[str, float]:
    """A run's metrics by slice, from its clients' own, and how many test items each has; `data` are all clients."""
    chosen = masks(data, names)
    tested = np.searchsorted(data.client, users["client"])
    ones = np.ones(len(tested), np.int64)
    found = {name: (values, ones) for name, values in users.items()}
    return {**sliced(found, {k: v[tested] for k, v in chosen.items()}).means(), **targets(data, names)}


def targets(data: ClientData, names: Sequence[Slice]) -> dict[str, float]:
    """`<slice>/targets`, and `among_cold/targets` where items are held out of training."""
    n = data.test.lengths()
    found = {f"{name}/{TARGETS}": float(n[mask].sum()) for name, mask in masks(data, names).items()}
    if len(data.cold):
        found[AMONG_COLD + TARGETS] = float(np.isin(data.test.values, data.cold).sum())
    return found
