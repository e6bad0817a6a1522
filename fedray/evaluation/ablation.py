"""What a part of the item rows is worth to a trained model: its test metrics once more without that part, and to whom.

The gain of content is paired, client by client: its metric of the full model less its own without content. By activity:
quarters of the clients with a test item by their number of training items (ties go to the lower one, so that quarters
differ in size and one may be empty). This says what the trained model makes of content, not whether a model trained
without it would do as well: for that, compare with a run of the backbone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fedray.evaluation import slices
from fedray.evaluation.users import Users, metrics_in
from fedray.sections import Slice
from fedray.types import ClientData

CONTENT = "without_content"
ALL = "all"
METRIC = "ndcg_at_10"


@dataclass(frozen=True)
class Ablated:
    """Test metrics without a part: means, their standard errors, and each client's own."""

    test: Mapping[str, float]
    errors: Mapping[str, float]
    users: Users = field(default_factory=dict, compare=False)


def with_slices(parts: Mapping[str, Ablated], data: ClientData, names: Sequence[Slice]) -> dict[str, Ablated]:
    """With the metrics over each slice of the clients; `data` are all of them."""
    return {k: replace(a, test={**a.test, **slices.of_run(a.users, data, names)}) for k, a in parts.items()}


class Gain(NamedTuple):
    """Over some of the clients: who they are in words, how many, the mean gain and its standard error (NaN of one)."""

    label: str
    clients: int
    mean: float
    error: float


def metric_of(users: Users, lead: str) -> str:
    """By which metric gains are read: NDCG@10, else the leading one, else the first; "" where there is none."""
    return next((name for name in (METRIC, lead, *metrics_in(users)) if name in users), "")


def gains(
    full: Users, parts: Mapping[str, Ablated], metric: str, data: ClientData, names: Sequence[Slice]
) -> dict[str, Gain]:
    """All clients with a test item, the quarters by activity, and each slice that has any; `data` are all clients."""
    if metric not in full or CONTENT not in parts:
        return {}
    gain = full[metric] - parts[CONTENT].users[metric]
    tested = np.searchsorted(data.client, full["client"])
    groups = {ALL: ("all users", np.ones(len(gain), bool)), **activity(data.train.lengths()[tested])}
    groups |= {k: (k.replace("_", " "), v[tested]) for k, v in slices.masks(data, names).items()}
    return {name: _gain(label, gain[mask]) for name, (label, mask) in groups.items() if mask.any()}


def activity(n_train: np.ndarray) -> dict[str, tuple[str, Bool[np.ndarray, " clients"]]]:
    """`activity_q1` ... `activity_q4`, least active first: a label such as `5 to 12`, and who is in it."""
    edges = np.quantile(n_train, (0.25, 0.5, 0.75), method="inverted_cdf")
    quarter = np.searchsorted(edges, n_train)
    found = {}
    for q in np.unique(quarter).tolist():
        own = n_train[quarter == q]
        span = f"{own.min()}" if own.min() == own.max() else f"{own.min()} to {own.max()}"
        found[f"activity_q{q + 1}"] = (span, quarter == q)
    return found


def _gain(label: str, gain: Float[np.ndarray, " clients"]) -> Gain:
    n = len(gain)
    error = float(np.std(gain, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Gain(label, n, float(np.mean(gain)), error)


def metrics(ablation: Mapping[str, Ablated], found: Mapping[str, Gain], metric: str) -> dict[str, float]:
    """As they are logged: `ablation/without_text/ndcg_at_10`, `content_gain/activity_q1/ndcg_at_10` and `..._se`."""
    out = {f"ablation/{name}/{k}": v for name, a in ablation.items() for k, v in a.test.items()}
    out |= {f"content_gain/{name}/{metric}": g.mean for name, g in found.items()}
    return out | {f"content_gain/{name}/{metric}_se": g.error for name, g in found.items()}
