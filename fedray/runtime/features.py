"""The features that a job's encoders make of its items: from the store, and through a pool what the store lacks."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from fedray.config import EncoderConfig, RunConfig, part_module
from fedray.data.features import filled, joined
from fedray.embeddings.content import Content, content_of
from fedray.embeddings.fill import Step, fill
from fedray.embeddings.host import embed
from fedray.embeddings.refusals import add_refusals, read_refusals
from fedray.embeddings.report import FeatureReport, troubles
from fedray.embeddings.store import EmbeddingStore
from fedray.encoders import Problem, fingerprint
from fedray.errors import EncoderError, FeatureValueError, StoreError
from fedray.runtime.encoding import OpenPool, Pools, pools
from fedray.types import Dataset

PASSES = 3
IN_FLIGHT = 3  # batches that every actor there may be is kept supplied with
Tell = Callable[[str, Step], object]
Table = Float32[np.ndarray, "items dim"]
Present = Bool[np.ndarray, " items"]


@dataclass(frozen=True)
class _Job:
    """What one feature is made with."""

    config: RunConfig
    feature: str
    encoder: EncoderConfig
    content: Content
    open_pool: OpenPool
    tell: Callable[[Step], object]


@dataclass(frozen=True)
class _Work:
    """What had to be encoded."""

    step: Step = Step(0, 0, 0, 0)
    problems: Mapping[bytes, Problem] = field(default_factory=dict)
    restarts: int = 0
    actors: int = 0
    items_per_s: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=lambda: {"start": 0.0, "encode": 0.0})

    def plus(self, more: "_Work") -> "_Work":
        """Both, one after the other."""
        a, b = self.step, more.step
        step = Step(a.encoded + b.encoded, a.by_others + b.by_others, a.refused + b.refused, a.missing + b.missing)
        seconds = {k: v + more.seconds[k] for k, v in self.seconds.items()}
        actors, rate = max(self.actors, more.actors), max(self.items_per_s, more.items_per_s)
        return _Work(step, {**self.problems, **more.problems}, self.restarts + more.restarts, actors, rate, seconds)


def with_features(
    config: RunConfig, dataset: Dataset, tell: Tell = lambda feature, step: None, open_pools: Pools = pools
) -> tuple[Dataset, tuple[FeatureReport, ...]]:
    """The data with what `config.encoders` make of the items laid over its own features, and how each came about.

    Raises `EncoderError`, `StoreError`, `ResourceError`s, and `FeatureValueError` where no item has a feature or
    `data.missing: error` meets a gap.
    """
    if not config.encoders:
        return dataset, ()
    picture = getattr(part_module("data.sources", config.data.source), "image_bytes", None)
    tables, present, reports = {}, {}, []
    with open_pools(config, f"fedray-{config.name}-encode") as open_pool:
        for name, encoder in config.encoders.items():
            content = content_of(encoder, dataset.items, picture)
            job = _Job(config, name, encoder, content, open_pool, partial(tell, name))
            tables[name], present[name], report = _feature(job)
            reports.append(report)
    features = filled(joined(dataset.features, tables, present), config.data.missing, dataset.interactions.item_ids)
    return replace(dataset, features=features), tuple(reports)


def _feature(job: _Job) -> tuple[Table, Present, FeatureReport]:
    stored = getattr(part_module("encoders", job.encoder.name), "STORED", True)
    table, present, report = _from_store(job) if stored else _direct(job)
    if not present.any():
        raise _nothing(report)
    return table, present, report


def _from_store(job: _Job) -> tuple[Table, Present, FeatureReport]:
    begun = time.perf_counter()
    description = part_module("encoders", job.encoder.name).describe(job.encoder)
    with EmbeddingStore(Path(job.config.encoding.store), description, job.encoder.dtype) as store:
        limit = job.config.encoding.max_pixels
        known = read_refusals(store.folder, limit)
        keys = [k for k in job.content.distinct() if k not in known]
        values, there = store.read(keys)
        stored, work = int(there.sum()), _Work()
        for _ in range(PASSES):  # again only where a row that another job wrote turns out damaged
            missing = [k for k, ok in zip(keys, there) if not ok and k not in work.problems]
            if missing:
                work = work.plus(_encode(job, store, missing))
                values, there = store.read(keys)
        _check_whole(store, keys, there, work.problems)
        add_refusals(store.folder, work.problems, limit)
        store.use(f"{job.feature}-{_catalogue_name(job.config)}", keys)
        damaged, torn = store.damaged, len(store.torn)
    table, present = _gathered(job.content, {key: row for row, key in enumerate(keys) if there[row]}, values)
    report = _report(job, fingerprint(description), table, present, {**known, **work.problems})
    own = time.perf_counter() - begun - sum(work.seconds.values())
    return table, present, _worked(report, work, stored, damaged, torn, own)


def _check_whole(
    store: EmbeddingStore, keys: Sequence[bytes], there: np.ndarray, problems: Mapping[bytes, Problem]
) -> None:
    """What was written and cannot be read must not pass for a gap of the catalogue."""
    lost = sum(not ok and k not in problems for k, ok in zip(keys, there))
    if lost:
        mend = "Check the disk; `fedray encode --verify` names the files."
        raise StoreError(f"{lost} embeddings cannot be read back", "what was written", mend, str(store.folder))


def _worked(report: FeatureReport, work: _Work, stored: int, damaged: int, torn: int, own: float) -> FeatureReport:
    return replace(
        report,
        encoded=work.step.encoded,
        by_others=work.step.by_others,
        stored=stored,
        damaged=damaged,
        torn=torn,
        restarts=work.restarts,
        actors=work.actors,
        items_per_s=work.items_per_s,
        seconds={"own": own, **work.seconds},
    )


def _encode(job: _Job, store: EmbeddingStore, missing: Sequence[bytes]) -> _Work:
    begun, settings, first = time.perf_counter(), job.config.encoding, (0.0, 0)

    def told(step: Step) -> None:
        nonlocal first
        first = first if first[0] else (time.perf_counter() - begun, step.encoded)
        job.tell(step)

    with job.open_pool(job.encoder) as pool:
        window = IN_FLIGHT * pool.most
        step, problems = fill(store, job.content, _in_order(job, missing), pool, settings.batch_size, window, told)
    stats = pool.stats()
    failed = [p for p in problems.values() if p.kind in ("encoder_failed", "encoder_died")]
    if failed and not step.encoded and not step.by_others:
        raise EncoderError(f"{job.feature}: every item failed, the last with {failed[-1].kind}: {failed[-1].detail}")
    seconds = {"start": first[0], "encode": time.perf_counter() - begun - first[0]}
    more = step.encoded > first[1]
    rate = (step.encoded - first[1]) / seconds["encode"] if more else step.encoded / sum(seconds.values())
    return _Work(step, problems, stats.restarts, stats.most_workers, rate, seconds)


def _in_order(job: _Job, missing: Sequence[bytes]) -> Sequence[bytes]:
    """Longest texts first: a batch is padded to its longest, and what does not fit in memory fails at once."""
    if job.encoder.input == "image":
        return missing
    where = job.content.distinct()
    return sorted(missing, key=lambda k: -len(job.content.raw(where[k])))


def _direct(job: _Job) -> tuple[Table, Present, FeatureReport]:
    """Embeddings that are only looked up: no store, no pool."""
    begun = time.perf_counter()
    module = part_module("encoders", job.encoder.name)
    encoder = module.make(job.encoder, "cpu", job.config.encoding.max_pixels)
    values, problems = embed(encoder, [encoder.prepare(job.content.raw(i)) for i in range(len(job.content.ids))])
    present = np.array([p is None for p in problems])
    known = {k: p for k, p in zip(job.content.keys, problems) if k is not None and p is not None}
    label = fingerprint(module.describe(job.encoder))
    report = _report(job, label, values, present, known)
    return values, present, replace(report, stored=int(present.sum()), seconds={"own": time.perf_counter() - begun})


def _gathered(content: Content, rows: Mapping[bytes, int], values: np.ndarray) -> tuple[Table, Present]:
    row = np.array([-1 if key is None else rows.get(key, -1) for key in content.keys], dtype=np.int64)
    present = row >= 0
    table = np.zeros((len(row), values.shape[1]), np.float32)
    table[present] = values[row[present]]
    return table, present


def _report(job: _Job, label: str, table: Table, present: Present, problems: Mapping[bytes, Problem]) -> FeatureReport:
    return FeatureReport(
        feature=job.feature,
        encoder=f"{job.encoder.name} {getattr(job.encoder, 'model', '')}".strip(),
        fingerprint=label,
        dim=table.shape[1],
        items=len(present),
        present=int(present.sum()),
        problems=troubles(job.content, problems),
    )


def _nothing(report: FeatureReport) -> FeatureValueError:
    counts = ", ".join(f"{kind} {len(items)}" for kind, items in report.problems.items())
    first = next((f"item {i}: {d}" for items in report.problems.values() for i, d in items), "the catalogue is empty")
    return FeatureValueError(
        f"no item has {report.feature} ({counts})",
        "at least one",
        f"The first is {first}.",
        f"encoders.{report.feature}",
    )


def _catalogue_name(config: RunConfig) -> str:
    """What the set of contents in use is filed under: the same data replace their own older set."""
    body = json.dumps(
        config.data.model_dump(mode="json", include={"source", "path", "name", "items", "seed"}), sort_keys=True
    )
    return f"{config.data.source}-{hashlib.sha256(body.encode()).hexdigest()[:8]}"
