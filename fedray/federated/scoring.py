"""Scores of every item for every client, block by block.

A method's kernel scores a block of clients at once, whose size may not matter to it; without one, each client's own
tables are put together and scored one by one.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Int

from fedray.federated.client_store import NEVER, ClientStore
from fedray.federated.kernels.linear import WIDTH
from fedray.federated.method import Method, Owned
from fedray.types import Arrays

GROUP = 16 * WIDTH


def score_clients(
    method: Method, store: ClientStore, params: Arrays, device: str = "cpu"
) -> Iterator[tuple[Int[np.ndarray, " k"], Float32[np.ndarray, "k M"]]]:
    """(positions, scores) for all clients, at most GROUP at a time.

    A client is scored with its private parameters and tables over the current broadcast. Where the method keeps
    tuned rows, with its own table: its touched rows, and for the others the broadcast of its last round; where it
    keeps whole tables, with those. A client that never trained has the current broadcast.
    """
    for base, who in by_base(store, method.parameters(params)):
        for i in range(0, len(who), GROUP):
            part = who[i : i + GROUP]
            blocks = [part[j : j + WIDTH] for j in range(0, len(part), WIDTH)]
            yield part, np.concatenate([_score_block(method, store, base, b, device) for b in blocks])


def by_base(store: ClientStore, params: Arrays) -> Iterator[tuple[Arrays, Int[np.ndarray, " k"]]]:
    """Tables, and the positions of the clients that score over them."""
    if store.tuned is None:
        yield params, np.arange(len(store.last_round))
        return
    for round_ in np.unique(store.last_round):
        base = params if round_ == NEVER else {**params, **store.bases[int(round_)]}
        yield base, np.flatnonzero(store.last_round == round_)


def _score_block(
    method: Method, store: ClientStore, base: Arrays, who: Int[np.ndarray, " k"], device: str
) -> Float32[np.ndarray, "k M"]:
    if method.kernel is not None and device == "cpu":
        return method.kernel.score(base, owned(store, who, base))
    return np.stack([_score_one(method, store, base, int(c), device) for c in who])


def owned(store: ClientStore, who: Int[np.ndarray, " k"], base: Arrays) -> Owned:
    """What the clients at `who` own."""
    scale = {} if store.tuned is None else {k: v[who] for k, v in store.tuned.scale.items()}
    whole = {k: v[who] for k, v in store.whole.items()}
    for c in np.flatnonzero(store.last_round[who] == NEVER):
        for k in whole:
            whole[k][c] = base[k]
    own = {k: v[who] for k, v in store.private.items()}
    shrunk = {k: v for k, v in scale.items() if np.any(v != 1.0)}
    return Owned(who, own, store.tuned, shrunk, store.own, whole)


def _score_one(method: Method, store: ClientStore, base: Arrays, c: int, device: str) -> Float32[np.ndarray, " M"]:
    own = {**base, **own_tables(store, base, c), **{k: v[c] for k, v in store.private.items()}}
    # a copy each: a product may depend on the alignment of what it reads
    params = {k: torch.tensor(v, device=device) for k, v in own.items()}
    return method.score(params).cpu().numpy()


def own_tables(store: ClientStore, base: Arrays, c: int) -> Arrays:
    """Every item table that client c has of its own, in full."""
    out = {k: v.table(c) for k, v in store.own.items()}
    if store.last_round[c] == NEVER:
        return out
    out |= {k: v[c] for k, v in store.whole.items()}
    if store.tuned is not None:
        rows = slice(store.tuned.ptr[c], store.tuned.ptr[c + 1])
        for k, v in store.tuned.values.items():
            out[k] = base[k] * np.float32(store.tuned.scale[k][c])
            out[k][store.tuned.rows[rows]] = v[rows]
    return out
