"""What leaves a host after local training: the sum of its clients' uploads, after clipping and noise where a method
asks for them. What the clients keep for themselves stays as trained."""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

import numpy as np
from jaxtyping import Float, Int, UInt64

from fedray import fixed_point, seeding
from fedray.data.blocks import RoundSamples
from fedray.federated.aggregate import ZERO, Aggregate, RowSum, merge, sum_dense, sum_rows, sum_scalars
from fedray.federated.grouping import sketched
from fedray.federated.kernels.noise import add_noise, add_noise_sums, clip_rows, delta_norms
from fedray.federated.local import LocalResult
from fedray.federated.method import VECTOR, Grouping, Method, Uploads
from fedray.types import Arrays, Broadcast


def sum_uploads(
    method: Method, broadcast: Broadcast, samples: RoundSamples, result: LocalResult, keys: UInt64[np.ndarray, " k"]
) -> Aggregate:
    """All uploads of the clients as one exact sum: declared tables, weights and losses, nothing private.

    `keys`: of each client's noise this round (see `noise_keys`). Tables that a method collects are not in the sum.
    """
    weight, n = method.weight(samples.n_samples()), samples.n_samples()
    sent, base = result, base_of(method, broadcast)
    summed = [k for k in method.shared_rows if k not in method.collects]
    if method.noise and method.noise.clip:
        sent = clipped(method, summed, base, samples, result)
    parts = [sum_rows(k, base[k], sent.rows[k], samples.rows, samples.row_ptr, result.decay[k], weight) for k in summed]
    parts += [sum_dense(k, base[k], sent.dense[k], weight) for k in method.shared_dense]
    losses = {
        "loss": result.loss.astype(np.float64),
        "clients": np.ones(len(n)),
        "samples": n.astype(np.float64),
    }
    total = reduce(merge, parts, sum_scalars(losses))
    if method.noise and method.noise.scale:
        total = merge(total, noise_sum(method, summed, base, keys, weight))
    return total


def vectors_of(method: Method, grouping: Grouping, seed: int, samples: RoundSamples, result: LocalResult) -> Uploads:
    """Each client's trained score function as one vector [k, p], or so many random projections of it."""
    parts = [trained_of(method, k, result) for k in grouping.vector]
    flat = np.concatenate([v.reshape(len(samples.client), -1) for v in parts], axis=1)
    sent = sketched(flat, grouping.sketch, seed) if grouping.sketch else flat
    return Uploads(samples.client, {VECTOR: sent})


def trained_of(method: Method, name: str, result: LocalResult) -> np.ndarray:
    """[k, ...]: what the clients have of a parameter after training."""
    return result.private[name] if name in method.private else result.dense[name]


def sum_groups(
    method: Method,
    grouping: Grouping,
    broadcast: Broadcast,
    samples: RoundSamples,
    result: LocalResult,
    labels: Int[np.ndarray, " k"],
) -> tuple[Aggregate, ...]:
    """By group, the exact sums of the clients' item tables and of what the server asks the mean of; all weigh 1."""
    base = base_of(method, broadcast)
    return tuple(
        _sum_members(method, grouping, base, samples, result, (labels == g).astype(np.int64))
        for g in range(grouping.groups)
    )


def _sum_members(
    method: Method, grouping: Grouping, base: Arrays, samples: RoundSamples, result: LocalResult, member: np.ndarray
) -> Aggregate:
    if not member.any():
        return ZERO
    parts = [
        sum_rows(k, base[k], result.rows[k], samples.rows, samples.row_ptr, result.decay[k], member)
        for k in grouping.tables
    ]
    for k in grouping.means:
        trained = trained_of(method, k, result)
        parts.append(sum_dense(k, np.zeros(trained.shape[1:], np.float32), trained, member))
    return reduce(merge, parts, ZERO).compact()


def grouping_bytes(method: Method, grouping: Grouping, vectors: Uploads, result: LocalResult) -> int:
    """What grouping adds to the uploads, as 4-byte numbers: the vector where it is sketched, else its private part
    (the rest is uploaded anyway), and private parameters that the server asks the mean of beside it."""
    n = len(vectors.client)
    private = {k: result.private[k].size for k in (*grouping.vector, *grouping.means) if k in method.private}
    vector = vectors.tables[VECTOR].size if grouping.sketch else sum(private.get(k, 0) for k in grouping.vector)
    beside = [k for k in grouping.means if k in private and (grouping.sketch or k not in grouping.vector)]
    return 4 * (vector + sum(private[k] for k in beside)) if n else 0


def base_of(method: Method, broadcast: Broadcast) -> Arrays:
    """What an upload is the difference to: the broadcast, and nothing at all for a table that is uploaded as steps."""
    return {k: np.zeros_like(v) if k in method.fixed else v for k, v in broadcast.params.items()}


def noise_keys(seed: int, round_: int, client: np.ndarray) -> UInt64[np.ndarray, " k"]:
    """Where each client's noise of the round comes from."""
    return seeding.keys(seed, "noise", round_, client)


def clipped(
    method: Method, tables: list[str], base: Mapping[str, np.ndarray], samples: RoundSamples, result: LocalResult
) -> LocalResult:
    """`result` as it is sent: each client's whole update, all tables together, scaled to the L2 norm `clip` at most."""
    assert method.noise is not None
    rows = [(k, base[k], samples.rows, result.rows[k], samples.row_ptr, result.decay[k]) for k in tables]
    square = sum((delta_norms(*r[1:]) for r in rows), np.zeros(len(samples.client)))
    deltas = {k: result.dense[k].astype(np.float64) - base[k] for k in method.shared_dense}
    square = square + sum((v.reshape(len(v), -1) ** 2).sum(axis=1) for v in deltas.values())
    shrink = np.minimum(1.0, method.noise.clip / np.maximum(np.sqrt(square), 1e-300))
    dense = {k: (base[k] + v * _wide(shrink, v)).astype(np.float32) for k, v in deltas.items()}
    return replace(result, rows={r[0]: clip_rows(*r[1:], shrink) for r in rows}, dense=dense)


def _wide(x: Float[np.ndarray, " k"], like: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *[1] * (like.ndim - 1))


def noise_sum(
    method: Method,
    tables: list[str],
    base: Mapping[str, np.ndarray],
    keys: UInt64[np.ndarray, " k"],
    weight: np.ndarray,
) -> Aggregate:
    """The sum of the clients' noise on every number they send, weighted as their updates are."""
    assert method.noise is not None
    first, total = 0, ZERO
    for k in (*tables, *method.shared_dense):
        out = np.zeros(base[k].size, np.int64)
        peak = add_noise_sums(
            out, keys, first, weight.astype(np.float64), method.noise.scale, fixed_point.SCALE, float(fixed_point.LIMIT)
        )
        if peak < 0:
            raise fixed_point.overflow(method.noise.scale * float(weight.sum()))
        grid, peaks = out.reshape(base[k].shape), {k: fixed_point.check(int(peak))}
        rows = {k: RowSum(len(grid), None, grid)} if k in tables else {}
        total = merge(total, Aggregate(rows, {} if rows else {k: grid}, {}, peaks))
        first += out.size
    return total


def whole_uploads(method: Method, whole: Arrays, client: np.ndarray, keys: UInt64[np.ndarray, " k"]) -> Uploads:
    """The collected tables as they are sent; with noise, a noisy copy."""
    if method.noise is None or not method.noise.scale:
        return Uploads(client, whole)
    sent, first = {}, 0
    for k, v in whole.items():
        sent[k] = v.copy()
        add_noise(sent[k].reshape(len(v), -1), keys, first, method.noise.scale)
        first += v[0].size
    return Uploads(client, sent)


def upload_bytes(method: Method, broadcast: Broadcast, samples: RoundSamples, result: LocalResult) -> int:
    """What the clients of this host would send, as 4-byte numbers: the ids of the rows they touched, row and dense
    deltas, and under weight decay one factor per client and table. Noise lies on every row, so all rows travel; so
    they do where the method collects whole tables."""
    n = len(samples.client)
    all_rows = set(method.shared_rows if method.noise and method.noise.scale else method.collects)
    sparse = [k for k in method.shared_rows if k not in all_rows]
    factors = sum(n for k in method.shared_rows if k not in method.collects and np.any(result.decay[k] != 1.0))
    rows = (len(samples.rows) if sparse else 0) + sum(result.rows[k].size for k in sparse)
    full = n * sum(broadcast.params[k].size for k in all_rows)
    return 4 * (rows + full + factors + sum(result.dense[k].size for k in method.shared_dense))
