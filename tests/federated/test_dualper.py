"""Dual personalisation: the checks of methods.md 11.4, on PFedRec and on FedAvg."""

import math

import numpy as np
import pytest

from fedray.federated import clients, rounds
from fedray.federated.clients import samples_of, start_of
from fedray.federated.local_training import train_clients
from fedray.federated.scoring import score_clients
from fedray.methods import build
from fedray.types import Broadcast
from tests.evaluation.naive import clients as client_data
from tests.helpers import FCF, FEDAVG, executor, run, tiny_config, tiny_data
from tests.methods.test_fcf import BIAS, PATHS, TABLE, WEIGHT, samples, sigmoid, start
from tests.methods.test_fcf import method as make

DATA = tiny_data()
BACKBONES = pytest.mark.parametrize("backbone", [FCF, FEDAVG], ids=["fcf", "fedavg"])


def dual(backbone, scale=10.0, **train):
    return tiny_config({**backbone, "plugins": {"dualper": {"item_lr_scale": scale}}}, train)


def phase_alone(config, which):
    """(start, result) of a round in which only one of the two phases runs."""
    host = executor(config, DATA)._hosts[0]
    m = host.method._replace(phases=lambda r: (host.method.phases(r)[which],))
    who, params = np.arange(len(DATA)), m.init_server(0)
    s = samples_of(host, who, 0)
    begin = start_of(host, who, Broadcast(0, params), s)
    return begin, train_clients(m, config.train, 0, begin, s)


@PATHS
@BACKBONES
def test_the_first_phase_moves_the_head_alone(backbone, path):
    begin, found = phase_alone(dual(backbone, path=path), 0)
    np.testing.assert_array_equal(found.rows[TABLE], begin.rows(TABLE))
    assert np.all(found.private[WEIGHT] != begin.private[WEIGHT])
    assert np.all(found.private[BIAS] != begin.private[BIAS])


@PATHS
@BACKBONES
def test_the_second_phase_moves_the_touched_rows_alone(backbone, path):
    begin, found = phase_alone(dual(backbone, path=path), 1)
    np.testing.assert_array_equal(found.private[WEIGHT], begin.private[WEIGHT])
    np.testing.assert_array_equal(found.private[BIAS], begin.private[BIAS])
    assert np.all(np.any(found.rows[TABLE] != begin.rows(TABLE), axis=1))


@PATHS
def test_one_step_by_hand_takes_the_items_gradient_at_the_new_head(path):
    """M 2, d 1, one positive on z = 0.5 with w = 2, b = 0.1; eta 0.1, item rate 0.1 * 2 * 10."""
    m, train = make({"name": "fcf", "dim": 1, "lr": 0.1}, plugins={"dualper": {"item_lr_scale": 10}}, path=path)
    found = train_clients(m, train, 0, start([[0.5], [-1]], [2], 0.1), samples([0], [1], 2))
    first = sigmoid(1.1) - 1
    w, b = 2 - 0.1 * first * 0.5, 0.1 - 0.1 * first
    second = sigmoid(w * 0.5 + b) - 1
    assert [found.private[WEIGHT][0, 0], found.private[BIAS][0]] == pytest.approx([w, b], abs=1e-6)
    assert found.rows[TABLE][:, 0] == pytest.approx([0.5 - 2.0 * second * w, -1], abs=1e-6)
    assert found.loss[0] == pytest.approx(-math.log(sigmoid(1.1)), abs=1e-6)  # before either


@BACKBONES
def test_phases_come_head_first_and_the_scale_multiplies_the_item_rate(backbone):
    (joint,) = build(tiny_config(backbone), 60).phases(0)
    head, items = build(dual(backbone, scale=7), 60).phases(0)
    assert head == {WEIGHT: joint[WEIGHT], BIAS: joint[BIAS]}
    assert items == {TABLE: pytest.approx(7 * joint[TABLE])}


def own_tables(host, params):
    """Every client's own table: the broadcast with its tuned rows put over it."""
    tuned, tables = host.store.tuned, np.repeat(params[TABLE][None], len(host.data), axis=0)
    for c in range(len(host.data)):
        own = slice(tuned.ptr[c], tuned.ptr[c + 1])
        tables[c, tuned.rows[own]] = tuned.values[TABLE][own]
    return tables


def after_a_round(config):
    """(host, broadcast it trained from, run after the server's step)."""
    where = executor(config, DATA)
    begun = rounds.start(config, build(config, DATA.n_items))
    done, _ = rounds.step(begun, where)
    return where._hosts[0], begun.state.params, done


@BACKBONES
def test_untouched_rows_of_a_clients_own_table_are_the_broadcasts(backbone):
    host, params, _ = after_a_round(dual(backbone))
    s = samples_of(host, np.arange(len(DATA)), 0)
    for c, table in enumerate(own_tables(host, params)):
        touched = s.rows[s.row_ptr[c] : s.row_ptr[c + 1]]
        rest = np.setdiff1d(np.arange(60), touched)
        assert len(rest) > 0 or len(touched) == 60
        np.testing.assert_array_equal(table[rest], params[TABLE][rest])
        assert np.all(np.any(table[touched] != params[TABLE][touched], axis=1))
    assert host.store.tuned.scale[TABLE].tolist() == [1.0] * len(DATA)
    np.testing.assert_array_equal(host.store.bases[0][TABLE], params[TABLE])


@BACKBONES
def test_a_client_ranks_with_its_own_table_and_not_with_the_mean(backbone):
    host, params, done = after_a_round(dual(backbone))
    own, new = own_tables(host, params), done.state.params[TABLE]
    for who, scores in score_clients(host.method, host.store, done.state.params):
        w, b = host.store.private[WEIGHT][who], host.store.private[BIAS][who]
        np.testing.assert_allclose(scores, np.einsum("kmd,kd->km", own[who], w) + b[:, None], atol=1e-4, rtol=1e-4)
        assert not np.allclose(scores, w @ new.T + b[:, None], atol=1e-3)


@BACKBONES
def test_the_server_leaves_rows_that_nobody_touched_alone(backbone):
    data = client_data([[0, 1], [3]], [[5]] * 2, [[6]] * 2, 9)
    config = dual(backbone, negatives=0)
    final, _, _, _ = run(config, data)
    before = final.method.init_server(config.seed)[TABLE]
    same = np.all(final.state.params[TABLE] == before, axis=1)
    assert np.flatnonzero(~same).tolist() == [0, 1, 3]


def test_without_item_learning_only_heads_are_learnt_on_the_random_table():
    frozen = {"backbone": {**FCF["backbone"], "item_lr_scale": 0}}
    final, reports, _, where = run(dual(frozen, rounds=5), DATA)
    np.testing.assert_array_equal(final.state.params[TABLE], final.method.init_server(0)[TABLE])
    heads = where._hosts[0].store.private[WEIGHT]
    assert len(np.unique(heads, axis=0)) == len(DATA)
    assert reports[-1].metrics["train/loss"] < reports[0].metrics["train/loss"]


def test_a_client_outside_the_cohort_keeps_its_table_and_head_and_one_never_chosen_has_the_broadcast():
    config = dual(FCF, clients_per_round=0.3)
    host = executor(config, DATA)._hosts[0]
    params = host.method.init_server(0)
    fresh = {k: v.copy() for k, v in host.store.private.items()}
    for round_ in range(2):
        limit = rounds.cohort.threshold(0, round_, DATA.client, 0.3)
        host, _ = clients.train(host, Broadcast(round_, params), limit)
    never = host.store.last_round < 0
    assert 0 < never.sum() < len(DATA)
    now = {TABLE: np.full_like(params[TABLE], 2.0)}
    own = own_tables(host, params)
    own[never] = now[TABLE]
    for who, scores in score_clients(host.method, host.store, now):
        w, b = host.store.private[WEIGHT][who], host.store.private[BIAS][who]
        np.testing.assert_allclose(scores, np.einsum("kmd,kd->km", own[who], w) + b[:, None], atol=1e-4, rtol=1e-4)
    for k, v in fresh.items():
        np.testing.assert_array_equal(host.store.private[k][never], v[never])
