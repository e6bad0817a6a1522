"""The coordinator as a Ray actor: rounds, cohort, server step and selection. It never sees an interaction.

The entrypoint owns every actor, asks for one round at a time and does the tracking: it is the process that has
the user's terminal, working directory and credentials, and it outlives a coordinator that dies.
"""

import time
from collections.abc import Sequence
from typing import Any

import ray
import torch

from fedray.config import RunConfig
from fedray.federated import rounds
from fedray.federated.rounds import Outcome
from fedray.methods import build
from fedray.runtime.executor import RayExecutor
from fedray.types import Arrays, Broadcast, ItemFeatures, RoundReport


class DriverActor:
    """One run's coordinator."""

    def __init__(
        self,
        config: RunConfig,
        actors: Sequence[Any],
        clients: Any,
        n_items: int,
        features: ItemFeatures | None = None,
    ) -> None:
        torch.set_num_threads(1)  # as everywhere: the bits of a product may depend on it
        self._executor = RayExecutor(actors, clients)
        self._run = rounds.start(config, build(config, n_items, features))

    def step(self) -> tuple[RoundReport, bool]:
        """One round, and whether it was the last."""
        self._run, report = rounds.step(self._run, self._executor)
        return report, rounds.finished(self._run)

    def finish(self) -> Outcome:
        """The selected round's test metrics."""
        return rounds.finish(self._run, self._executor)

    def save(self, folder: str) -> tuple[Arrays, int, list[str]]:
        """Client files written by the actors; the selected round's shared parameters come back."""
        best = self._run.best
        assert best is not None
        return best.broadcast.params, best.round, self._executor.save(folder)

    def overhead(self, rounds_: int) -> float:
        """Mean seconds of an empty round: one put, one call per actor."""
        begun = time.perf_counter()
        for r in range(rounds_):
            self._executor.nothing(Broadcast(-1 - r, dict(self._run.broadcast.params)))
        return (time.perf_counter() - begun) / rounds_


Remote = ray.remote(DriverActor)
"""The actor class to place."""
