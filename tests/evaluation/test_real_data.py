"""ML-100K: the controls give the figures that are known for it."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedray.data.protocols import PROTOCOLS
from fedray.evaluation.controls import controls
from fedray.types import ClientData, Dataset, Interactions, Ragged

ROOT = Path(os.environ.get("FEDRAY_DATA", Path(__file__).parents[3] / "shared" / "data"))
FILE = ROOT / "ml-100k" / "interactions.csv"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not FILE.is_file(), reason="set FEDRAY_DATA to a folder with ml-100k"),
]


@pytest.fixture(scope="module")
def ml100k():
    """Leave-one-out by time and 99 sampled candidates per split."""
    table = pd.read_csv(FILE)
    user, item = pd.factorize(table["user"], sort=True)[0], pd.factorize(table["item"], sort=True)[0]
    n_users, n_items = int(user.max()) + 1, int(item.max()) + 1
    order = np.lexsort((np.arange(len(table)), table["timestamp"], user))
    user, item = user[order], item[order]
    back = pd.Series(user).groupby(user).cumcount(ascending=False).to_numpy()
    parts = [Ragged.of(user[on], item[on], n_users) for on in (back > 1, back == 1, back == 0)]
    data = ClientData(np.arange(n_users), *parts, int(n_items))
    rng, known = np.random.Generator(np.random.Philox(0)), Ragged.of(user, item, n_users)
    drawn = [rng.permutation(np.setdiff1d(np.arange(n_items), known.row(c)))[:198] for c in range(n_users)]
    ptr = np.arange(n_users + 1) * 99
    halves = [np.concatenate([np.sort(d[part]) for d in drawn]) for part in (slice(99), slice(99, 198))]
    candidates = {name: Ragged(ptr, half) for name, half in zip(("valid", "test"), halves, strict=True)}
    time = table["timestamp"].to_numpy()[order]
    rows = Interactions(user, item, time, None, np.arange(n_users), np.arange(n_items))
    label = np.array([2, 1, 0])[np.minimum(back, 2)]
    return Dataset("ml100k", rows, label, pd.DataFrame(), None, {}, "test"), data, candidates


def test_known_figures(ml100k):
    dataset, data, candidates = ml100k
    test = {
        name: splits["test"]
        for name, splits in controls(dataset, data, PROTOCOLS["clean"], (10, 50), candidates, None).items()
    }
    assert test["popularity"]["ndcg_at_10"] == pytest.approx(0.043, abs=0.002)
    assert test["popularity"]["hr_at_50"] == pytest.approx(0.200, abs=0.004)
    assert test["ease"]["ndcg_at_10"] == pytest.approx(0.077, abs=0.004)
    assert test["ease"]["hr_at_50"] == pytest.approx(0.388, abs=0.01)
    assert test["random"]["hr_at_50"] == pytest.approx(0.032, abs=0.006)
    assert set(v for name, v in test["constant"].items()) == {0.0}
    assert test["popularity"]["sampled99_ndcg_at_10"] == pytest.approx(0.223, abs=0.012)
    assert test["ease"]["sampled99_ndcg_at_10"] == pytest.approx(0.381, abs=0.02)
    assert test["random"]["sampled99_hr_at_10"] == pytest.approx(0.10, abs=0.01)
