"""Which updates of a round are taken: bad ones are refused client by client, before anything is summed or kept.

An update is all that a client's training came to: what is sent (row and dense deltas, tables that are collected) and
what the client keeps (private parameters and rows, its loss). It is refused, by the first of these that holds, if

    shape          it does not have the shapes that the method declares. Clients are stacked, so one such client cannot
                   be told from the others of its host: all of them are refused
    rows           its rows are not item ids in strictly ascending order
    not_finite     there is NaN or infinity in it
    out_of_range   a number, weighted as it is summed, does not fit the fixed-point grid (2^30, see `fixed_point`)
    norm           the L2 norm of its deltas, all tables together, is above `train.max_update_norm`

and its client is then as if it had not taken part in the round. Deltas are most of the numbers, and the sum reads them
anyway and refuses NaN and what is out of range: they are measured here only where it did (to tell whose they were),
under a norm, and where no sum looks at them.

What is made of these numbers on the host, vectors for grouping and whole tables, is finite and small because they are.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from fedray import fixed_point
from fedray.data.blocks import RoundSamples
from fedray.errors import AggregateOverflowError
from fedray.federated.aggregate import Aggregate
from fedray.federated.kernels.rows import ascending, update_sizes
from fedray.federated.local import LocalResult, LocalStart
from fedray.federated.method import Method
from fedray.federated.rejections import NAMED, NORM, NOT_FINITE, OUT_OF_RANGE, ROWS, SHAPE, Refused, Rejected
from fedray.federated.uploads import base_of, sum_uploads
from fedray.types import Arrays, Broadcast

Verdict = Mapping[str, Bool[np.ndarray, " k"]]
"""Reason -> the clients it holds for; each client has one reason at most."""


class Sizes(NamedTuple):
    """largest [k]: the largest |number| of each client, infinite where one is not finite. square [k]: squared norm."""

    largest: Float[np.ndarray, " k"]
    square: Float[np.ndarray, " k"]


def summed(
    method: Method,
    bound: float,
    broadcast: Broadcast,
    start: LocalStart,
    samples: RoundSamples,
    result: LocalResult,
    keys: UInt64[np.ndarray, " k"],
) -> tuple[Aggregate | None, Rejected, Bool[np.ndarray, " k"]]:
    """The exact sum of all uploads, or, where some are refused, None; and who is refused, and who is not. bound:
    `train.max_update_norm`. Raises `AggregateOverflowError` where the clients fit one by one and their sum does not."""
    said = next(misshapen(method, start, samples, result), "")
    if said:
        every = np.ones(len(samples.client), np.bool_)
        return None, refused(samples.client, {SHAPE: every}, said), ~every
    trusted = left_to_the_sum(method, bound, samples)
    verdict = judged(method, bound, broadcast, samples, result, trusted)
    overflow: AggregateOverflowError | None = None
    if not _any(verdict):
        try:
            return sum_uploads(method, broadcast, samples, result, keys), {}, ~_refused(verdict)
        except AggregateOverflowError as error:
            overflow = error
    if trusted:
        verdict = judged(method, bound, broadcast, samples, result, ())
    if overflow is not None and not _any(verdict):
        raise overflow
    return None, refused(samples.client, verdict), ~_refused(verdict)


def left_to_the_sum(method: Method, bound: float, samples: RoundSamples) -> tuple[str, ...]:
    """Parameters whose deltas the sum looks at, number by number: not what is clipped before, or weighs nothing."""
    clips = method.noise is not None and method.noise.clip > 0
    if bound or clips or not (method.weight(samples.n_samples()) > 0).all():
        return ()
    return tuple(k for k in (*method.shared_rows, *method.shared_dense) if k not in method.collects)


def judged(
    method: Method,
    bound: float,
    broadcast: Broadcast,
    samples: RoundSamples,
    result: LocalResult,
    trusted: tuple[str, ...] = (),
) -> Verdict:
    """Who is refused for what, all shapes being right. trusted: parameters whose deltas are not measured here."""
    n_items = _n_items(method, broadcast, samples)
    unordered = ~ascending(samples.row_ptr, samples.rows, n_items)
    if unordered.any():
        samples = samples._replace(rows=np.clip(samples.rows, 0, n_items - 1))  # measured all the same
    weight = np.maximum(method.weight(samples.n_samples()), 1).astype(np.float64)
    sent = list(_sent(method, base_of(method, broadcast), samples, result, trusted))
    largest = [s.largest * weight for s in sent] + [s.largest for s in _kept(method, samples, result)]
    largest += [np.abs(result.loss.astype(np.float64))]
    largest += [np.abs(v) * weight for v in (*result.decay.values(), *result.toward.values())]
    finite = np.all([np.isfinite(v) for v in largest], axis=0) & ~_infinite_ratio(method, result)
    small = np.all([np.rint(v * fixed_point.SCALE) < fixed_point.LIMIT for v in largest], axis=0)
    near = np.sqrt(sum((s.square for s in sent), np.zeros(len(weight)))) <= bound if bound else np.ones_like(finite)
    return _first({ROWS: unordered, NOT_FINITE: ~finite, OUT_OF_RANGE: ~small, NORM: ~near})


def _n_items(method: Method, broadcast: Broadcast, samples: RoundSamples) -> int:
    """The length of any shared item table."""
    return len(broadcast.params[method.shared_rows[0]])


def _first(holds: Verdict) -> Verdict:
    """Each client under the first reason that holds for it."""
    out, before = dict[str, np.ndarray](), np.zeros_like(next(iter(holds.values())))
    for reason, clients in holds.items():
        out[reason] = clients & ~before
        before = before | clients
    return out


def _refused(verdict: Verdict) -> Bool[np.ndarray, " k"]:
    found: np.ndarray = np.any(list(verdict.values()), axis=0)
    return found


def _any(verdict: Verdict) -> bool:
    return any(v.any() for v in verdict.values())


def _sent(
    method: Method, base: Arrays, samples: RoundSamples, result: LocalResult, trusted: tuple[str, ...]
) -> Iterator[Sizes]:
    """Of what each client sends, the deltas to what it was sent."""
    for k in method.shared_rows:
        if k not in trusted:
            yield _of_rows(base[k], result.decay[k], samples, result.rows[k])
    for k in method.shared_dense:
        if k not in trusted:
            yield _of_stack(base[k], result.dense[k])


def _kept(method: Method, samples: RoundSamples, result: LocalResult) -> Iterator[Sizes]:
    """Of what each client keeps for itself, the numbers as they are."""
    for k in method.private_rows:
        trained = result.rows[k]
        nothing, nowhere = np.zeros((1, *trained.shape[1:]), np.float32), np.zeros(len(trained), np.int32)
        yield _of_rows(nothing, np.ones(len(samples.client)), samples._replace(rows=nowhere), trained)
    for k in method.private:
        if method.guide is None or k != method.guide.ratio:
            yield _of_stack(np.zeros(result.private[k].shape[1:], np.float32), result.private[k])


def _infinite_ratio(method: Method, result: LocalResult) -> Bool[np.ndarray, " k"]:
    """The ratio of soft labels is NaN before there is one, and may be large."""
    if method.guide is None or not method.guide.ratio:
        return np.zeros(len(result.loss), np.bool_)
    found: np.ndarray = np.isinf(result.private[method.guide.ratio])
    return found


def _of_rows(table: np.ndarray, decay: np.ndarray, samples: RoundSamples, trained: np.ndarray) -> Sizes:
    """Of [R, ...] against the clients' rows of a table [M, ...], decayed."""
    flat = np.ascontiguousarray(trained).reshape(len(trained), int(np.prod(trained.shape[1:], dtype=np.int64)))
    return Sizes(*update_sizes(table.reshape(len(table), -1), samples.rows, flat, samples.row_ptr, decay))


def _of_stack(base: np.ndarray, trained: np.ndarray) -> Sizes:
    """Of [k, ...] against [...]: as tables of one row."""
    flat = np.ascontiguousarray(trained).reshape(len(trained), max(base.size, 0))
    each = np.arange(len(flat) + 1)
    return Sizes(*update_sizes(base.reshape(1, -1), np.zeros(len(flat), np.int32), flat, each, np.ones(len(flat))))


def misshapen(method: Method, start: LocalStart, samples: RoundSamples, result: LocalResult) -> Iterator[str]:
    """What does not have the shape it should have: all that follows relies on it."""
    n, total = len(samples.client), len(samples.rows)
    wanted = {k: (result.rows, (total, *start.tables[k].shape[1:])) for k in method.row_tables}
    wanted |= {k: (result.dense, start.dense[k].shape) for k in method.shared_dense}
    wanted |= {k: (result.private, start.private[k].shape) for k in method.private}
    for k, (where, shape) in wanted.items():
        if k not in where or where[k].shape != shape or where[k].dtype != np.float32:
            yield f"{k} is {_described(where.get(k))}, expected {shape} float32"
    each = {"loss": result.loss, **result.decay, **result.toward}
    yield from (f"{k} is {_described(v)}, expected {(n,)}" for k, v in each.items() if v.shape != (n,))
    ends = samples.row_ptr[[0, -1]].tolist()
    if len(samples.row_ptr) != n + 1 or ends != [0, total] or (samples.n_rows() < 0).any():
        yield f"rows of {len(samples.row_ptr) - 1} clients from {ends[0]} to {ends[1]}, expected {n}, 0 to {total}"


def _described(array: np.ndarray | None) -> str:
    return "missing" if array is None else f"{array.shape} {array.dtype}"


def refused(client: Int[np.ndarray, " k"], verdict: Verdict, found: str = "") -> Rejected:
    """The verdict as it is reported."""
    ids = {reason: np.sort(client[who]).tolist() for reason, who in verdict.items() if who.any()}
    return {reason: Refused(len(who), tuple(who[:NAMED]), found) for reason, who in ids.items()}
