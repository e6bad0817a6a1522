"""Embeddings on request, of items by id or of raw content: from the store, else through a pool, and kept."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedray.config import RunConfig, part_module
from fedray.data.dataset import load
from fedray.data.protocols import rules_of
from fedray.embeddings.content import Content, content_of, key_of
from fedray.embeddings.host import Encoded
from fedray.embeddings.store import EmbeddingStore
from fedray.encoders import Problem, Raw
from fedray.errors import UnknownNameError
from fedray.runtime.encoder_pool import EncoderPool
from fedray.runtime.encoding import pools


class EmbeddingService:
    """Serves one feature. Any thread may ask; the pool micro-batches what they ask for at the same time."""

    def __init__(self, store: EmbeddingStore, pool: EncoderPool, content: Content) -> None:
        self._store, self._pool, self._content = store, pool, content
        self._row = {item: row for row, item in enumerate(content.ids)}
        self._lock = threading.Lock()

    def embed_ids(self, ids: Sequence[object]) -> Encoded:
        """Of items of the catalogue, by their ids outside. `UnknownNameError` for an id it does not have."""
        unknown = [i for i in ids if str(i) not in self._row]
        if unknown:
            raise UnknownNameError(f"item {unknown[0]!r} is not in the catalogue", f"one of its {len(self._row):,} ids")
        return self._served([self._content.raw(self._row[str(i)]) for i in ids])

    def embed(self, raws: Sequence[Raw]) -> Encoded:
        """Of texts, or of the bytes of image files."""
        return self._served(list(raws))

    def _served(self, found: Sequence[Raw | Problem]) -> Encoded:
        raws = {key_of(raw): raw for raw in found if not isinstance(raw, Problem)}
        keys = list(raws)
        with self._lock:
            values, there = self._store.read(keys)
        known: dict[bytes, np.ndarray | Problem] = {k: v for k, v, ok in zip(keys, values, there) if ok}
        known |= self._made([k for k, ok in zip(keys, there) if not ok], raws)
        answers = [raw if isinstance(raw, Problem) else known[key_of(raw)] for raw in found]
        dim = next((len(a) for a in answers if not isinstance(a, Problem)), 0)
        rows = [np.zeros(dim, np.float32) if isinstance(a, Problem) else a for a in answers]
        problems = tuple(a if isinstance(a, Problem) else None for a in answers)
        return Encoded(np.stack(rows) if rows else np.zeros((0, 0), np.float32), problems, {})

    def _made(self, missing: Sequence[bytes], raws: dict[bytes, Raw]) -> dict[bytes, np.ndarray | Problem]:
        if not missing:
            return {}
        encoded = self._pool.embed([raws[k] for k in missing])
        good = [i for i, problem in enumerate(encoded.problems) if problem is None]
        if good:
            with self._lock:
                self._store.write([missing[i] for i in good], encoded.values[good])
        return {k: p if p else v for k, v, p in zip(missing, encoded.values, encoded.problems)}


@contextmanager
def serve(config: RunConfig, feature: str) -> Iterator[EmbeddingService]:
    """A service for one of the job's encoders; its pool lives as long as this block."""
    if feature not in config.encoders:
        raise UnknownNameError(f"feature {feature!r} has no encoder", f"one of {', '.join(config.encoders) or 'none'}")
    encoder, module = config.encoders[feature], part_module("encoders", config.encoders[feature].name)
    items = load(config.data, rules_of(config.evaluation)).items
    picture = getattr(part_module("data.sources", config.data.source), "image_bytes", None)
    content = content_of(encoder, items, picture)
    with (
        EmbeddingStore(Path(config.encoding.store), module.describe(encoder), encoder.dtype) as store,
        pools(config, f"fedray-{config.name}-serve") as open_pool,
        open_pool(encoder) as pool,
    ):
        yield EmbeddingService(store, pool, content)
