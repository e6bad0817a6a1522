"""Groups of clients by their vectors, and names of groups that last from round to round.

GFMFR (WWW 2026) clusters the clients by the parameters of their score functions, after each round. Its code, and so
`spectral`, takes the RBF affinity with gamma = 1 / (2 m^2), m the median distance; the graph keeps each client's
affinity to itself, so that nobody is cut off from all. `random` is a control: groups of equal size, drawn without a
look at the vectors.

Rows are clients, by client id; n of them. All is done on one thread: scikit-learn's threads add up in the order they
end in, and a label could hang on it. scikit-learn takes seconds to import and no other method needs it, so it is
imported where it is called.
"""

import warnings
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fedray import seeding
from fedray.errors import NonFiniteVectorError
from fedray.federated.kernels.linear import WIDTH, product

How = Literal["auto", "spectral", "kmeans", "minibatch", "random"]
Reduction = Literal["none", "pca", "projection"]
SPECTRAL, KMEANS = 500, 20_000
"""`auto`: so many clients at most."""
VARIANCE = 0.95
"""What `pca` keeps of it."""
AXES, PASSES = 64, 4
"""Of the search for the plane of most variance."""
_NAMED = 5

Vectors = Float[np.ndarray, "n p"]
Labels = Int[np.ndarray, " n"]


def standardised(x: Vectors, client: Int[np.ndarray, " n"] | None = None) -> Vectors:
    """Each coordinate with mean 0 and variance 1 over the clients, 0 where all have the same. client: for errors."""
    _require_finite(x, client)
    if not x.size:
        return x.copy()
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    apart = (x.max(axis=0) > x.min(axis=0)) & (std > 0)
    return (x - mean.astype(x.dtype)) * (apart / np.where(apart, std, 1.0)).astype(x.dtype)


def sketched(vectors: Float32[np.ndarray, "k p"], s: int, seed: int) -> Float32[np.ndarray, "k s"]:
    """s numbers that keep the clients' distances roughly: a random projection.

    A client's numbers do not depend on who else is in the block: each product has one fixed shape.
    """
    matrix = _projection(vectors.shape[1], s, seed)
    blocks = [product(vectors[lo : lo + WIDTH], matrix) for lo in range(0, len(vectors), WIDTH)]
    return np.concatenate(blocks) if blocks else np.zeros((0, s), np.float32)


def reduced(x: Vectors, how: Reduction, size: int = 64, seed: int = 0) -> Float[np.ndarray, "n q"]:
    """As they are; along the fewest principal axes with `VARIANCE` of the variance; or sketched to `size` numbers."""
    if how == "none" or not x.size:
        return x
    return sketched(x.astype(np.float32), size, seed) if how == "projection" else _principal(x)


def grouped(x: Vectors, groups: int, how: How, key: np.uint64) -> Labels:
    """Labels 0..groups-1 by order of the groups' first rows; the last ones are empty where the vectors have no more.

    Where there are at most `groups` different vectors, each is a group.
    """
    _require_finite(x)
    different = _different(x)
    if how == "random":
        found = seeding.generator(key).permutation(np.arange(len(x)) % groups)
    elif groups == 1 or different.max(initial=0) < groups:
        found = np.minimum(different, groups - 1)
    else:
        found = _clustered(x, groups, _method(how, len(x)), int(key) % 2**32)
    return aligned(found, np.arange(len(x)), np.zeros(0, np.int32))


def aligned(labels: Labels, client: Labels, previous: Int[np.ndarray, " N"]) -> Labels:
    """The same groups, named to keep most clients in the group they were in (Hungarian method).

    previous: labels by client id; -1, or an id beyond its end: none. A group that no client was in takes the smallest
    free name, the one with the smallest client id first.
    """
    new, count = _ranked(labels, client)
    known = client < len(previous)
    before = np.where(known, previous[np.where(known, client, 0)], -1) if len(previous) else np.full(len(client), -1)
    overlap = np.zeros((count, before.max(initial=-1) + 1), np.int64)
    np.add.at(overlap, (new[before >= 0], before[before >= 0]), 1)
    row, column = linear_sum_assignment(overlap, maximize=True)
    common = overlap[row, column] > 0
    name = np.full(count, -1)
    name[row[common]] = column[common]
    free = np.setdiff1d(np.arange(count), name)
    name[name < 0] = free[: (name < 0).sum()]
    return name[new].astype(np.int32)


def plane(x: Vectors, seed: int = 0) -> tuple[Float32[np.ndarray, "n 2"], Float32[np.ndarray, " 2"]]:
    """Places on the two principal axes, and the share of the variance along each; who is farthest out along an axis is
    on its positive side.

    Subspace iteration (Halko, Martinsson and Tropp, 2011): of up to `AXES` coordinates or rows the axes themselves, of
    more close to them, at a cost that stays below that of the groups.
    """
    at, share = np.zeros((len(x), 2), np.float32), np.zeros(2, np.float32)
    if not x.size:
        return at, share
    start = seeding.generator(seeding.key(seed, "map")).standard_normal((x.shape[1], min(AXES, *x.shape)))
    with threadpool_limits(1):
        centred = x - x.mean(axis=0, dtype=np.float64).astype(x.dtype)
        basis = start.astype(x.dtype)
        for _ in range(PASSES):
            basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
        left, size, _ = np.linalg.svd(centred @ basis, full_matrices=False)
    found = (left * size)[:, :2]
    found *= np.sign(np.take_along_axis(found, np.abs(found).argmax(axis=0)[None], axis=0))
    at[:, : found.shape[1]] = found
    share[: found.shape[1]] = size[:2] ** 2 / max(np.square(centred).sum(dtype=np.float64), np.finfo(np.float64).tiny)
    return at, share


def rand_index(a: Labels, b: Labels) -> float:
    """How far two groupings of the same clients agree (adjusted Rand index): 1 the same, 0 by chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(a, b))


def affinity(x: Vectors) -> Float64[np.ndarray, "n n"]:
    """exp(-|a - b|^2 / (2 m^2)), m the median of the distances that are not 0."""
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    norms = np.einsum("ij,ij->i", centred, centred)
    both = norms[:, None] + norms
    square = both - 2.0 * (centred @ centred.T)
    square[square < 1e-12 * both] = 0.0  # rounding: the same vector
    apart = square[np.triu_indices(len(x), 1)]
    median = np.median(np.sqrt(apart[apart > 0]))
    return np.exp(square / (-2.0 * median**2))


def _ranked(labels: Labels, client: Labels) -> tuple[Labels, int]:
    """Labels by the order of the groups' smallest client ids, and how many groups there are."""
    found, new = np.unique(labels, return_inverse=True)
    smallest = np.full(len(found), np.iinfo(np.int64).max)
    np.minimum.at(smallest, new, client)
    return np.argsort(np.argsort(smallest))[new], len(found)


def _method(how: How, n: int) -> How:
    if how != "auto":
        return how
    return "spectral" if n <= SPECTRAL else "kmeans" if n <= KMEANS else "minibatch"


def _clustered(x: Vectors, groups: int, how: How, seed: int) -> Labels:
    """Warnings (of fewer clusters than asked for, say) are for nobody here: some groups are empty then."""
    from sklearn.cluster import KMeans, MiniBatchKMeans  # before the limit, which is of the libraries loaded so far

    if how == "minibatch":
        means = MiniBatchKMeans(groups, n_init=10, batch_size=4096, random_state=seed)
    else:
        means = KMeans(groups, n_init=10, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return means.fit_predict(_embedded(x, groups) if how == "spectral" else x)


def _embedded(x: Vectors, groups: int) -> Float64[np.ndarray, "n groups"]:
    """The leading eigenvectors of the random walk on the affinity graph."""
    near, n = affinity(x), len(x)
    root = np.sqrt(near.sum(axis=1))
    _, vectors = eigh(near / root[:, None] / root, subset_by_index=(n - groups, n - 1))
    return vectors / root[:, None]


def _principal(x: Vectors) -> Float[np.ndarray, "n q"]:
    """By the smaller of the two Gram matrices."""
    with threadpool_limits(1):
        centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
        flat = len(x) < x.shape[1]
        values, vectors = np.linalg.eigh(centred @ centred.T if flat else centred.T @ centred)
        values, vectors = values[::-1].clip(0.0), vectors[:, ::-1]
        kept = 1 + int(np.searchsorted(np.cumsum(values), VARIANCE * values.sum()))
        found = vectors[:, :kept] * np.sqrt(values[:kept]) if flat else centred @ vectors[:, :kept]
    return found.astype(x.dtype)


@lru_cache(maxsize=2)
def _projection(p: int, s: int, seed: int) -> Float32[np.ndarray, "s p"]:
    """Gaussian, of variance 1 / s; kept, for it is the same for all clients and rounds."""
    drawn = seeding.generator(seeding.key(seed, "sketch")).standard_normal((s, p)) / np.sqrt(s)
    return drawn.astype(np.float32)


def _different(x: Vectors) -> Labels:
    """A number 0, 1, ... for each different row."""
    if not x.size:
        return np.zeros(len(x), np.int64)
    plain = np.ascontiguousarray(x) + x.dtype.type(0.0)  # -0.0 and 0.0 have different bytes
    rows = plain.view(np.dtype((np.void, plain.itemsize * plain.shape[1])))[:, 0]
    return np.unique(rows, return_inverse=True)[1]


def _require_finite(x: Vectors, client: Labels | None = None) -> None:
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if not len(bad):
        return
    named = ", ".join(str((bad if client is None else client[bad])[i]) for i in range(min(len(bad), _NAMED)))
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    raise NonFiniteVectorError(
        f"NaN or infinity in the vectors of {'rows' if client is None else 'clients'} {named}{more}",
        "finite numbers",
        "A learning rate may be too high.",
    )
