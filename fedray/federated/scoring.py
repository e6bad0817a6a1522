"""Scores of every item for every client, block by block.

Blocks have one fixed width, padded, so that a matrix product has the same shape however clients are packed. Linear
heads take one matrix product and a compiled overlay; any other method goes through its vmapped `score`.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch.func import vmap

from fedray.data.blocks import bucket
from fedray.federated.client_store import NEVER, ClientStore, TunedRows
from fedray.federated.kernels import overlay_linear
from fedray.federated.method import Method
from fedray.types import Arrays, Params

WIDTH = 64
GROUP = 16 * WIDTH


def score_clients(
    method: Method, store: ClientStore, params: Arrays, device: str = "cpu"
) -> Iterator[tuple[Int[np.ndarray, " k"], Float32[np.ndarray, "k M"]]]:
    """(positions, scores) for all clients, at most GROUP at a time.

    Where the method keeps tuned rows, a client is scored with its own table: its touched rows, and for the others
    the broadcast of its last round. A client that never trained has the current broadcast.
    """
    for base, who in _by_base(store, params):
        shared = {k: torch.from_numpy(v).to(device) for k, v in base.items()}
        for i in range(0, len(who), GROUP):
            part = who[i : i + GROUP]
            blocks = [part[j : j + WIDTH] for j in range(0, len(part), WIDTH)]
            yield part, np.concatenate([_score_block(method, store, shared, b, device) for b in blocks])


def _by_base(store: ClientStore, params: Arrays) -> Iterator[tuple[Arrays, Int[np.ndarray, " k"]]]:
    if store.tuned is None:
        yield params, np.arange(len(store.last_round))
        return
    for round_ in np.unique(store.last_round):
        base = params if round_ == NEVER else {**params, **store.bases[int(round_)]}
        yield base, np.flatnonzero(store.last_round == round_)


def _score_block(
    method: Method, store: ClientStore, shared: Params, who: np.ndarray, device: str
) -> Float32[np.ndarray, "k M"]:
    padded = np.concatenate([who, np.full(WIDTH - len(who), who[0])])
    private = {k: torch.from_numpy(store.private[k][padded]).to(device) for k in method.private}
    scale = {} if store.tuned is None else {k: v[padded] for k, v in store.tuned.scale.items()}
    whole = _linear if method.linear_head else _vmapped
    out = whole(method, private, shared, _factors(scale, device))[: len(who)].cpu().numpy()
    if store.tuned is None:
        return out
    if method.linear_head:
        table, weight, bias = method.linear_head
        own, tuned = store.private, store.tuned
        overlay_linear(out, who, tuned.ptr, tuned.rows, tuned.values[table], own[weight], own[bias])
    else:
        _overlay(method, store, shared, who, out)
    return out


def _factors(scale: Arrays, device: str) -> Params:
    """Weight-decay factors of untouched rows [C]; none where all are 1."""
    shrunk = {k: v for k, v in scale.items() if np.any(v != 1.0)}
    return {k: torch.from_numpy(v.astype(np.float32)).to(device) for k, v in shrunk.items()}


def _linear(method: Method, private: Params, shared: Params, factors: Params) -> torch.Tensor:
    assert method.linear_head is not None
    table, weight, bias = method.linear_head
    scores = private[weight] @ shared[table].T
    if table in factors:
        scores = scores * factors[table][:, None]
    return scores + private[bias][:, None]


def _vmapped(method: Method, private: Params, shared: Params, factors: Params) -> torch.Tensor:
    def one(own: Params, factor: Params) -> torch.Tensor:
        return method.score({**shared, **{k: shared[k] * f for k, f in factor.items()}, **own})

    if not factors:
        return vmap(lambda own: one(own, {}))(private)
    # one client at a time: a shrunk table per client would be WIDTH tables at once
    rows = [({k: v[c] for k, v in private.items()}, {k: f[c] for k, f in factors.items()}) for c in range(WIDTH)]
    return torch.stack([one(own, factor) for own, factor in rows])


def _overlay(method: Method, store: ClientStore, shared: Params, who: np.ndarray, out: np.ndarray) -> None:
    """Write the scores of the clients' own tuned rows over those of the base table, by padded size."""
    assert store.tuned is not None
    sizes = store.tuned.ptr[who + 1] - store.tuned.ptr[who]
    buckets = np.array([bucket(n) if n else 0 for n in sizes])
    for size in np.unique(buckets[buckets > 0]):
        local = np.flatnonzero(buckets == size)
        scores, rows, columns = _own_scores(method, store.private, store.tuned, shared, who[local], int(size))
        out[local[rows], columns] = scores


def _own_scores(
    method: Method, private: Arrays, tuned: TunedRows, shared: Params, clients: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of the tuned rows of clients with at most `size` of them: (score, position in `clients`, item)."""
    first, column = tuned.ptr[clients][:, None], np.arange(size)
    inside = column < (tuned.ptr[clients + 1] - tuned.ptr[clients])[:, None]
    flat = np.where(inside, first + column, first)
    fill = np.concatenate([np.arange(len(clients)), np.zeros(WIDTH - len(clients), np.int64)])
    device = next(iter(shared.values())).device
    own = {k: torch.from_numpy(private[k][clients[fill]]).to(device) for k in method.private}
    own |= {k: torch.from_numpy(v[flat[fill]]).to(device) for k, v in tuned.values.items()}
    scores = vmap(lambda mine: method.score({**shared, **mine}))(own)[: len(clients)].cpu().numpy()
    rows, columns = np.nonzero(inside)
    return scores[rows, columns], rows, tuned.rows[flat[rows, columns]]
