"""What goes into a round of local training and what comes out; the trainers and kernels share these types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from fedray.types import Arrays, flat_index

Phase = Mapping[str, float]
"""One update of a local step: parameter name -> learning rate. Parameters not named stay as they are."""

Loss = Literal["bce", "bpr"]


class LocalPlan(NamedTuple):
    """The schedule of one round of local training.

    phases: the updates of a step, in turn. decay, private_decay: L2 on shared and on private parameters.
    step_decay: every learning rate is multiplied by it after each step. pull[table]: in every update of that table
    each of the client's rows z moves by -lr pull (z - target), target being the client's own (`LocalStart.target`).
    fixed: tables whose rows do not move; the steps they would make are summed instead, without decay.
    coefficients: of the method's loss in this round.
    """

    phases: tuple[Phase, ...]
    batch_size: int
    loss: Loss = "bce"
    decay: float = 0.0
    private_decay: float = 0.0
    step_decay: float = 1.0
    pull: Mapping[str, float] = {}
    coefficients: Mapping[str, float] = {}
    fixed: tuple[str, ...] = ()

    def rates(self, names: tuple[str, ...]) -> Float32[np.ndarray, "phases n"]:
        """Learning rate of each name in each phase; -1 where the phase leaves it alone."""
        return np.array([[p.get(k, -1.0) for k in names] for p in self.phases], np.float32)


class Soft(NamedTuple):
    """Soft labels of C clients (see `soft`).

    target [R]: the probability q of each touched row, flat like the rows of `LocalStart`. entropy [R]: q log q +
    (1 - q) log(1 - q). strength [C]: weight of the term, 0 for a client that has none. ratio [C]: running ratio of the
    client's loss to the term, NaN before its first batch. ema: what a ratio keeps of itself in a step; negative: there
    are no ratios, strength alone counts.
    """

    target: Float32[np.ndarray, " R"]
    entropy: Float32[np.ndarray, " R"]
    strength: Float32[np.ndarray, " C"]
    ratio: Float32[np.ndarray, " C"]
    ema: np.float32


@dataclass(frozen=True)
class LocalStart:
    """Where C clients start. Their touched rows, flat over clients, are `tables[name][index[name]]` [R, ...];
    `dense[name]` and `private[name]` are [C, ...] (dense ones are usually one array seen C times); `target[name]`
    [R, ...] are the rows that `LocalPlan.pull` pulls to; `soft` are labels beside their own."""

    tables: Arrays
    index: Mapping[str, Int[np.ndarray, " R"]]
    dense: Arrays
    private: Arrays
    target: Arrays = field(default_factory=dict)
    soft: Soft | None = None

    def rows(self, name: str) -> np.ndarray:
        """[R, ...], a copy."""
        return self.tables[name][self.index[name]]

    def labels(self, n: int) -> Soft:
        """The soft labels of its n clients as a kernel takes them, of strength 0 if there are none; the ratios are a
        copy."""
        if self.soft is not None:
            return self.soft._replace(ratio=self.soft.ratio.copy())
        rows, each = np.zeros(0, np.float32), np.zeros(n, np.float32)
        return Soft(rows, rows, each, each, np.float32(-1.0))


@dataclass(frozen=True)
class LocalResult:
    """What C clients have after local training.

    rows[name] [R, ...], of a fixed table the summed steps; private and dense as in `LocalStart`. An untouched row of
    client c became decay[name][c] row + toward[name][c] target. loss [C]: mean over the client's samples, before each
    step. ratio [C]: of the soft labels, as it is now.
    """

    rows: Arrays
    dense: Arrays
    private: Arrays
    decay: Arrays
    loss: Float32[np.ndarray, " C"]
    toward: Arrays = field(default_factory=dict)
    ratio: Float32[np.ndarray, " C"] | None = None

    def take(self, who: Int[np.ndarray, " k"], row_ptr: Int[np.ndarray, " C_plus_1"]) -> "LocalResult":
        """What the clients at positions `who` have, in that order; row_ptr: as all of them have their rows."""
        flat = flat_index(row_ptr, who)
        dense, private, decay, toward = (
            {k: v[who] for k, v in part.items()} for part in (self.dense, self.private, self.decay, self.toward)
        )
        ratio = None if self.ratio is None else self.ratio[who]
        rows = {k: v[flat] for k, v in self.rows.items()}
        return LocalResult(rows, dense, private, decay, self.loss[who], toward, ratio)
