"""Items held out of training: by hand, against the definition, and nowhere in training, validation or negatives."""

import numpy as np
import pytest

from fedray.data.blocks import draw_samples
from fedray.data.dataset import client_data, describe, fingerprint
from fedray.data.negatives import spared
from fedray.data.protocols import PROTOCOLS
from fedray.data.splits import DROPPED, choose_cold, leave_one_out
from fedray.errors import OutOfRangeError, TooFewInteractionsError
from fedray.federated.clients import make_host, samples_of
from fedray.methods import build
from fedray.types import TEST, TRAIN, VALID, Ragged
from tests.data import make
from tests.helpers import FCF, PFEDREC, tiny_config, tiny_data

N = 40
MANY = "user,item,timestamp\n" + "".join(f"{u},{(7 * u + 3 * i) % N},{i}\n" for u in range(12) for i in range(15))
SPLIT = "user,item,timestamp,split\n" + "".join(
    f"{u},{(7 * u + 3 * i) % N},{i},{0 if i < 9 else 1 if i < 12 else 2}\n" for u in range(12) for i in range(15)
)


def labels(user, time, cold, seed=0):
    user, cold = np.array(user), np.array(cold, dtype=bool)
    return leave_one_out(user, np.arange(len(user)), np.array(time, dtype=np.int64), seed, cold).tolist()


def test_the_latest_cold_item_is_test_and_the_latest_other_one_validation():
    time, cold = [1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 0, 0]
    assert labels([0] * 6, time, cold) == [TRAIN, DROPPED, TRAIN, TEST, TRAIN, VALID]
    assert labels([0] * 3, [1, 2, 3], [1, 0, 0]) == [TEST, TRAIN, VALID]
    assert labels([0] * 4, [9, 9, 9, 9], [0, 1, 1, 0]) == [VALID, TEST, DROPPED, TRAIN]  # ties: first in the file
    users = labels([0, 1, 0, 1, 0, 1], [1, 1, 2, 2, 3, 3], [0, 0, 1, 0, 0, 0])
    assert users == [TRAIN, TRAIN, TEST, VALID, VALID, TEST]


def test_too_few_besides_the_cold_ones_only_train():
    assert labels([0] * 4, [1, 2, 3, 4], [1, 1, 0, 1]) == [DROPPED, DROPPED, TRAIN, DROPPED]
    assert labels([0] * 2, [1, 2], [1, 1]) == [DROPPED, DROPPED]


def test_the_share_is_met_and_every_item_is_as_likely():
    assert [len(choose_cold(n, share, 0)) for n, share in ((40, 0.1), (40, 0.0), (3, 0.1), (1682, 0.1))] == [
        4,
        0,
        0,
        168,
    ]
    found = [choose_cold(20, 0.25, seed) for seed in range(400)]
    assert all((np.diff(c) > 0).all() for c in found)
    assert (np.abs(np.bincount(np.concatenate(found), minlength=20) - 100) < 4 * np.sqrt(75)).all()
    assert choose_cold(20, 0.25, 3).tolist() == found[3].tolist()


@pytest.mark.parametrize("rules", ["clean", "paper/pfedrec"])
def test_cold_items_are_test_targets_or_nothing(tmp_path, rules):
    make.write(tmp_path, MANY)
    plain, data = make.read(tmp_path, rules), make.read(tmp_path, rules, cold_items=0.25)
    table, cold, is_cold = data.interactions, data.cold, np.isin(data.interactions.item, data.cold)
    assert len(cold) == 10 and table.n_items == N == plain.interactions.n_items
    assert (data.label[is_cold] == TEST).all() and (data.label >= 0).all()
    external = set(table.item_ids[cold].astype(str))
    had = {p: make.rows_of(plain, p) for p in (TRAIN, VALID, TEST)}
    now = {p: make.rows_of(data, p) for p in (TRAIN, VALID, TEST)}
    targets = 0
    for user in had[TEST]:
        before = [*had[TRAIN][user], *had[VALID][user], *had[TEST][user]]  # by time, as the file is
        frozen = [i for i in before if i in external]
        if not frozen:
            assert all(now[p][user] == had[p][user] for p in now)
            continue
        targets += 1
        warm = [i for i in before if i not in external]
        assert (now[TRAIN][user], now[VALID][user], now[TEST][user]) == (warm[:-1], [warm[-1]], [frozen[-1]])
    dropped = len(plain.label) - len(data.label)
    assert describe(data)["cold_targets"] == targets == is_cold.sum() > 0
    assert (describe(data)["cold_items"], describe(data)["cold_interactions_dropped"]) == (10, dropped)
    assert client_data(data).cold.tolist() == cold.tolist()


def test_the_same_items_are_cold_under_every_protocol_and_by_the_data_seed(tmp_path):
    make.write(tmp_path, MANY)

    def chosen(**more):
        data = make.read(tmp_path, cold_items=0.25, **more)
        return sorted(data.interactions.item_ids[data.cold].tolist()), data.fingerprint

    assert len({str(chosen(rules=rules)[0]) for rules in PROTOCOLS}) == 1
    assert chosen(rules="clean") == chosen(rules="clean")
    assert chosen(seed=1)[0] != chosen()[0]


def test_without_cold_items_nothing_changes_and_with_them_the_fingerprint_does(tmp_path):
    make.write(tmp_path, MANY)
    none, zero, some = make.read(tmp_path), make.read(tmp_path, cold_items=0), make.read(tmp_path, cold_items=0.1)
    assert none.fingerprint == zero.fingerprint != some.fingerprint and not len(zero.cold)
    assert not [k for k in describe(zero) if k.startswith("cold")]
    table = none.interactions
    rows = table.user, table.item, none.label, table.n_items
    assert fingerprint(*rows, none.cold) == none.fingerprint != fingerprint(*rows, np.array([3]))


def test_users_with_too_little_left_are_short_users(tmp_path):
    body = "user,item,timestamp\n" + "".join(f"{u},{i},{i}\n" for u in range(6) for i in range(8))
    make.write(tmp_path, body + "".join(f"9,{i},{i}\n" for i in range(3)))
    for seed in range(40):
        data = make.read(tmp_path, cold_items=0.5, short_users="keep", seed=seed)
        cold = set(data.interactions.item_ids[data.cold].tolist())
        if len(cold & {0, 1, 2}) == 2:
            break
    (warm,) = {0, 1, 2} - cold
    assert make.rows_of(data, TRAIN)["9"] == [str(warm)] and "9" not in make.rows_of(data, TEST)
    assert data.counts["cold_short_users"] == 1
    dropped = make.read(tmp_path, cold_items=0.5, seed=seed)
    assert dropped.interactions.n_users == 6 and dropped.interactions.n_items == 8
    assert dropped.counts["cold_interactions_dropped"] == data.counts["cold_interactions_dropped"] + 1
    with pytest.raises(TooFewInteractionsError, match="user 9 has 2 interactions besides"):
        make.read(tmp_path, cold_items=0.5, short_users="error", seed=seed)


def test_given_labels_stay_and_cold_rows_for_training_and_validation_go(tmp_path):
    make.write(tmp_path, SPLIT)
    plain, data = (make.read(tmp_path, split="given", cold_items=share) for share in (0, 0.25))
    cold = set(data.interactions.item_ids[data.cold].astype(str))
    for part in (TRAIN, VALID):
        kept = {u: [i for i in rows if i not in cold] for u, rows in make.rows_of(plain, part).items()}
        assert make.rows_of(data, part) == {u: rows for u, rows in kept.items() if rows}
    assert make.rows_of(data, TEST) == make.rows_of(plain, TEST)


@pytest.mark.parametrize("share", [1, -0.1])
def test_a_share_outside_0_and_1_is_refused(tmp_path, share):
    with pytest.raises(OutOfRangeError, match="cold_items"):
        make.settings(make.write(tmp_path), cold_items=share)


def cold_data(cold):
    """`tiny_data` with these items out of training and validation; its test items may be among them."""
    data = tiny_data(clients=23)
    lists = {}
    for name in ("train", "valid"):
        part = getattr(data, name)
        row, kept = np.repeat(np.arange(23), part.lengths()), ~np.isin(part.values, cold)
        lists[name] = Ragged.of(row[kept], part.values[kept], 23)
    return type(data)(data.client, lists["train"], lists["valid"], data.test, data.n_items, np.array(cold))


COLD = [0, 7, 8, 31, 59]


@pytest.mark.parametrize("more", [{}, {"pairs": True}, {"lowest": True}], ids=str)
@pytest.mark.parametrize("rules", ["clean", "paper/gfmfr"])
def test_draws_are_those_of_clients_that_spare_the_cold_items(rules, more):
    """The definition: a list of spared items for each client, with all cold items in it."""
    data = cold_data(COLD)
    spare = spared(data, PROTOCOLS[rules])
    both = [np.union1d(spare.row(c), COLD) for c in range(23)]
    union = Ragged(np.cumsum([0, *map(len, both)]), np.concatenate(both))
    fixed = (data.n_items, 4, 2)
    for round_ in range(3):
        found = draw_samples(0, round_, data.client, data.train, spare, *fixed, **more, cold=data.cold)
        expected = draw_samples(0, round_, data.client, data.train, union, *fixed, **more)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


@pytest.mark.parametrize("method", [FCF, PFEDREC], ids=["fcf", "pfedrec"])
def test_no_client_ever_touches_a_cold_item(method):
    data = cold_data(COLD)
    config = tiny_config(method)
    host = make_host(config, build(config, data.n_items, None), data.take(np.arange(5, 20)))
    seen = np.unique(np.concatenate([samples_of(host, np.arange(15), r).rows for r in range(60)]))
    assert seen.tolist() == [i for i in range(data.n_items) if i not in COLD]
