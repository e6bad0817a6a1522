"""The control that unmasks a leak: the same local training with the federation switched off.

Each client trains alone from the common start and keeps everything for itself. Without content features, a client
alone can know nothing of an item it has not met, so under an honest protocol this scores near chance; under one
whose training negatives spare the held-out items it scores HR@10 of 0.95.
"""

from functools import reduce

import numpy as np
import torch
from jaxtyping import Float32, Int

from fedray.errors import NonFiniteLossError
from fedray.evaluation.metrics import MetricSums
from fedray.federated.clients import ClientHost, measure, samples_of
from fedray.federated.kernels.linear import WIDTH
from fedray.federated.local import LocalStart
from fedray.federated.local_training import train_clients
from fedray.types import Arrays, Broadcast, Split

SPLITS: tuple[Split, ...] = ("valid", "test")


def local_only(host: ClientHost, first: Broadcast, rounds: int) -> dict[str, MetricSums]:
    """Metric sums of this host's clients after `rounds` rounds alone, from the broadcast before the first; all train in
    all rounds, on the CPU.

    A block of clients at a time, each with a whole table of its own, so memory stays at WIDTH tables.
    """
    blocks = [np.arange(i, min(i + WIDTH, len(host.data))) for i in range(0, len(host.data), WIDTH)]
    shared = host.method.parameters(first.params)
    found = [_block(host, who, shared, rounds) for who in blocks]
    return {s: reduce(MetricSums.merge, (f[s] for f in found), MetricSums.zero()) for s in SPLITS}


def _block(host: ClientHost, who: Int[np.ndarray, " k"], shared: Arrays, rounds: int) -> dict[str, MetricSums]:
    own = {k: np.repeat(v[None], len(who), axis=0) for k, v in shared.items()}
    own |= {k: np.repeat(v[None], len(who), axis=0) for k, v in host.method.init_private_rows(host.config.seed).items()}
    own |= host.method.init_clients(host.config.seed, host.data.client[who])
    for round_ in range(rounds):
        own = _train_alone(host, who, own, round_)
    tables = {k: torch.from_numpy(v) for k, v in own.items()}
    # one client at a time, each at the start of its own memory: a product may depend on its batch and alignment
    alone = ({k: v[i].clone() for k, v in tables.items()} for i in range(len(who)))
    scores = torch.stack([host.method.score(own) for own in alone]).numpy()
    return {split: measure(host, who, scores, split) for split in SPLITS}


def _train_alone(host: ClientHost, who: Int[np.ndarray, " k"], own: Arrays, round_: int) -> Arrays:
    method = host.method._replace(fixed=())  # there is no server to sum its steps for
    samples = samples_of(host, who, round_)
    if len(samples.rows) == 0:
        return own
    index = np.repeat(np.arange(len(who)), samples.n_rows()) * host.data.n_items + samples.rows
    start = LocalStart(
        {k: _flat(own[k]) for k in method.row_tables},
        dict.fromkeys(method.row_tables, index),
        {k: own[k] for k in method.shared_dense},
        {k: own[k] for k in method.private},
        {k: _flat(own[k])[index] for k in method.pull},
    )
    result = train_clients(method, host.config.train, round_, start, samples)
    require_finite(round_, samples.client, result.loss)
    new = {**own, **result.private, **result.dense}
    for k in method.row_tables:
        factor = (result.decay[k] + result.toward.get(k, 0.0)).astype(np.float32)  # its own table is its target
        if np.any(factor != 1.0):
            new[k] = own[k] * factor.reshape(-1, *[1] * (own[k].ndim - 1))
        _flat(new[k])[index] = result.rows[k]
    return new


def require_finite(round_: int, client: Int[np.ndarray, " k"], loss: Float32[np.ndarray, " k"]) -> None:
    """Nobody is refused here: a client that diverges alone ends the control, which is to say so."""
    who = client[~np.isfinite(loss)]
    if len(who):
        raise NonFiniteLossError(
            f"round {round_}: the loss of {len(who)} clients is not finite (clients {who[:5].tolist()} ...)",
            "finite losses",
            "Lower backbone.lr or the learning-rate scales.",
        )


def _flat(tables: np.ndarray) -> np.ndarray:
    """[C, M, ...] seen as [C M, ...]."""
    return tables.reshape(-1, *tables.shape[2:])
