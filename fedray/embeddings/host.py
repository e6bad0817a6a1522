"""One encoder in memory and its decoders beside it: what an encoder actor, or the job's own process, holds."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from fedray.config import EncoderConfig, EncodingConfig, part_module
from fedray.encoders import Encoder, Problem, Raw


class Encoded(NamedTuple):
    """A batch done. values [n, dim]: zeros where `problems` has one. seconds: by stage, decoding and forward pass."""

    values: Float32[np.ndarray, "n dim"]
    problems: tuple[Problem | None, ...]
    seconds: dict[str, float]


class EncoderHost:
    """Encodes batches; several threads may ask at once, so that one batch is decoded while another is computed."""

    def __init__(self, config: EncoderConfig, settings: EncodingConfig, device: str) -> None:
        module = part_module("encoders", config.name)
        self.encoder: Encoder = module.make(config, device, settings.max_pixels)
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._forward = threading.Lock()

    def encode(self, raws: Sequence[Raw]) -> Encoded:
        """Their embeddings, in their order."""
        begun = time.perf_counter()
        prepared = list(self._decoders.map(self.encoder.prepare, raws))
        decoded = time.perf_counter()
        with self._forward:
            started = time.perf_counter()
            values, problems = embed(self.encoder, prepared)
            done = time.perf_counter()
        return Encoded(values, problems, {"decode": decoded - begun, "forward": done - started})


def embed(encoder: Encoder, prepared: Sequence[Any]) -> tuple[np.ndarray, tuple[Problem | None, ...]]:
    """The embeddings of what could be prepared; a row with a NaN or an infinity becomes a problem."""
    problems: list[Problem | None] = [p if isinstance(p, Problem) else None for p in prepared]
    good = [i for i, problem in enumerate(problems) if problem is None]
    values = np.zeros((len(prepared), encoder.dim), np.float32)
    if good:
        values[good] = encoder.embed([prepared[i] for i in good])
    for i in np.flatnonzero(~np.isfinite(values).all(axis=1)):
        problems[i] = Problem("not_finite", "the embedding has a NaN or an infinity")
        values[i] = 0.0
    return values, tuple(problems)
