"""The coordinator as a Ray actor: rounds, cohort, server step, selection and checkpoints. It never sees an interaction.

The entrypoint owns every actor, asks for one round at a time and does the tracking: it is the process that has
the user's terminal, working directory and credentials, and it outlives a coordinator that dies. One that was started
again knows nothing: the entrypoint has it `resume` from the last checkpoint first.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch

from fedray.config import RunConfig
from fedray.errors import OutOfStepError
from fedray.federated.rounds import Outcome
from fedray.methods import build
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.coordinator import Coordinator
from fedray.runtime.dropping import DroppingExecutor
from fedray.runtime.executor import RayExecutor
from fedray.runtime.failures import dropping, most_client_restarts
from fedray.runtime.metrics import RunMetrics
from fedray.types import Arrays, Broadcast, RoundReport


class DriverActor:
    """One run's coordinator."""

    def __init__(self, config: RunConfig, checkpoints: Checkpoints | None = None) -> None:
        torch.set_num_threads(1)  # as everywhere: the bits of a product may depend on it
        self._about = config, checkpoints
        self._made: Coordinator | None = None
        self._metrics = RunMetrics(checkpoints.identity.run_id if checkpoints else config.name)

    def begin(
        self, actors: Sequence[Any], births: Sequence[Sequence[Any]], clients: np.ndarray, n_items: int, features: Any
    ) -> None:
        """Whose run this is (see `ClientActor.begin`). features: the items' content, or None."""
        config, checkpoints = self._about
        method = build(config, n_items, features)
        policy, about = dropping(config, len(clients)), (actors, clients, method, births, most_client_restarts(config))
        executor = DroppingExecutor(*about, policy) if policy else RayExecutor(*about)
        self._made = Coordinator(config, method, executor, checkpoints)

    @property
    def _coordinator(self) -> Coordinator:
        if self._made is None:
            raise OutOfStepError("the driver was started again and knows nothing", "begin() and resume() first")
        return self._made

    def step(self, after: int | None = None) -> tuple[RoundReport, bool]:
        """The round after so many (or whatever is the next), and whether it was the last."""
        if (here := self._coordinator.run.state.round) != (here if after is None else after):
            raise OutOfStepError(f"the driver is after round {here}", f"it to be after round {after}")
        report, last = self._coordinator.step()
        self._metrics.note(report)
        return report, last

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def commit(self) -> int:
        """A checkpoint of where the run is; its round."""
        return self._coordinator.commit()

    def resume(self, restarts: int) -> tuple[Sequence[RoundReport], bool]:
        """Back to the last checkpoint; see `Coordinator.resume`."""
        return self._coordinator.resume(restarts)

    def finish(self) -> Outcome:
        """The selected round's test metrics."""
        return self._coordinator.finish()

    def save(self, folder: str) -> tuple[Arrays, int, list[str]]:
        """Client files written by the actors; the selected round's shared parameters come back."""
        return self._coordinator.save(folder)

    def overhead(self, rounds_: int) -> float:
        """Mean seconds of an empty round: one put, one call per actor."""
        begun, params = time.perf_counter(), self._coordinator.run.broadcast.params
        for r in range(rounds_):
            self._coordinator.executor.nothing(Broadcast(-1 - r, dict(params)))
        return (time.perf_counter() - begun) / rounds_


Remote = ray.remote(DriverActor)
"""The actor class to place. Ray may repeat any request: a round is asked for by number, the others change nothing."""
