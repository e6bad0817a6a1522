"""The sum of uploads, and nothing else, is what the server learns from a round, except for methods that collect each
client's tables (GPFedRec).

`Aggregate` is a commutative monoid: `merge` adds fixed-point int64 numbers (see `fixed_point`), so it is exactly
associative and commutative, and any packing, order or retry gives the same bits.

For a shared table E, a client that started from E and has E_u now uploads, for the rows it touched, its delta
against the decayed base, d_u = E_u - f_u E, and its factor f_u (1 without weight decay). With weights a_u the new
table is   E (sum a_u f_u / sum a_u) + sum a_u d_u / sum a_u,   which is the weighted mean of all E_u in full.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedray import fixed_point
from fedray.errors import AggregateOverflowError
from fedray.federated.kernels.rows import add_row_deltas
from fedray.types import Arrays, ServerState

SPARSE_BELOW = 1 / 3
"""A partial sum that touches less than this share of a table travels as (row ids, rows)."""


@dataclass(frozen=True)
class RowSum:
    """int64 sums for the rows of one table: all of them (`ids` None), or those named by `ids` (ascending)."""

    n_rows: int
    ids: np.ndarray | None
    values: np.ndarray

    def dense(self) -> np.ndarray:
        """[n_rows, ...] int64."""
        if self.ids is None:
            return self.values
        out = np.zeros((self.n_rows, *self.values.shape[1:]), np.int64)
        out[self.ids] = self.values
        return out

    def compact(self) -> "RowSum":
        """The same sum in its smaller form."""
        if self.ids is not None:
            return self
        ids = np.flatnonzero(self.values.reshape(self.n_rows, -1).any(axis=1))
        if len(ids) >= SPARSE_BELOW * self.n_rows:
            return self
        return RowSum(self.n_rows, ids, self.values[ids])


@dataclass(frozen=True)
class Aggregate:
    """Sums over clients. `scalars` are on the fixed-point grid (weights, decay factors, losses) or counts."""

    rows: Mapping[str, RowSum]
    dense: Mapping[str, np.ndarray]
    scalars: Mapping[str, int]
    peak: Mapping[str, int]

    def scalar(self, name: str) -> float:
        """One scalar sum as a float."""
        return self.scalars.get(name, 0) / fixed_point.SCALE

    def compact(self) -> "Aggregate":
        """The form that travels."""
        rows = {k: v.compact() for k, v in self.rows.items()}
        return Aggregate(rows, self.dense, self.scalars, self.peak)


ZERO = Aggregate({}, {}, {}, {})


def merge(a: Aggregate, b: Aggregate) -> Aggregate:
    """a + b. Raises `AggregateOverflowError` before int64 could wrap."""
    peak = {k: fixed_point.check(v) for k, v in _add(a.peak, b.peak).items()}
    rows = {k: _merge_rows(a.rows.get(k), b.rows.get(k)) for k in sorted(a.rows.keys() | b.rows.keys())}
    return Aggregate(rows, _add_arrays(a.dense, b.dense), _add(a.scalars, b.scalars), peak)


def _merge_rows(a: RowSum | None, b: RowSum | None) -> RowSum:
    if a is None or b is None:
        only = a or b
        assert only is not None
        return only
    if b.ids is None:
        a, b = b, a
    total = a.dense().copy() if a.ids is None else a.dense()
    if b.ids is None:
        total += b.values
    else:
        total[b.ids] += b.values
    return RowSum(a.n_rows, None, total)


def _add(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return {k: a.get(k, 0) + b.get(k, 0) for k in sorted(a.keys() | b.keys())}


def _add_arrays(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = dict(a)
    for k, v in b.items():
        out[k] = out[k] + v if k in out else v
    return out


def sum_rows(
    name: str,
    table: np.ndarray,
    trained: np.ndarray,
    rows: np.ndarray,
    row_ptr: np.ndarray,
    decay: np.ndarray,
    weight: np.ndarray,
) -> Aggregate:
    """The row uploads of C clients for one table, summed: they all started from `table` [M, ...], trained is
    [R, ...] flat over clients."""
    n_rows = len(table)
    out = np.zeros((n_rows, int(np.prod(trained.shape[1:], dtype=np.int64))), np.int64)
    peak = add_row_deltas(
        out, table.reshape(out.shape), rows, trained.reshape(len(trained), out.shape[1]), row_ptr, decay,
        weight.astype(np.float64), fixed_point.SCALE, float(fixed_point.LIMIT),
    )  # fmt: skip
    if peak < 0:
        raise _diverged(trained, weight)
    sums = RowSum(n_rows, None, out.reshape(n_rows, *trained.shape[1:]))
    factor = sum(fixed_point.quantise(weight * decay).tolist())
    scalars = {f"weight/{name}": sum(fixed_point.quantise(weight).tolist()), f"decay/{name}": factor}
    return Aggregate({name: sums}, {}, scalars, {name: fixed_point.check(int(peak))})


def sum_dense(name: str, base: np.ndarray, trained: np.ndarray, weight: np.ndarray) -> Aggregate:
    """The dense uploads of C clients: base [...], trained [C, ...]."""
    wide = weight.reshape(-1, *[1] * (trained.ndim - 1)).astype(np.float64)
    grid = fixed_point.quantise((trained.astype(np.float64) - base.astype(np.float64)) * wide)
    peak = sum(np.abs(grid).reshape(len(grid), -1).max(axis=1, initial=0).tolist()) if grid.size else 0
    scalars = {f"weight/{name}": sum(fixed_point.quantise(weight).tolist())}
    return Aggregate({}, {name: np.asarray(grid.sum(axis=0))}, scalars, {name: fixed_point.check(peak)})


def sum_scalars(values: Mapping[str, np.ndarray]) -> Aggregate:
    """One number per client and name, summed as Python integers, which cannot overflow."""
    return Aggregate({}, {}, {k: sum(fixed_point.quantise(v).tolist()) for k, v in values.items()}, {})


def _diverged(trained: np.ndarray, weight: np.ndarray) -> AggregateOverflowError:
    """The bound that failed: every client's weight times the largest value of all."""
    return fixed_point.overflow(float(np.abs(trained).max(initial=0.0)) * float(weight.sum()))


def mean_deltas(total: Aggregate) -> Arrays:
    """Weighted mean over clients of what they uploaded for each shared parameter, float64: changes against the decayed
    parameter, exactly 0 where nobody touched a row. Parameters that no client sent are left out."""
    grids = {**{k: v.dense() for k, v in total.rows.items()}, **total.dense}
    weights = {k: total.scalar(f"weight/{k}") for k in grids}
    return {k: fixed_point.restore(grid) / weights[k] for k, grid in grids.items() if weights[k] > 0}


def mean_decay(total: Aggregate, name: str) -> float:
    """Weighted mean of the clients' weight-decay factors for one shared parameter; exactly 1 without decay."""
    weight = total.scalars[f"weight/{name}"]
    return total.scalars.get(f"decay/{name}", weight) / weight


def weighted_mean(state: ServerState, total: Aggregate) -> ServerState:
    """FedAvg (McMahan et al., 2017): every shared parameter becomes the weighted mean of the clients' own."""
    deltas = mean_deltas(total)
    new = {k: (state.params[k] * mean_decay(total, k) + v).astype(np.float32) for k, v in deltas.items()}
    params = {**state.params, **new}
    return ServerState(state.round + 1, params, state.extra)
