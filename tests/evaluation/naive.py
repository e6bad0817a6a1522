"""The definitions of `fedray.evaluation`, written out slowly: the judge of the compiled kernels."""

import math

import numpy as np

from fedray.types import ClientData, Ragged


def ragged(*rows):
    """A Ragged of the given lists, kept in their order."""
    ptr = np.cumsum([0] + [len(r) for r in rows]).astype(np.int64)
    return Ragged(ptr, np.array([x for r in rows for x in r], dtype=np.int64))


def clients(train, valid, test, n_items):
    """ClientData of plain lists of lists."""
    return ClientData(np.arange(len(train)), ragged(*train), ragged(*valid), ragged(*test), n_items)


def level(score):
    """A sortable score: NaN below everything, all NaN equal."""
    return (0, 0.0) if math.isnan(score) else (1, float(score))


def full_ranks(scores, targets, masked):
    out = []
    for c, row in enumerate(scores):
        mine, hidden = list(targets.row(c)), set(masked.row(c).tolist())
        for t, target in enumerate(mine):
            ahead = 0
            for item in range(len(row)):
                if item in hidden or item == target:
                    continue
                if item in mine and level(row[item]) == level(row[target]):
                    ahead += mine.index(item) < t
                else:
                    ahead += level(row[item]) >= level(row[target])
            out.append(1 + ahead)
    return np.array(out, dtype=np.int64)


def candidate_ranks(scores, targets, candidates):
    return np.array(
        [
            1 + sum(level(row[i]) >= level(row[t]) for i in candidates.row(c))
            for c, row in enumerate(scores)
            for t in targets.row(c)
        ],
        dtype=np.int64,
    )


def metrics(ranks, k):
    """hr, recall, ndcg, mrr of one client with at least one target."""
    hits = sorted(r for r in ranks if r <= k)
    ideal = sum(1 / math.log2(1 + r) for r in range(1, min(k, len(ranks)) + 1))
    dcg = sum(1 / math.log2(1 + r) for r in hits)
    return (
        float(bool(hits)),
        len(hits) / len(ranks),
        min(dcg / ideal, 1.0),
        1 / hits[0] if hits else 0.0,
    )


def ease_scores(x, lambda_):
    """Dense EASE in float64."""
    p = np.linalg.inv(x.T @ x + lambda_ * np.eye(x.shape[1]))
    b = np.eye(x.shape[1]) - p / np.diag(p)
    return x @ b
