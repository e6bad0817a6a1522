"""What a metric is worth: scorers without federated learning, measured by the run's own rules.

    random      uniform scores: chance level; the mean of a few draws where that is cheap
    popularity  how many clients have the item among their training items
    constant    one score for everything: 0 under pessimistic ties; more is what other ties give away
    content_<f> likeness to the client's training items, one for each feature f of the items (see `content`)
    ease        EASE (Steck 2019, https://arxiv.org/abs/1905.03375), central: the upper reference

popularity and ease are central: they see all clients' training items, as no federated method does. None
sees a validation or test item, but that ease takes the lambda that is best where the protocol selects: on
validation, the metric that leads. On very sparse data ease scores most items exactly 0, and pessimistic
ties can then put it below popularity. It is left
out (its key is missing) where both clients and items are more than 20,000: its time grows with the cube
of the smaller of the two.

Results are cached as JSON under a hash of all they depend on.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from types import MappingProxyType

import numba
import numpy as np
from jaxtyping import Float32, UInt64
from scipy.linalg import lapack
from scipy.sparse import csr_matrix

from fedray.data.protocols import Protocol
from fedray.errors import TrainingError
from fedray.evaluation.content import Rows, Scorer, content_scorers
from fedray.evaluation.metrics import Masks, MetricSums, evaluate_scores
from fedray.evaluation.slices import masks
from fedray.sections import Slice
from fedray.seeding import keys, unit
from fedray.types import ClientData, Dataset, ItemFeatures, Ragged, Split

VERSION = 2  # part of the cache's name: raise it when a number here can change
EASE_LIMIT = 20_000
CONSTANT_BELOW = 1e-6
STANDARD_ERRORS = 3.0
_CHUNK = 1 << 22  # scores held at once
_DRAWS, _DRAWN = 8, 1 << 28  # random control: most draws, and most scores over all of them

Splits = dict[str, MetricSums]
Controls = dict[str, dict[str, dict[str, float]]]


def controls(
    dataset: Dataset,
    data: ClientData,
    protocol: Protocol,
    ks: Sequence[int],
    candidates: Mapping[str, Ragged],
    cache_dir: Path | None,
    slices: Sequence[Slice] = (),
) -> Controls:
    """Control -> "valid" and "test" -> metric -> mean over clients, as `evaluate_scores` names them.

    data: every client of `dataset`. candidates: "valid" and "test" -> sampled items, rows as in `data`
    (may be empty if no ranking of the protocol samples). cache_dir: None computes anew. slices: parts of the test to
    measure as well.
    """
    key = _cache_key(dataset, data, protocol, ks, candidates, slices) if cache_dir else ""
    file = cache_dir / f"controls-{key}.json" if cache_dir else None
    found = _read(file) if file else None
    if found is None:
        found = _compute(data, dataset.features, protocol, ks, candidates, masks(data, slices))
        if file:
            _write(file, found)
    return found


def chance_flag(
    local_only: Mapping[str, float],
    random: Mapping[str, float],
    standard_errors: Mapping[str, float],
    name: str,
) -> bool:
    """Whether the local-only control (federation off) is more than 3 standard errors above chance.

    The three map metric -> number; `standard_errors` are those of the local-only run. Without content a
    client alone can know nothing of items it has not seen: True means that held-out items leak. A NaN
    (below two clients) flags nothing.
    """
    return local_only[name] - random[name] > STANDARD_ERRORS * standard_errors[name]


def constant_scores(score_std: float) -> bool:
    """Whether scores are as good as constant (mean spread below 1e-6): ties decide the ranking."""
    return score_std < CONSTANT_BELOW


def _compute(
    data: ClientData,
    features: ItemFeatures | None,
    protocol: Protocol,
    ks: Sequence[int],
    candidates: Mapping[str, Ragged],
    chosen: Masks,
) -> Controls:
    def measure(scorer: Scorer) -> Splits:
        return _measure(scorer, data, protocol, ks, candidates, chosen)

    popularity = np.bincount(data.train.values, minlength=data.n_items).astype(np.float32)
    draws = max(1, min(_DRAWS, _DRAWN // max(1, len(data) * data.n_items)))
    results = {
        "random": _merged([measure(_random_scorer(data, draw)) for draw in range(draws)]),
        "popularity": measure(_same_for_all(popularity)),
        "constant": measure(_same_for_all(np.zeros_like(popularity))),
        **{name: measure(scorer) for name, scorer in content_scorers(features, data.train).items()},
    }
    if min(len(data), data.n_items) <= EASE_LIMIT:
        results["ease"] = best_ease(data, protocol.lead, measure, protocol.select_split)[1]
    return {name: {split: s.means() for split, s in splits.items()} for name, splits in results.items()}


def _measure(
    scorer: Scorer,
    data: ClientData,
    protocol: Protocol,
    ks: Sequence[int],
    candidates: Mapping[str, Ragged],
    chosen: Masks = MappingProxyType({}),
) -> Splits:
    """Both splits in one pass over the scores, a chunk of clients at a time."""
    splits: tuple[Split, ...] = ("valid", "test")
    sums: Splits = {split: MetricSums.zero() for split in splits}
    for rows in _chunks(len(data), data.n_items):
        scores, part = scorer(rows), data.take(rows)
        for split in splits:
            sampled = candidates[split].take(rows) if split in candidates else None
            mine = {name: mask[rows] for name, mask in chosen.items()} if split == "test" else {}
            sums[split] = sums[split].merge(evaluate_scores(scores, part, split, protocol, sampled, ks, mine))
    return sums


def _chunks(n_clients: int, n_items: int) -> Iterator[Rows]:
    step = max(1, _CHUNK // max(1, n_items))
    for start in range(0, n_clients, step):
        yield np.arange(start, min(start + step, n_clients), dtype=np.int64)


def _merged(draws: Sequence[Splits]) -> Splits:
    merged = {split: MetricSums.zero() for split in draws[0]}
    for draw in draws:
        merged = {split: sums.merge(draw[split]) for split, sums in merged.items()}
    return merged


def _same_for_all(scores: Float32[np.ndarray, " items"]) -> Scorer:
    return lambda rows: np.broadcast_to(scores, (len(rows), len(scores)))


def _random_scorer(data: ClientData, draw: int) -> Scorer:
    # Seed 0 whatever the run's: chance level belongs to the data, and so does its cache.
    streams = keys(0, "random_control", draw, data.client)
    return lambda rows: _uniform(streams[rows], data.n_items)


@numba.njit(cache=True, nogil=True)
def _uniform(streams: UInt64[np.ndarray, " rows"], n_items: int) -> Float32[np.ndarray, "rows items"]:
    out = np.empty((len(streams), n_items), np.float32)
    for c in range(len(streams)):
        for i in range(n_items):
            out[c, i] = unit(streams[c], np.uint64(i))
    return out


def best_ease(
    data: ClientData, select_on: str, measure: Callable[[Scorer], Splits], split: Split = "valid"
) -> tuple[float, Splits]:
    """The lambda with the best `select_on` on validation (the smallest if tied) and its metrics.

    On the test split only where the protocol chooses the run's round on it, so that like stands beside like.
    """
    size = min(len(data), data.n_items)
    grid = (30.0, 100.0, 300.0, 1000.0, 3000.0) if size <= 10_000 else (100.0, 1000.0)
    best: tuple[float, Splits] | None = None
    for lambda_ in grid:
        tried = measure(ease_scorer(data.train, data.n_items, lambda_))
        if best is None or tried[split].means()[select_on] > best[1][split].means()[select_on]:
            best = lambda_, tried
    assert best is not None
    return best


def ease_scorer(train: Ragged, n_items: int, lambda_: float) -> Scorer:
    """EASE's scores X B for chosen rows of the binary X [C, M], whose row c holds `train.row(c)`.

    B = I - P diag(1 / diag P) with P = (X'X + lambda I)^-1, so that diag B = 0. With fewer clients than
    items the same follows from the smaller A = (XX' + lambda I)^-1, since X P = A X and
    diag P = (1 - diag(X' A X)) / lambda. float32; memory 4 min(C, M)^2 bytes.
    """
    x = _sparse(train, n_items)
    if n_items <= len(train.lengths()):
        p = _ridge_inverse(train, n_items, lambda_)
        return _ease(x, lambda rows: x[rows] @ p, np.diag(p).copy())
    by_item = Ragged.of(train.values, np.repeat(np.arange(x.shape[0]), train.lengths()), n_items)
    a = _ridge_inverse(by_item, x.shape[0], lambda_)
    x_t = x.T.tocsr()
    held = np.zeros(n_items)
    for rows in _chunks(x.shape[0], n_items):
        held += np.asarray(x[rows].multiply((x_t @ a[:, rows]).T).sum(axis=0), np.float64).ravel()
    return _ease(x, lambda rows: (x_t @ a[:, rows]).T, ((1.0 - held) / lambda_).astype(np.float32))


def _ease(x: csr_matrix, x_times_p: Scorer, diagonal: Float32[np.ndarray, " items"]) -> Scorer:
    return lambda rows: np.asarray(x[rows] - x_times_p(rows) / diagonal, dtype=np.float32)


def _sparse(train: Ragged, n_items: int) -> csr_matrix:
    ones = np.ones(len(train.values), np.float32)
    return csr_matrix((ones, train.values, train.ptr), shape=(len(train.ptr) - 1, n_items))


def _ridge_inverse(lists: Ragged, n: int, lambda_: float) -> Float32[np.ndarray, "n n"]:
    """(G + lambda I)^-1, where G[i, j] is the number of lists that hold both i and j."""
    # LAPACK works by columns: the transposed view of G hands it G's upper half as a lower one, uncopied.
    factor, failed = lapack.spotrf(_gram(lists.ptr, lists.values, n, lambda_).T, lower=1, overwrite_a=1)
    inverse, failed_too = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed or failed_too:
        raise TrainingError(f"EASE: the {n} x {n} matrix is not positive definite at lambda {lambda_}")
    return _mirrored(inverse.T)


@numba.njit(cache=True, nogil=True)
def _gram(ptr: np.ndarray, values: np.ndarray, n: int, lambda_: float) -> np.ndarray:
    """Upper half only; each list is ascending."""
    g = np.zeros((n, n), np.float32)
    for r in range(len(ptr) - 1):
        for a in range(ptr[r], ptr[r + 1]):
            row = g[values[a]]
            for b in range(a, ptr[r + 1]):
                row[values[b]] += np.float32(1.0)
    for i in range(n):
        g[i, i] += np.float32(lambda_)
    return g


@numba.njit(cache=True, nogil=True)
def _mirrored(g: np.ndarray) -> np.ndarray:
    """Copies the upper half to the lower one, in place and in tiles that fit the cache."""
    for top in range(0, len(g), 64):
        for left in range(0, top + 64, 64):
            for i in range(top, min(top + 64, len(g))):
                for j in range(left, min(left + 64, i)):
                    g[i, j] = g[j, i]
    return g


def _cache_key(
    dataset: Dataset,
    data: ClientData,
    protocol: Protocol,
    ks: Sequence[int],
    candidates: Mapping[str, Ragged],
    slices: Sequence[Slice] = (),
) -> str:
    """16 hex digits. The rows themselves are hashed too: splits and item numbering depend on a seed."""
    content = dataset.features.fingerprint if dataset.features else ""
    head = [VERSION, dataset.fingerprint, content, astuple(protocol), list(ks), data.n_items, sorted(candidates)]
    head += [list(slices)] if slices else []
    digest = hashlib.sha256(json.dumps(head).encode())
    lists = [data.train, data.valid, data.test, *(candidates[name] for name in sorted(candidates))]
    for array in (data.client, data.cold, *(part for ragged in lists for part in ragged)):
        digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def _read(file: Path) -> Controls | None:
    """What is cached, or None: a file that is torn, unreadable or not ours counts as not there."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found["controls"] if isinstance(found, dict) and found.get("version") == VERSION else None


def _write(file: Path, found: Controls) -> None:
    """Written aside and renamed, so that a reader sees all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=file.stem, suffix=".tmp", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump({"version": VERSION, "controls": found}, out)
        Path(aside).replace(file)
    finally:
        Path(aside).unlink(missing_ok=True)
