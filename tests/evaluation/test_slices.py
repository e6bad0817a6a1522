"""Metrics over parts of the clients: masks by hand, numbers against the definition, names and the table."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fedray.config import make_config
from fedray.data.protocols import PROTOCOLS
from fedray.errors import OutOfRangeError
from fedray.evaluation import controls as module
from fedray.evaluation import slices
from fedray.evaluation.controls import controls
from fedray.evaluation.metrics import evaluate_scores
from fedray.evaluation.table import end_markdown, end_table
from fedray.family import family_table
from fedray.job import prepare, run_end, train
from fedray.tracking.records import finite
from tests.evaluation import naive
from tests.evaluation.naive import clients
from tests.evaluation.test_controls import KS, dataset, tiny

CLEAN = PROTOCOLS["clean"]
ALL = ("cold_items", "cold_users", "tail")
SPARSE = {
    "data": {"source": "synthetic", "users": 60, "items": 90, "cold_items": 0.1},
    "backbone": {"name": "fcf", "dim": 4},
    "train": {"rounds": 2},
    "evaluation": {"k": [5, 10], "slices": list(ALL)},
    "runtime": {"executor": "serial"},
    "tracking": {"backend": "none"},
}


def test_the_head_by_hand():
    assert slices.head(np.array([8, 1, 1])).tolist() == [True, False, False]  # exactly 80 %
    assert slices.head(np.array([1, 7, 1, 1])).tolist() == [True, True, False, False]  # ties: the lower id
    assert slices.head(np.array([0, 5, 5, 0])).tolist() == [False, True, True, False]
    assert not slices.head(np.zeros(3, np.int64)).any()


def test_masks_by_hand():
    """Training: item 0 eight times, items 1 and 2 once; nobody has 3 and 4."""
    train = [[0], [0, 1], [0, 2], [0], [0], [0], [0], [0]]
    test = [[1], [3], [0], [3, 4], [0, 4], [], [4], [2]]
    found = slices.masks(clients(train, [[]] * 8, test, 5), ALL)
    assert np.flatnonzero(found["cold_items"]).tolist() == [1, 3, 6]
    assert np.flatnonzero(found["tail"]).tolist() == [0, 1, 3, 6, 7]
    assert np.flatnonzero(found["cold_users"]).tolist() == [0, 3, 4, 6, 7]  # one item; who has no test item is out
    assert list(slices.masks(clients(train, [[]] * 8, test, 5), ("tail",))) == ["tail"]


def test_the_lower_quartile_of_users():
    train = [list(range(n)) for n in (1, 2, 3, 4, 5, 6, 7, 8)]
    found = slices.masks(clients(train, [[]] * 8, [[20]] * 8, 30), ("cold_users",))["cold_users"]
    assert np.flatnonzero(found).tolist() == [0, 1]
    assert not slices.masks(clients(train, [[]] * 8, [[]] * 8, 30), ("cold_users",))["cold_users"].any()


def with_cold(cold=(1, 5, 6, 22, 30, 39)):
    """`tiny` without these items in training and validation, and every third client with one of them to test."""
    data, sampled = tiny()
    rows = {k: [[i for i in getattr(data, k).row(c) if i not in cold] for c in range(60)] for k in ("train", "valid")}
    test = [[cold[c % len(cold)]] if c % 3 == 0 else [i for i in data.test.row(c) if i not in cold] for c in range(60)]
    return replace(clients(rows["train"], rows["valid"], test, 40), cold=np.array(cold)), sampled


def test_ranks_among_cold_items_are_those_of_the_definition():
    data, sampled = with_cold()
    scores = np.random.default_rng(3).integers(0, 5, (60, 40)).astype(np.float32)
    found = evaluate_scores(scores, data, "test", CLEAN, sampled["test"], KS)
    ranks = [
        1 + sum(scores[c, i] >= scores[c, t] for i in data.cold if i != t)
        for c in range(60)
        for t in data.test.row(c)
        if t in data.cold
    ]
    assert len(ranks) == 20 == found.weights()["among_cold/hr_at_5"]
    assert found.means()["among_cold/hr_at_5"] == pytest.approx(np.mean([r <= 5 for r in ranks]))
    expected = np.mean([naive.metrics([r], 5)[2] for r in ranks])
    assert found.means()["among_cold/ndcg_at_5"] == pytest.approx(expected, abs=1e-8)
    assert "among_cold/hr_at_10" not in found.means()  # of six
    valid = evaluate_scores(scores, data, "valid", CLEAN, sampled["valid"], KS).means()
    without = evaluate_scores(scores, replace(data, cold=data.cold[:0]), "test", CLEAN, sampled["test"], KS).means()
    assert not [name for name in (*valid, *without) if "cold" in name]
    assert without.items() <= found.means().items()


def test_controls_are_sliced_alike_in_any_chunks(monkeypatch):
    data, sampled = with_cold()
    parts = {name: np.flatnonzero(mask) for name, mask in slices.masks(data, ALL).items()}

    def run(names=ALL):
        return controls(dataset(data), data, CLEAN, KS, sampled, None, names)

    found = run()
    popularity = np.tile(np.bincount(data.train.values, minlength=40).astype(np.float32), (60, 1))
    for name, who in parts.items():
        alone = evaluate_scores(popularity[who], data.take(who), "test", CLEAN, sampled["test"].take(who), KS).means()
        assert found["popularity"]["test"][f"{name}/ndcg_at_10"] == pytest.approx(alone["ndcg_at_10"], abs=1e-9)
    assert found["popularity"]["test"]["among_cold/hr_at_5"] == 0 < found["random"]["test"]["among_cold/hr_at_5"]
    assert not [n for splits in found.values() for n in splits["valid"] if "/" in n]
    plain = run(())
    assert all(plain[c]["test"].items() <= found[c]["test"].items() for c in found)
    monkeypatch.setattr(module, "_CHUNK", 7 * 40)
    assert run() == found


def test_the_cache_knows_slices_and_cold_items():
    data, sampled = with_cold()
    other = replace(data, cold=data.cold[1:])
    seen = {
        module._cache_key(dataset(d), d, CLEAN, KS, sampled, names)
        for d in (data, other)
        for names in ((), ALL, ALL[:1])
    }
    assert len(seen) == 6


@pytest.fixture(scope="module")
def end():
    config = make_config(SPARSE)
    job = prepare(config)
    return job, train(config, Console(file=io.StringIO()), job=job)


def test_slices_of_a_run_are_means_over_its_users(end):
    job, result = end
    users, data, test = result.outcome.users, job.data, result.outcome.test
    popularity = np.bincount(data.train.values, minlength=data.n_items)
    order = sorted(range(data.n_items), key=lambda i: (-popularity[i], i))
    head, held = set(), 0
    for item in order:
        if held < 0.8 * popularity.sum():
            head.add(item)
        held += popularity[item]
    (target,) = {len(data.test.row(c)) for c in range(len(data))}
    assert target == 1
    items = [int(data.test.row(c)[0]) for c in range(len(data))]
    few = sorted(data.train.lengths())[int(np.ceil(len(data) / 4)) - 1]
    members = {
        "cold_items": [popularity[i] == 0 for i in items],
        "tail": [i not in head for i in items],
        "cold_users": [n <= few for n in data.train.lengths()],
    }
    for name, member in members.items():
        assert test[f"{name}/targets"] == sum(member) > 0
        for metric in ("hr_at_5", "ndcg_at_10"):
            assert test[f"{name}/{metric}"] == pytest.approx(np.mean(users[metric][member]), abs=1e-9)
    assert test["among_cold/targets"] == np.isin(items, data.cold).sum()
    assert set(users) == {n for n in test if "/" not in n and ("hr_at" in n or "ndcg_at" in n)} | {"client"}


def test_names_in_mlflow_and_in_the_tables(end):
    job, result = end
    kept, _ = finite(run_end(result, job, "FINISHED").metrics)
    for name in ALL:
        assert {f"test/{name}/ndcg_at_10", f"test/{name}/targets", f"control/ease/{name}/ndcg_at_10"} <= kept.keys()
    assert {"test/among_cold/ndcg_at_5", "control/popularity/among_cold/hr_at_5"} <= kept.keys()
    text = run_end(result, job, "FINISHED").texts["table.md"]
    assert f"| cold_items ({result.outcome.test['cold_items/targets']:.0f}) |  |" in text


def test_blocks_of_the_table_by_hand():
    run = {"hr_at_10": 0.5, "tail/hr_at_10": 0.25, "tail/targets": 4.0, "tail/hr_at_5": 0.1, "sampled99_hr_at_10": 0.9}
    alone = {"hr_at_10": 0.1}
    lines = end_markdown(run, {"popularity": {**run, "tail/hr_at_10": 0.0}, "local_only": alone}, ks=[10]).splitlines()
    assert lines[2:] == [
        "| hr_at_10 | 0.5000 | 0.5000 | 0.1000 |",
        "| sampled99_hr_at_10 | 0.9000 | 0.9000 | - |",
        "| tail (4) |  |  |  |",
        "| hr_at_10 | 0.2500 | 0.0000 | - |",
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(end_table(run, {}))
    shown = [line.strip() for line in console.export_text().splitlines()[2:]]
    assert shown == ["hr_at_10              0.5000", "sampled99_hr_at_10    0.9000", "", "tail (4)",
                     "hr_at_5               0.1000", "hr_at_10              0.2500"]  # fmt: skip
    family = {
        "test": run, "std": run, "control": {"local_only": alone}, "seeds": [0], "protocol": "p", "protocol_note": "n"
    }  # fmt: skip
    assert "| tail/hr_at_10 | 0.2500 | 0.2500 | - |" in family_table(family, [10])


def test_settings_name_slices_that_exist_once():
    assert make_config({"evaluation": {"slices": "tail"}}).evaluation.slices == ("tail",)
    for wrong in (["tail", "tail"], ["head"]):
        with pytest.raises(OutOfRangeError, match="slices"):
            make_config({"evaluation": {"slices": wrong}})
