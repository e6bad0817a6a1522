"""A Ray actor that is one frozen encoder, on CPU threads, a GPU or a fraction of one.

It keeps nothing of what it is sent. Two requests run at once, so that one is decoded beside the other's forward pass.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray import exceptions

from fedray.config import EncoderConfig, EncodingConfig
from fedray.embeddings.host import Encoded, EncoderHost
from fedray.encoders import Raw
from fedray.errors import FedrayError
from fedray.runtime.workers import Hello, WorkerLost

CONCURRENCY = 3  # two batches and a sign of life
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
}
"""glibc keeps the memory of a forward pass for the next one, which would otherwise fault it in anew: a tenth of the
time of MiniLM on a CPU, measured."""


class EncoderActor:
    """The model is loaded by `start`, not on creation: what is wrong with it then comes back as itself."""

    def __init__(self, config: EncoderConfig, settings: EncodingConfig, device: str) -> None:
        self._made = (config, settings, device)
        self._host: EncoderHost | None = None

    def start(self) -> Hello:
        """Load the model, once; who is here."""
        if self._host is None:
            import torch

            torch.set_num_threads(max(1, int(self._made[1].cpus_per_actor)))
            self._host = EncoderHost(*self._made)
        return Hello(self._host.encoder.dim, os.getpid())

    def encode(self, raws: Sequence[Raw]) -> Encoded:
        """See `EncoderHost.encode`."""
        assert self._host is not None, "start() comes first"
        return self._host.encode(raws)


Remote = ray.remote(EncoderActor)


class RayWorker:
    """An `EncoderActor` as the pool sees it."""

    def __init__(self, config: EncoderConfig, settings: EncodingConfig, device: str) -> None:
        gpus = settings.gpu_share if device == "cuda" else 0.0
        self._actor = Remote.options(
            num_cpus=settings.cpus_per_actor,
            num_gpus=gpus,
            max_restarts=0,
            max_concurrency=CONCURRENCY,
            runtime_env={"env_vars": ALLOCATOR},
        ).remote(config, settings, device)

    def start(self) -> Future[Hello]:
        """See `workers.Worker`."""
        return _named(self._actor.start.remote())

    def encode(self, raws: Sequence[Raw]) -> Future[Encoded]:
        """See `workers.Worker`."""
        return _named(self._actor.encode.remote(list(raws)))

    def kill(self) -> None:
        """At once, whatever it is doing."""
        ray.kill(self._actor)


def _named(ref: Any) -> Future[Any]:
    """The call's future, with a lost actor as `WorkerLost` and fedray's own errors as themselves."""
    out: Future[Any] = Future()

    def done(found: Future[Any]) -> None:
        error = found.exception()
        if error is None:
            out.set_result(found.result())
        elif isinstance(error, exceptions.RayTaskError) and isinstance(error.cause, FedrayError):
            out.set_exception(error.cause)
        elif isinstance(error, exceptions.RayError) and not isinstance(error, exceptions.RayTaskError):
            out.set_exception(WorkerLost(f"{type(error).__name__}"))
        else:
            out.set_exception(error)

    ref.future().add_done_callback(done)
    return out
