"""What a host says of a round, and what the server looks at before it believes it.

A host has refused bad updates client by client (see `admission`); a report is all of the others together. So one that
cannot be the sum of uploads of its clients, or is of another round, is nobody's bad luck but a host that does not work:
it never reaches the sum, and the run ends.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from fedray import fixed_point
from fedray.errors import BadReportError
from fedray.federated import rejections
from fedray.federated.aggregate import Aggregate, RowSum
from fedray.federated.method import VECTOR, Method, Uploads
from fedray.federated.rejections import Rejected
from fedray.types import Broadcast

NO_ROUND = -1
"""Of what nobody reported."""


@dataclass(frozen=True)
class TrainReport:
    """What leaves a host after a round: one partial sum, never one table per client (but where the method collects
    tables, and says so: then `uploads` has a part per host; `vectors` has one where it groups clients).

    clients, bytes_up: of those whose updates were taken. rejected: the others, as if they had not taken part. round: of
    the broadcast that was trained from. An executor says of all hosts: dropped, selected clients whose host did not
    report; abandoned, so many that the round is nobody's.
    """

    total: Aggregate
    clients: int
    bytes_up: int
    seconds: dict[str, float]
    uploads: tuple[Uploads, ...] = ()
    vectors: tuple[Uploads, ...] = ()
    rejected: Rejected = field(default_factory=dict)
    round: int = NO_ROUND
    dropped: int = 0
    abandoned: bool = False


def check_report(
    method: Method, broadcast: Broadcast, client: Int[np.ndarray, " n"], report: TrainReport
) -> TrainReport:
    """The report of the host of these clients, as it is. Raises `BadReportError`."""
    for what in _faults(method, broadcast, client, report):
        where = f"round {broadcast.round}, the host of clients {client[: rejections.NAMED].tolist()}"
        mend = "The actor does not work as it should: start the run again, with --resume if there are checkpoints."
        raise BadReportError(f"its report has {what}", "what uploads of its clients come to", mend, where)
    return report


def _faults(method: Method, broadcast: Broadcast, client: Int[np.ndarray, " n"], report: TrainReport) -> Iterator[str]:
    if report.round != broadcast.round:
        yield f"round {report.round}"
    yield from _of_counts(client, report)
    rows = {k: broadcast.params[k].shape for k in method.shared_rows if k not in method.collects}
    dense = {k: broadcast.params[k].shape for k in method.shared_dense}
    yield from _of_sums(report, rows, dense)
    yield from _of_lists("uploads", report.uploads, {k: broadcast.params[k].shape for k in method.collects}, report)
    yield from _of_lists("vectors", report.vectors, {VECTOR: None} if method.grouping else {}, report)
    for part in (*report.uploads, *report.vectors):
        if not np.isin(part.client, client).all():
            yield "clients of another host"


def _of_counts(client: Int[np.ndarray, " n"], report: TrainReport) -> Iterator[str]:
    refused = [r.number for r in report.rejected.values()]
    if report.clients < 0 or min(refused, default=1) < 1 or report.clients + sum(refused) > len(client):
        yield f"{report.clients} clients and {sum(refused)} refused ones of {len(client)}"
    if not report.rejected.keys() <= set(rejections.REASONS):
        yield f"refusals for {sorted(report.rejected)}"
    if report.bytes_up < 0:
        yield f"{report.bytes_up} bytes"


def _of_sums(
    report: TrainReport, rows: Mapping[str, tuple[int, ...]], dense: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """The tables and shapes that the method declares, of so many clients; and no number above what they can sum to."""
    total, some = report.total, report.clients > 0
    if total.rows.keys() != (rows.keys() if some else set()) or total.dense.keys() != (dense.keys() if some else set()):
        yield f"sums of {sorted({*total.rows, *total.dense})}"
        return
    if total.scalars.get("clients", 0) != report.clients * (1 << fixed_point.BITS):
        yield f"losses of {total.scalar('clients'):g} clients where it trained {report.clients}"
    if total.peak.keys() != {*total.rows, *total.dense}:
        yield f"peaks of {sorted(total.peak)}"
        return
    for k, sums in total.rows.items():
        yield from _of_rows(k, sums, rows[k])
    values = {**{k: v.values for k, v in total.rows.items()}, **total.dense}
    for k, v in values.items():
        if k in dense and v.shape != dense[k]:
            yield f"{k} of shape {v.shape}, not {dense[k]}"
        if v.dtype != np.int64:
            yield f"{k} in {v.dtype}"
        elif not _size(v) <= total.peak[k] < fixed_point.LIMIT:
            yield f"{k} up to {_size(v) / fixed_point.SCALE:.3g} and a peak of {total.peak[k] / fixed_point.SCALE:.3g}"


def _of_rows(name: str, sums: RowSum, shape: tuple[int, ...]) -> Iterator[str]:
    n = shape[0] if sums.ids is None else len(sums.ids)
    if sums.n_rows != shape[0] or sums.values.shape != (n, *shape[1:]):
        yield f"{name} of shape {sums.values.shape} for {n} of {sums.n_rows} rows, of {shape}"
    ids = np.zeros(0, np.int64) if sums.ids is None else sums.ids
    if len(ids) and not (ids[0] >= 0 and ids[-1] < shape[0] and (np.diff(ids) > 0).all()):
        yield f"{name} at rows that are no ascending ids of {shape[0]}"


def _size(v: np.ndarray) -> int:
    """The largest |number|, as a Python integer: -2^63 has no positive twin."""
    return max(int(v.max(initial=0)), -int(v.min(initial=0)))


def _of_lists(
    what: str, parts: tuple[Uploads, ...], shapes: Mapping[str, tuple[int, ...] | None], report: TrainReport
) -> Iterator[str]:
    """One client after the other, each once, finite; shapes: of one client's, None: any vector."""
    if len(parts) != (1 if shapes and report.clients else 0):
        yield f"{len(parts)} lists of {what}"
        return
    for part in parts:
        if len(part.client) != report.clients or len(np.unique(part.client)) != report.clients:
            yield f"{what} of {len(part.client)} clients where it trained {report.clients}, each once"
        if part.tables.keys() != shapes.keys():
            yield f"{what} with {sorted(part.tables)}"
            return
        for k, shape in shapes.items():
            v = part.tables[k]
            if len(v) != len(part.client) or (v.ndim != 2 if shape is None else v.shape[1:] != shape):
                yield f"{what} with {k} of shape {v.shape}"
            elif not all(np.isfinite(one).all() for one in v):
                yield f"{what} with {k} that is not finite"
