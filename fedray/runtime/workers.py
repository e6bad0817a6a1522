"""What the encoder pool hands batches to: the protocol, and the worker that lives in this process."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

from fedray.config import EncoderConfig, EncodingConfig
from fedray.embeddings.host import Encoded, EncoderHost
from fedray.encoders import Raw


class Hello(NamedTuple):
    """A worker that is up: the length of its embeddings, and its process."""

    dim: int
    pid: int


class WorkerLost(Exception):
    """The worker is gone, and what it was working on with it; nothing is known of the batch."""


class Worker(Protocol):
    """One encoder somewhere. A lost worker answers every call with `WorkerLost`."""

    def start(self) -> Future[Hello]:
        """Load the model (once); also the sign of life."""
        ...

    def encode(self, raws: Sequence[Raw]) -> Future[Encoded]:
        """Encode a batch; two at a time are useful."""
        ...

    def kill(self) -> None:
        """End it, at once where that is possible."""
        ...


class LocalWorker:
    """An encoder in this process: the pool without Ray, and the same numbers."""

    def __init__(self, config: EncoderConfig, settings: EncodingConfig, device: str) -> None:
        self._made = (config, settings, device)
        self._threads = ThreadPoolExecutor(2, "encode")
        self._host: EncoderHost | None = None

    def start(self) -> Future[Hello]:
        """See `Worker`."""
        return self._threads.submit(self._hello)

    def encode(self, raws: Sequence[Raw]) -> Future[Encoded]:
        """See `Worker`."""
        return self._threads.submit(lambda: self._loaded().encode(raws))

    def kill(self) -> None:
        """What runs is finished, what waits is not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _hello(self) -> Hello:
        if self._host is None:
            self._host = EncoderHost(*self._made)
        return Hello(self._host.encoder.dim, os.getpid())

    def _loaded(self) -> EncoderHost:
        assert self._host is not None, "start() comes first"
        return self._host
