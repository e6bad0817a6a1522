"""`runtime.recovery: drop` without Ray: rounds that go on without some actors are those of the others, to the bit."""

from dataclasses import replace

import numpy as np
import pytest

from fedray.errors import ActorLostError
from fedray.federated import client_store, clients, cohort, rounds
from fedray.federated.aggregate import ZERO
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor, add, merge_reports
from fedray.federated.reports import TrainReport, check_report
from fedray.methods import build
from fedray.runtime import dropping, executor
from fedray.runtime.dropping import DroppingExecutor
from fedray.runtime.failures import Dropping, most_client_restarts, most_restarts
from fedray.runtime.failures import dropping as policy_of
from fedray.storage import Storage
from tests.helpers import FCF, PFEDREC, tiny_config, tiny_data, tiny_features
from tests.runtime.stand_in_actors import StandInRay, stand_ins

DATA, FEATURES = tiny_data(clients=23), tiny_features()
PARTS = [np.arange(5), np.arange(5, 12), np.arange(12, 18), np.arange(18, 23)]
GPFEDREC = {"backbone": {"name": "gpfedrec", "dim": 5, "item_lr_scale": 10.0, "user_lr_scale": 10.0}}
GROUPED = {"backbone": FCF["backbone"], "plugins": {"gfmfr": {"groups": 3, "group_dim": 5, "fit_epochs": 2}}}
METHODS = {"pfedrec": PFEDREC, "gpfedrec": GPFEDREC, "gfmfr": GROUPED}


class Oracle(SerialExecutor):
    """Rounds without the hosts in `missing`; `late` ones are not validated either."""

    def __init__(self, hosts):
        super().__init__(hosts)
        self.missing, self.late, self.kept, self.saved = set(), set(), set(), list(self._hosts)

    def train(self, broadcast, limit, targets=None):
        seed, done, dropped = self._hosts[0].config.seed, [], 0
        for i, host in enumerate(self._hosts):
            if i in self.missing:
                dropped += int(cohort.members(seed, broadcast.round, host.data.client, limit).sum())
                idle = replace(host, trained=None, round=broadcast.round + 1)
                done.append((idle, TrainReport(ZERO, 0, 0, {}, round=broadcast.round)))
            else:
                done.append(clients.train(host, broadcast, limit, targets))
        self._hosts = [h for h, _ in done]
        checked = [check_report(h.method, broadcast, h.data.client, report) for h, report in done]
        nobody = len(self.missing) == len(self._hosts)
        return replace(merge_reports(checked, add), dropped=dropped, abandoned=nobody)

    def evaluate(self, broadcast, splits, which):
        there = [h for i, h in enumerate(self._hosts) if i not in self.late]
        return SerialExecutor.evaluate(view(there or self._hosts), broadcast, splits, which)

    def keep_best(self, which="best"):
        self.kept.add(which)
        super().keep_best(which)

    def save_all(self):
        self.saved, self.kept = list(self._hosts), set()

    def lose(self, lost):
        for i in lost:
            host = self.saved[i]
            for which in self.kept:
                host = clients.keep_best(host, which)
            self._hosts[i] = replace(host, round=self._hosts[i].round)


def view(hosts):
    out = SerialExecutor.__new__(SerialExecutor)
    out._hosts = hosts
    return out


class Side:
    """A run on stand-ins and its oracle, a round at a time."""

    def __init__(self, monkeypatch, method, features=None, train=None, **runtime):
        schedule = {"rounds": 9, "clients_per_round": 0.7, **(train or {})}
        runtime = {"recovery": "drop", "deadline_s": 5.0, **runtime}
        self.config = tiny_config(method, schedule, runtime=runtime)
        built = build(self.config, DATA.n_items, features)
        self.actors, births = stand_ins(self.config, built, DATA, PARTS, features)
        self.ray = StandInRay(self.actors)
        monkeypatch.setattr(executor, "ray", self.ray)
        monkeypatch.setattr(dropping, "ray", self.ray)
        monkeypatch.setattr(executor, "get", self.ray.get)
        monkeypatch.setattr(dropping, "get", self.ray.get)
        policy, most = policy_of(self.config, len(DATA)), self.config.runtime.max_restarts
        self.found = DroppingExecutor(self.actors, DATA.client, built, births, most, policy)
        self.oracle = Oracle([make_host(self.config, built, DATA.take(p)) for p in PARTS])
        self.runs = [rounds.start(self.config, built), rounds.start(self.config, built)]

    def step(self, stalled=(), dead=()):
        """The reports of both."""
        for i, actor in enumerate(self.actors):
            actor.stalled, actor.doomed = i in stalled, self.runs[0].state.round if i in dead else None
        self.oracle.missing, self.oracle.late = {*stalled, *dead}, set(stalled)
        self.oracle.lose(dead)
        self.runs[0], found = rounds.step(self.runs[0], self.found)
        self.runs[1], expected = rounds.step(self.runs[1], self.oracle)
        return tuple(replace(r, seconds={}, metrics=plain(r.metrics)) for r in (found, expected))

    def finish(self):
        for actor in self.actors:
            actor.stalled = False
        return tuple(rounds.finish(r, e) for r, e in zip(self.runs, (self.found, self.oracle), strict=True))


def plain(metrics):
    """NaN is the loss of nobody, and no number equals it."""
    return {k: -1.0 if np.isnan(v) else v for k, v in metrics.items()}


def state_of(actor):
    return client_store.to_arrays(actor._real._host.store)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for k, v in a.items():
        np.testing.assert_array_equal(v, b[k])


def same(a, b):
    assert a.test == b.test and a.validation == b.validation and a.best_round == b.best_round
    assert {k: v.tolist() for k, v in a.users.items()} == {k: v.tolist() for k, v in b.users.items()}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_rounds_without_the_lost_and_the_late_are_those_of_the_others(monkeypatch, tmp_path, method, seed):
    rng, side = np.random.default_rng(seed), Side(monkeypatch, method, FEATURES)
    side.step()  # an executor asks everybody once whose clients it has
    for r in range(1, 9):
        fate = rng.choice(["fine", "late", "lost"], size=len(PARTS), p=[0.6, 0.2, 0.2])
        found, expected = side.step(np.flatnonzero(fate == "late"), np.flatnonzero(fate == "lost"))
        assert found == expected
        if r == 4:
            for actor in side.actors:
                actor.stalled = False
            folder = Storage(str(tmp_path))
            side.found.committed(folder, side.found.snapshot(folder), r + 1)
            side.oracle.save_all()
    same(*side.finish())
    assert_equal(*(r.state.params for r in side.runs))


def test_a_group_of_whom_nobody_is_heard_keeps_what_it_was_taught(monkeypatch):
    grouped = {**GROUPED, "plugins": {"gfmfr": {**GROUPED["plugins"]["gfmfr"], "groups": 12}}}
    side = Side(monkeypatch, grouped, FEATURES, train={"clients_per_round": 1.0})
    side.step()
    before, side.actors[1].unheard = side.runs[0].state, ["by_group"]
    run, _ = rounds.step(side.runs[0], side.found)
    group, rest = run.state.params["gfmfr/group"], np.concatenate([p for i, p in enumerate(PARTS) if i != 1])
    alone = sorted({*group[PARTS[1]]} - {*group[rest]})
    changed = run.state.params["gfmfr/preference"] != before.params["gfmfr/preference"]
    assert alone and not changed[alone].any()
    assert changed[np.unique(group[rest])].all()
    rounds.step(run, side.found)


def test_without_faults_it_is_the_exact_executor(monkeypatch):
    side = Side(monkeypatch, PFEDREC)
    for _ in range(9):
        found, expected = side.step()
        assert found == expected and found.clients_dropped == found.abandoned == 0
    same(*side.finish())


def test_a_late_report_is_never_read_and_its_clients_are_as_before(monkeypatch):
    side = Side(monkeypatch, PFEDREC)
    side.step()
    before = state_of(side.actors[1])
    side.step(stalled=[1])
    late = [r for r in side.actors[1].waiting if r.name == "train"]
    assert len(late) == 1 and not late[0].done
    side.actors[1].stalled = False
    side.actors[1].work()
    assert late[0].answer.clients > 0 and late[0] not in side.ray.read
    assert_equal(before, state_of(side.actors[1]))
    found, expected = side.step()
    assert found == expected and found.clients_dropped == 0


def test_an_actor_that_stays_late_is_not_asked_meanwhile(monkeypatch):
    side = Side(monkeypatch, PFEDREC)
    side.step()
    for _ in range(5):
        found, expected = side.step(stalled=[0])
        assert found == expected
    assert [r.name for r in side.actors[0].waiting].count("train") == 1
    found, expected = side.step()
    assert found == expected and found.clients_dropped == 0


def test_a_round_of_too_few_changes_nothing_and_is_counted(monkeypatch):
    side = Side(monkeypatch, PFEDREC, train={"min_fraction": 0.5, "clients_per_round": 1.0})
    side.step()
    held = [state_of(a) for a in side.actors]
    params = side.runs[0].state.params
    side.oracle.lose = lambda lost: None
    found, _ = side.step(dead=[0, 1])  # 12 of 23 clients
    assert (found.abandoned, found.clients_ok, found.clients_dropped, found.bytes_up) == (1, 0, 23, 0)
    assert side.runs[0].state.round == 2
    assert_equal(params, side.runs[0].state.params)
    for i in (2, 3):  # those that did report have not trained either
        assert_equal(held[i], state_of(side.actors[i]))
    found, _ = side.step()
    assert (found.abandoned, found.clients_ok) == (0, 23)


def test_a_round_starts_when_enough_are_there(monkeypatch):
    side = Side(monkeypatch, PFEDREC, train={"min_fraction": 0.5, "clients_per_round": 1.0})
    side.step()
    side.step(stalled=[0, 1])
    waited = []

    def wait(refs, num_returns=1, timeout=None):
        if timeout:
            waited.append(timeout)
            side.actors[0].stalled = False
        return StandInRay.wait(side.ray, refs, num_returns, timeout)

    monkeypatch.setattr(side.ray, "wait", wait)
    found, _ = side.step(stalled=[0, 1])
    assert waited and found.abandoned == 0 and found.clients_dropped == 7


def test_a_round_closes_at_the_goal(monkeypatch):
    """8 clients are asked for and 16 selected; who has not landed by then is dropped, be it in time or not."""
    side = Side(monkeypatch, PFEDREC, train={"clients_per_round": 8, "over_select": 2.0})
    for _ in range(4):
        found, _ = side.step()
        assert 8 <= found.clients_ok <= 16 and found.clients_ok + found.clients_dropped == 16
    assert found.abandoned == 0


def test_an_actor_that_dies_again_and_again_ends_the_run(monkeypatch):
    side = Side(monkeypatch, PFEDREC, max_restarts=2)
    with pytest.raises(ActorLostError, match="at most 2 .runtime.max_restarts"):
        for _ in range(4):
            side.step(dead=[1])


def test_validation_waits_for_all_where_nobody_is_there(monkeypatch):
    side = Side(monkeypatch, PFEDREC)
    side.step()
    side.oracle.lose = lambda lost: None
    found, _ = side.step(dead=[0, 1, 2, 3])
    assert found.abandoned == 1 and "val/ndcg_at_10" in found.metrics


def test_the_policy_of_a_run():
    train = {"clients_per_round": 10, "over_select": 1.3, "min_fraction": 0.7}
    runtime = {"recovery": "drop", "deadline_s": 2.0, "max_restarts": 4}
    assert policy_of(tiny_config(PFEDREC, train, runtime=runtime), 23) == Dropping(0, 10, 7, 2.0)
    assert policy_of(tiny_config(PFEDREC, runtime={"recovery": "drop"}), 23) == Dropping(0, 23, 1, np.inf)
    assert policy_of(tiny_config(PFEDREC), 23) is None


@pytest.mark.parametrize(
    ("recovery", "every", "clients", "driver"),
    [("drop", 0, 4, 0), ("drop", 2, 4, 4), ("exact", 0, 0, 0), ("exact", 2, 4, 4), ("none", 2, 0, 0)],
)
def test_whose_death_a_run_survives(recovery, every, clients, driver):
    runtime = {"recovery": recovery, "checkpoint": {"every": every}, "max_restarts": 4}
    config = tiny_config(PFEDREC, runtime=runtime)
    assert (most_client_restarts(config), most_restarts(config)) == (clients, driver)
