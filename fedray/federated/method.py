"""What a federated recommender is: a named tuple of pure functions. Read after `rounds.py`.

A backbone makes one; a plug-in takes one and returns another, so plug-ins compose. Functions on parameters are
written for ONE client; the block trainer vectorises them.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int

from fedray.data.blocks import RoundSamples
from fedray.federated.aggregate import Aggregate, mean_deltas
from fedray.federated.client_store import OwnRows, TunedRows
from fedray.federated.local import LocalPlan, LocalResult, LocalStart, Phase
from fedray.types import Arrays, Broadcast, Params, ServerState

VECTOR = "vector"
"""Table of `Uploads` that describes clients to a server that groups them."""


class Batch(NamedTuple):
    """One local step's samples of one client; `item` are positions in the client's rows. Under the BPR loss places 2k
    and 2k + 1 are a pair, the positive first."""

    item: Int[torch.Tensor, "*C B"]
    label: Float[torch.Tensor, "*C B"]
    mask: Bool[torch.Tensor, "*C B"]


class Owned(NamedTuple):
    """What K clients own when they are scored.

    position: their places in the store. private [K, ...]. tuned: the store's tuned rows (or None); of other rows they
    have scale[table][k] times the shared row (a table not named: once). personal: the store's private tables by
    name. whole: tables that they keep in full, [K, M, ...].
    """

    position: Int[np.ndarray, " K"]
    private: Arrays
    tuned: TunedRows | None
    scale: Arrays
    personal: Mapping[str, OwnRows]
    whole: Arrays


class Kernel(NamedTuple):
    """Compiled stand-ins for the vmapped `local_loss` and `score`, on the CPU with SGD.

    train: as `local_training.train_clients`, less the factors of untouched rows. score: (shared tables and
    parameters, what K clients own) -> scores [K, M].
    """

    train: Callable[[LocalPlan, LocalStart, RoundSamples], LocalResult]
    score: Callable[[Arrays, Owned], Float32[np.ndarray, "K M"]]


class Routing(NamedTuple):
    """Item rows that a private router mixes of shared views, for a kernel: names of the views' tables and of the
    router's parameters (none for a single view), the width of its hidden layer, and its kind (`kernels.router.KINDS`).
    """

    views: tuple[str, ...]
    parameters: tuple[str, ...]
    width: int
    kind: int


class Uploads(NamedTuple):
    """Whole tables of the clients of a round, one by one: what a method that `collects` shows the server.

    client: ids, ascending. tables[name] [n, M, ...]: after training (and, if asked for, noise).
    """

    client: Int[np.ndarray, " n"]
    tables: Arrays


class Predictor(NamedTuple):
    """A backbone's score function apart from its item rows.

    names: its parameters, shared or private, less the user's own vector. reads: all that `logits` reads. head: the
    weight and bias of its last layer. logits: (those of one client, or means over several; item rows [M, d]) -> [M].
    """

    names: tuple[str, ...]
    reads: tuple[str, ...]
    head: tuple[str, str]
    logits: Callable[[Params, Float[torch.Tensor, "M d"]], Float[torch.Tensor, " M"]]


class Grouped(NamedTuple):
    """A round's clients (ids ascending) in groups, and what is known of each group.

    labels [n]: 0..G-1. sums: an `Aggregate` a group, every client weighing 1. broadcast: what they started from.
    uploads: the tables that the method collects, [n, M, ...]. vectors [n, p]: what they were
    grouped by, in rounds that are validated, and so may be selected and drawn.
    """

    client: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    sums: tuple[Aggregate, ...]
    broadcast: Broadcast
    uploads: Mapping[str, np.ndarray]
    vectors: Float32[np.ndarray, "n p"] | None

    def mean(self, g: int, names: tuple[str, ...]) -> Arrays:
        """Means over the clients of group g, which has some, of parameters that are summed by group."""
        return {k: v for k, v in mean_deltas(self.sums[g]).items() if k in names}


class Portrait(NamedTuple):
    """What the groups look like after a round.

    group [N]: that of each client by its id, -1: none. client [n], at [n, 2]: the round's clients on the plane in which
    their vectors differ most. share [2]: of the vectors' variance, what is along each of its axes. preference [G, M].
    """

    group: Int[np.ndarray, " N"]
    client: Int[np.ndarray, " n"]
    at: Float32[np.ndarray, "n 2"]
    share: Float32[np.ndarray, " 2"]
    preference: Float32[np.ndarray, "G M"]


class Grouping(NamedTuple):
    """The second half of a round, for a method whose server groups its clients.

    vector: parameters whose trained values, side by side, describe a client to the server; sketch: as so many random
    projections (0: as they are). tables: shared item tables that are summed by group. means: parameters, shared or
    private, whose trained values are. labels: (seed, state, the clients' vectors) -> the group of each. fitted: what
    the server makes of the groups. report: (state before, after) -> numbers about it. portrait: of a state.
    """

    groups: int
    vector: tuple[str, ...]
    sketch: int
    tables: tuple[str, ...]
    means: tuple[str, ...]
    labels: Callable[[int, ServerState, Uploads], Int[np.ndarray, " n"]]
    fitted: Callable[[int, ServerState, Grouped], ServerState]
    report: Callable[[ServerState, ServerState], Mapping[str, float]]
    portrait: Callable[[ServerState], Portrait]


class Noise(NamedTuple):
    """What is done to an upload before it leaves its client: its delta is scaled down to the L2 norm `clip` (0: as it
    is), then Laplace noise of this scale is added to every number of it, untouched rows included."""

    scale: float
    clip: float


class Traits(NamedTuple):
    """Numbers in [0, 1] that say what kind of client one is.

    of: params of one client -> its numbers, one a name. It is given the client's `private` parameters, and of the
    shared tables in `tables` the rows of its training items alone.
    """

    names: tuple[str, ...]
    tables: tuple[str, ...]
    private: tuple[str, ...]
    of: Callable[[Params], Float[torch.Tensor, " names"]]


class Guide(NamedTuple):
    """Soft labels for clients, which the server makes for groups of them (see `soft`).

    preference [G, M], group [N]: what they are called where they go down: a probability of each item, a group of each
    client by its id (-1, or an id that is not in it: none). They are no parameters, and a client needs one row and no
    groups. weight: round -> of the term; 0: none. ratio: the private number (NaN at first) that keeps the running ratio
    of loss to term; "": none, the weight alone counts. ema: what the ratio keeps of itself in a step.
    """

    preference: str
    group: str
    weight: Callable[[int], float]
    ratio: str = ""
    ema: float = 0.9


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
    logits: (the same) -> a logit per sample, those that `local_loss` is made of.
    phases: round -> the updates of one local step, in turn.
    weight: samples per client [n] -> aggregation weight [n] (a client without samples weighs 0).
    server_step: (ServerState, Aggregate) -> the next ServerState.
    score: params of one client -> a score per row of its item tables.
    tuned: the row tables whose locally trained rows the client keeps and scores with (its own table); the
      others are scored from the current broadcast.
    private_rows: item tables that never leave the client; it keeps the rows it ever touched.
    init_private_rows: seed -> their common start, each [M, ...].
    coefficients: round -> numbers that `local_loss` finds among its parameters (weights of its terms).
    step_decay: every learning rate is multiplied by it after each local step of a round.
    pull: table -> strength of the pull of all its rows to the client's own target (see `LocalPlan`).
    collects: shared tables that each client keeps whole and uploads whole; the server sees them one by one.
    personalise: (ServerState, Uploads) -> (the next ServerState, the targets of those clients [n, M, ...]), where the
      method collects.
    broadcast: server's parameters -> what goes down, where that is not all of them as they are. Once a round, so what
      all clients share (views of content, projections) is computed once. The names above are those that go down.
    fixed: shared item tables that stay as they came down for a whole round: the client adds up the steps it would make
      and uploads their sum (a gradient, accumulated), with no weight decay on them.
    item_input: what a plug-in that makes item rows does with its own: they replace the shared rows, or are added.
    within: a plug-in applied to the backbone inside this one, for those that belong there wherever they are named.
    predictor: the score function on item rows, where there is one.
    item_rows: (tables that go down) -> the rows [M, d] that the score function reads, as far as the server knows.
    grouping: a second half of each round, in which the server groups the clients.
    noise: what is done to uploads before they leave.
    guide: soft labels that clients train on beside their samples; needs `logits`.
    kernel: may take the place of the vmapped functions.
    routed: the kernel where a plug-in makes the item rows by a router.
    traits: what there is to tell of single clients: means and quantiles by round, each client's own once, at the end.
    ablations: server's parameters -> what would go down without one part of the item rows, by name (`without_text`).
      None where clients rank with copies of their own, on which what goes down has no say.
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
    private_rows: tuple[str, ...] = ()
    init_private_rows: Callable[[int], Arrays] = lambda seed: {}
    coefficients: Callable[[int], Mapping[str, float]] = lambda round_: {}
    step_decay: float = 1.0
    pull: Mapping[str, float] = {}
    collects: tuple[str, ...] = ()
    personalise: Callable[[ServerState, Uploads], tuple[ServerState, Arrays]] | None = None
    broadcast: Callable[[Arrays], Arrays] | None = None
    fixed: tuple[str, ...] = ()
    item_input: Literal["replaced", "added"] = "replaced"
    within: Callable[[Callable[["Method"], "Method"]], "Method"] | None = None
    predictor: Predictor | None = None
    item_rows: Callable[[Arrays], Float32[np.ndarray, "M d"]] = lambda tables: tables["item_embedding"]
    grouping: Grouping | None = None
    noise: Noise | None = None
    logits: Callable[[Params, Batch], Float[torch.Tensor, " B"]] | None = None
    guide: Guide | None = None
    kernel: Kernel | None = None
    routed: Callable[[Routing], Kernel] | None = None
    traits: Traits | None = None
    ablations: Callable[[Arrays], Mapping[str, Arrays]] | None = None

    def down(self, params: Arrays) -> Arrays:
        """What goes down to every client from the server's parameters."""
        return params if self.broadcast is None else self.broadcast(params)

    def parameters(self, down: Arrays) -> Arrays:
        """Of what goes down, what a client's model is made of: all but what its guide says."""
        aside = () if self.guide is None else (self.guide.preference, self.guide.group)
        return {k: v for k, v in down.items() if k not in aside}

    @property
    def row_tables(self) -> tuple[str, ...]:
        """Every item table a client trains, shared or private."""
        return self.shared_rows + self.private_rows
