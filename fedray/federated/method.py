"""What a federated recommender is: a named tuple of pure functions. Read after `rounds.py`.

A backbone makes one; a plug-in takes one and returns another, so plug-ins compose. Functions on parameters are
written for ONE client; the block trainer vectorises them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from fedray.federated.aggregate import Aggregate
from fedray.types import Arrays, Params, ServerState

Phase = Mapping[str, float]
"""One update of a local step: parameter name -> learning rate. Parameters not named stay as they are."""


class Batch(NamedTuple):
    """One local step's samples of one client; `item` are positions in the client's rows."""

    item: Int[torch.Tensor, "*C B"]
    label: Float[torch.Tensor, "*C B"]
    mask: Bool[torch.Tensor, "*C B"]


class Method(NamedTuple):
    """A federated method.

    name: as in the table, e.g. `dualper(fcf)`.
    init_server: seed -> shared parameters.
    init_clients: (seed, client ids [n]) -> private parameters, each [n, ...].
    shared_rows: shared item tables [M, ...]; a client trains the rows it touches and uploads their deltas.
    shared_dense: shared parameters trained and uploaded whole.
    private: parameters that never leave the client.
    local_loss: (params of one client, Batch) -> mean loss of the batch's samples. It reads row tables at `batch.item`
      only: the trainer hands it the rows of the batch.
    phases: round -> the updates of one local step, in turn.
    weight: samples per client [n] -> aggregation weight [n] (a client without samples weighs 0).
    server_step: (ServerState, Aggregate) -> the next ServerState.
    score: params of one client -> a score per row of its item tables.
    tuned: the row tables whose locally trained rows the client keeps and scores with (its own table); the
      others are scored from the current broadcast.
    linear_head: the parameters are (item table, head weight, head bias) with the loss of `models.linear`:
      the compiled trainer may take the place of the vmapped loss.
    """

    name: str
    init_server: Callable[[int], Arrays]
    init_clients: Callable[[int, Int[np.ndarray, " n"]], Arrays]
    shared_rows: tuple[str, ...]
    shared_dense: tuple[str, ...]
    private: tuple[str, ...]
    local_loss: Callable[[Params, Batch], Float[torch.Tensor, ""]]
    phases: Callable[[int], tuple[Phase, ...]]
    weight: Callable[[Int[np.ndarray, " n"]], Int[np.ndarray, " n"]]
    server_step: Callable[[ServerState, Aggregate], ServerState]
    score: Callable[[Params], Float[torch.Tensor, " rows"]]
    tuned: tuple[str, ...] = ()
    linear_head: tuple[str, str, str] | None = None
