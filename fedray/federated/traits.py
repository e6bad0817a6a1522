"""Each client's traits (`Method.traits`): which users are image people, which text people.

One client after the other, on the CPU, from copies of its own numbers: the bits depend on nobody else, however clients
are packed. Only the rows of a client's training items are read.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int

from fedray.evaluation.metrics import MetricSums
from fedray.federated.client_store import NEVER, ClientStore
from fedray.federated.method import Method
from fedray.federated.scoring import by_base
from fedray.types import Arrays, ClientData

TRAITS = "traits"
"""Their place among the sums of the splits."""

ByTrait = dict[str, Float64[np.ndarray, " clients"]]


def traits_of(method: Method, data: ClientData, store: ClientStore, params: Arrays) -> ByTrait:
    """Name -> each client's, NaN for those without a training item; nothing where the method has none."""
    if method.traits is None:
        return {}
    found = np.full((len(data), len(method.traits.names)), np.nan)
    for base, who in by_base(store, params):
        for c in who[data.train.lengths()[who] > 0].tolist():
            found[c] = method.traits.of(_params(method, store, base, c, data.train.row(c)))
    return {name: found[:, i] for i, name in enumerate(method.traits.names)}


def summed_traits(found: ByTrait) -> MetricSums:
    """Sums and histograms over the clients that have them."""
    there = {name: np.isfinite(values).astype(np.int64) for name, values in found.items()}
    total = MetricSums.zero()
    for name, values in found.items():
        total = total.merge(MetricSums.of({name: values}, there[name], (name,)))
    return total


def _params(
    method: Method, store: ClientStore, base: Arrays, c: int, items: Int[np.ndarray, " n"]
) -> dict[str, Float[torch.Tensor, "..."]]:
    assert method.traits is not None
    rows = {k: rows_of(store, base, k, c, items) for k in method.traits.tables}
    return {k: torch.tensor(v) for k, v in (rows | {k: store.private[k][c] for k in method.traits.private}).items()}


def rows_of(
    store: ClientStore, base: Arrays, name: str, c: int, items: Int[np.ndarray, " n"]
) -> Float32[np.ndarray, "n d"]:
    """These rows of a shared table as client c scores them: its own copies where it keeps some."""
    if store.last_round[c] == NEVER:
        return base[name][items]
    if name in store.whole:
        return store.whole[name][c][items]
    found = base[name][items]
    if store.tuned is None or name not in store.tuned.values:
        return found
    lo, hi = store.tuned.ptr[c], store.tuned.ptr[c + 1]
    found = found * np.float32(store.tuned.scale[name][c])
    _, mine, touched = np.intersect1d(items, store.tuned.rows[lo:hi], assume_unique=True, return_indices=True)
    found[mine] = store.tuned.values[name][lo + touched]
    return found
