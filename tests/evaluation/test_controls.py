from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedray.data.protocols import PROTOCOLS
from fedray.evaluation import controls as module
from fedray.evaluation.controls import chance_flag, constant_scores, controls, ease_scorer
from fedray.evaluation.metrics import evaluate_scores
from fedray.types import Dataset, Interactions, ItemFeatures
from tests.evaluation import naive
from tests.evaluation.naive import clients, ragged

CLEAN = PROTOCOLS["clean"]
KS = (5, 10)


def tiny(n_clients=60, n_items=40):
    """Clients of two tastes: items below and from the middle on; popular items first within each."""
    rng = np.random.Generator(np.random.Philox(11))
    half = n_items // 2
    weight = np.tile(1.0 / np.arange(1, half + 1), 2)
    train, valid, test, other = [], [], [], []
    for c in range(n_clients):
        p = weight * np.where((np.arange(n_items) < half) == (c % 2 == 0), 1.0, 0.02)
        order = rng.choice(n_items, n_items, replace=False, p=p / p.sum()).tolist()
        train.append(sorted(order[:8]))
        valid.append([order[8]])
        test.append([order[9]])
        other.append(order[10:])
    sampled = {name: ragged(*[sorted(o[start::2]) for o in other]) for start, name in enumerate(("valid", "test"))}
    return clients(train, valid, test, n_items), sampled


def dataset(data, fingerprint="f", features=None):
    empty = np.zeros(0, np.int64)
    table = Interactions(empty, empty, empty, None, data.client, np.arange(data.n_items))
    return Dataset("tiny", table, empty, pd.DataFrame(), features, {}, fingerprint)


def run(data, sampled, cache_dir=None, features=None, **changes):
    return controls(dataset(data, features=features), data, replace(CLEAN, **changes), KS, sampled, cache_dir)


def content(n_items=40, fingerprint="c"):
    """`text` tells the two tastes apart, most items have it; `image` is noise."""
    rng = np.random.Generator(np.random.Philox(12))
    taste = np.where(np.arange(n_items) < n_items // 2, 1.0, -1.0)[:, None]
    tables = {"image": rng.normal(size=(n_items, 5)), "text": taste + 0.3 * rng.normal(size=(n_items, 4))}
    present = {"image": np.ones(n_items, bool), "text": np.arange(n_items) % 10 != 3}
    return ItemFeatures({k: v.astype(np.float32) for k, v in tables.items()}, present, fingerprint)


def test_controls_stand_where_they_must():
    data, sampled = tiny()
    found = run(data, sampled)
    assert list(found) == ["random", "popularity", "constant", "ease"]
    assert all(set(splits) == {"valid", "test"} for splits in found.values())
    ndcg = {name: splits["test"]["ndcg_at_10"] for name, splits in found.items()}
    assert ndcg["constant"] == 0.0 < ndcg["random"] < ndcg["popularity"] < ndcg["ease"]
    # 40 items less 8 in training and 1 in validation: chance of the first ten is 10 / 31.
    assert found["random"]["test"]["hr_at_10"] == pytest.approx(10 / 31, abs=0.08)
    assert found["popularity"]["test"].keys() == found["ease"]["valid"].keys()


def test_popularity_is_that_of_training_items():
    data, sampled = tiny()
    counts = np.bincount(data.train.values, minlength=data.n_items).astype(np.float32)
    scores = np.tile(counts, (len(data), 1))
    expected = evaluate_scores(scores, data, "test", CLEAN, sampled["test"], KS).means()
    assert run(data, sampled)["popularity"]["test"] == expected


def test_content_that_shows_tastes_beats_content_that_does_not():
    data, sampled = tiny()
    found = run(data, sampled, features=content())
    assert list(found) == ["random", "popularity", "constant", "content_image", "content_text", "ease"]
    hr = {name: splits["test"]["hr_at_10"] for name, splits in found.items()}
    assert hr["content_text"] > hr["random"] + 0.2 and hr["content_image"] == pytest.approx(hr["random"], abs=0.12)
    assert found["content_text"]["test"].keys() == found["ease"]["valid"].keys()
    without = run(data, sampled)
    assert {k: v for k, v in found.items() if not k.startswith("content_")} == without


def test_held_out_items_do_not_leak_into_the_scores(monkeypatch):
    """Another test and validation item of one client leaves every score of every control as it was."""
    data, sampled = tiny()
    free = np.setdiff1d(np.arange(40), np.concatenate([data.train.row(0), data.valid.row(0), data.test.row(0)]))
    other = replace(
        data,
        valid=ragged([free[0]], *[data.valid.row(c) for c in range(1, len(data))]),
        test=ragged([free[1]], *[data.test.row(c) for c in range(1, len(data))]),
    )
    seen = []

    def spy(scores, *args):
        seen.append(np.array(scores))
        return evaluate_scores(scores, *args)

    monkeypatch.setattr(module, "evaluate_scores", spy)
    run(data, sampled, features=content())
    first, seen = seen, []
    run(other, sampled, features=content())
    assert len(first) == len(seen) > 0
    assert all(np.array_equal(a, b) for a, b in zip(first, seen, strict=True))


@pytest.mark.parametrize("n_clients", [30, 80, 12])
@pytest.mark.parametrize("lambda_", [1.0, 100.0])
def test_ease_equals_the_dense_inverse(n_clients, lambda_):
    """Both ways: over items (clients >= items) and over clients (fewer of them)."""
    rng = np.random.Generator(np.random.Philox(5))
    x = (rng.random((n_clients, 30)) < 0.2).astype(np.float64)
    x[:, 7] = 0  # an item nobody has
    x[3] = 0  # a client without training items
    train = ragged(*[np.flatnonzero(row) for row in x])
    rows = np.array([5, 0, 3, n_clients - 1])
    scores = ease_scorer(train, 30, lambda_)(rows)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, naive.ease_scores(x, lambda_)[rows], atol=2e-5)


def test_ease_takes_the_best_lambda_on_validation():
    data, sampled = tiny()
    tried = {}

    def measure(scorer):
        sums = module._measure(scorer, data, CLEAN, KS, sampled)
        tried[len(tried)] = sums["valid"].means()["ndcg_at_10"]
        return sums

    _, best = module.best_ease(data, "ndcg_at_10", measure)
    assert best["valid"].means()["ndcg_at_10"] == max(tried.values())


def test_ease_is_left_out_when_too_large(monkeypatch):
    data, sampled = tiny()
    monkeypatch.setattr(module, "EASE_LIMIT", 39)
    assert "ease" not in run(data, sampled)


def test_chunks_of_clients_change_nothing(monkeypatch):
    data, sampled = tiny()
    monkeypatch.setattr(module, "EASE_LIMIT", 0)
    whole = run(data, sampled)
    monkeypatch.setattr(module, "_CHUNK", 7 * 40)
    assert run(data, sampled) == whole


def test_random_depends_on_the_client_not_on_its_row():
    data, _ = tiny()
    order = np.array([4, 59, 0])
    scores = module._random_scorer(data, 0)(np.arange(60))
    assert np.array_equal(module._random_scorer(data.take(order), 0)(np.arange(3)), scores[order])
    assert not np.array_equal(module._random_scorer(data, 1)(np.arange(60)), scores)
    assert scores.min() >= 0 and scores.max() <= 1 and abs(scores.mean() - 0.5) < 0.02


def test_no_candidates_are_needed_for_full_ranking():
    data, _ = tiny()
    found = run(data, {}, rankings=("full",))
    assert not [name for name in found["ease"]["test"] if name.startswith("sampled99")]


def test_a_cache_hit_equals_a_recomputation(tmp_path, monkeypatch):
    data, sampled = tiny()
    first = run(data, sampled, tmp_path / "new" / "cache")
    assert first == run(data, sampled)
    monkeypatch.setattr(module, "_compute", lambda *_: pytest.fail("computed in spite of the cache"))
    assert run(data, sampled, tmp_path / "new" / "cache") == first
    assert [f.suffix for f in (tmp_path / "new" / "cache").iterdir()] == [".json"]


@pytest.mark.parametrize("torn", [b"", b'{"version": 1, "contr', b"\xff\xfe", b"[]", b'{"version": 0}'])
def test_a_torn_cache_is_recomputed(tmp_path, torn):
    data, sampled = tiny()
    first = run(data, sampled, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(torn)
    assert run(data, sampled, tmp_path) == first
    assert file.read_bytes() != torn


def test_the_cache_knows_what_the_numbers_depend_on():
    data, sampled = tiny()

    def key(data=data, sampled=sampled, fingerprint="f", ks=KS, features=None, **changes):
        whole = dataset(data, fingerprint, features)
        return module._cache_key(whole, data, replace(CLEAN, **changes), ks, sampled)

    swapped = {"valid": sampled["test"], "test": sampled["valid"]}
    others = [
        key(fingerprint="g"),
        key(features=content()),
        key(features=content(fingerprint="d")),
        key(ks=(5,)),
        key(select_on="hr_at_5"),
        key(data=replace(data, test=data.valid, valid=data.test)),
        key(sampled=swapped),
        key(data=replace(data, n_items=41)),
    ]
    assert len({key(), *others}) == len(others) + 1
    assert key() == key()


def test_flags():
    assert chance_flag({"hr": 0.14}, {"hr": 0.10}, {"hr": 0.01}, "hr")
    assert not chance_flag({"hr": 0.12}, {"hr": 0.10}, {"hr": 0.01}, "hr")
    assert not chance_flag({"hr": 0.05}, {"hr": 0.10}, {"hr": 0.01}, "hr")
    assert not chance_flag({"hr": 0.14}, {"hr": 0.10}, {"hr": float("nan")}, "hr")
    assert constant_scores(0.0) and constant_scores(5e-7)
    assert not constant_scores(1e-3)
