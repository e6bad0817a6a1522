"""What the kernels on rows that a router mixes of views share: tables and parameters in, the client's rows at their
start, all items of one client for scoring.

Views stay as they came down for a round and the steps they would make are summed (`LocalPlan.fixed`), or, where a
client tunes its own copies, move. A client's matrix products read and write buffers that are the same for every
client, so they cannot depend on who its neighbours are.
"""

from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float32

from fedray.federated.kernels import router
from fedray.federated.kernels.losses import FAST
from fedray.federated.kernels.tower import flat_parameters
from fedray.federated.local import LocalStart
from fedray.federated.method import Owned, Routing
from fedray.types import Arrays


class Mixed(NamedTuple):
    """What makes K clients' rows: the views [J, M, d], times factor [K] where a client has no tuned row of its own
    (values [J, R, d], in the store's order; ptr empty: nobody has), and the routers [K, P]."""

    table: Float32[np.ndarray, "J M d"]
    thetas: Float32[np.ndarray, "K P"]
    factor: Float32[np.ndarray, " K"]
    position: np.ndarray
    ptr: np.ndarray
    rows: np.ndarray
    values: Float32[np.ndarray, "J R d"]


def stacked(tables: Arrays, names: tuple[str, ...]) -> Float32[np.ndarray, "J M d"]:
    """The tables of these names."""
    return np.stack([tables[k] for k in names])


def views_of(routing: Routing, start: LocalStart) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(views [J, M, d], the rows of clients in them [R], room for what becomes of those [J, R, d])"""
    table, index = stacked(start.tables, routing.views), start.index[routing.views[0]]
    return table, index, np.empty((len(table), len(index), table.shape[2]), np.float32)


def mixed(routing: Routing, shared: Arrays, owned: Owned) -> Mixed:
    """What scoring reads."""
    n, table = len(owned.position), stacked(shared, routing.views)
    theta = flat_parameters([owned.private[k] for k in routing.parameters], n)
    ptr, rows, values = np.zeros(0, np.int64), np.zeros(0, np.int32), table[:, :0].copy()
    if owned.tuned is not None:
        ptr, rows, values = owned.tuned.ptr, owned.tuned.rows, stacked(owned.tuned.values, routing.views)
    return Mixed(table, theta, factor_of(owned, routing.views[0]), owned.position, ptr, rows, values)


def factor_of(owned: Owned, table: str) -> Float32[np.ndarray, " K"]:
    """What clients' untuned rows of a table are times the shared ones."""
    factor: np.ndarray = owned.scale.get(table, np.ones(len(owned.position))).astype(np.float32)
    return factor


@numba.njit(cache=True)
def start_rows(rows: np.ndarray, table: np.ndarray, index: np.ndarray, lo: int, hi: int, fixed: bool) -> None:
    """rows[:, lo:hi] = the views of these items, or 0 where their steps are to be summed."""
    for j in range(len(rows)):
        for r in range(lo, hi):
            if fixed:
                rows[j, r] = 0
            else:
                rows[j, r] = table[j, index[r]]


@numba.njit(cache=True)
def take_batch(
    item: np.ndarray, label: np.ndarray, samples: np.ndarray, lo: int, base: int, at: np.ndarray, y: np.ndarray
) -> None:
    """Row numbers and labels of a client's samples: its first sample is number lo, its first row number base."""
    for i in range(len(samples)):
        at[i], y[i] = base + item[lo + samples[i]], label[lo + samples[i]]


@numba.njit(cache=True)
def places(index: np.ndarray, at: np.ndarray, fixed: bool, where: np.ndarray) -> None:
    """Where the views of the batch are read: in the table if they are fixed, else in the client's rows."""
    for i in range(len(at)):
        where[i] = index[at[i]] if fixed else at[i]


@numba.njit(cache=True, fastmath=FAST)
def shrink_rows(rows: np.ndarray, lo: int, hi: int, keep: np.float32) -> None:
    """rows[:, lo:hi] *= keep."""
    for j in range(len(rows)):
        for r in range(lo, hi):
            row = rows[j, r]
            for t in range(len(row)):
                row[t] *= keep


@numba.njit(cache=True, fastmath=FAST)
def step_rows(rows: np.ndarray, at: np.ndarray, grad: np.ndarray, rate: np.float32) -> None:
    """rows[at] -= rate grad, in the order of the samples."""
    for i in range(len(at)):
        row, g = rows[at[i]], grad[i]
        for t in range(len(g)):
            row[t] -= rate * g[t]


@numba.njit(cache=True, fastmath=FAST)
def mix_all(v: Mixed, k: int, theta: np.ndarray, kind: int, b: router.Buffers) -> None:
    """b.z = the mixtures of all items for client k of K; theta: its router's parameters, copied here first."""
    theta[:] = v.thetas[k]
    c, factor = v.position[k], v.factor[k]
    for j in range(len(v.table)):
        for i in range(v.table.shape[1]):
            row, to = v.table[j, i], b.x[i, j]
            for t in range(len(row)):
                to[t] = factor * row[t]
    if len(v.ptr):
        for j in range(len(v.table)):
            for r in range(v.ptr[c], v.ptr[c + 1]):
                b.x[v.rows[r], j] = v.values[j, r]
    router.fuse(theta, kind, b)
