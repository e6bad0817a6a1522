"""What an actor answers late, twice or wrong never gets into a sum."""

from dataclasses import replace

import numpy as np
import pytest
from ray import exceptions

from fedray.errors import ActorLostError, BadReportError
from fedray.federated import clients, rounds
from fedray.federated.clients import make_host
from fedray.federated.cohort import EVERYONE
from fedray.federated.executor import SerialExecutor
from fedray.methods import build
from fedray.runtime import client_actor, executor, session
from fedray.runtime.executor import RayExecutor, get
from fedray.runtime.plan import make_plan
from fedray.types import Broadcast
from tests.helpers import FCF, PFEDREC, tiny_config, tiny_data

DATA = tiny_data(clients=9)
PARTS = [np.arange(4), np.arange(4, 9)]


class Fake:
    """Ray of an executor, in this process: a request is answered when it is waited for; actor `dies` is lost at its
    first training, and the answer it had ready lands after all, once it has answered again."""

    def __init__(self, hosts, dies):
        self.hosts, self.fresh, self.dies, self.late, self.read = dict(enumerate(hosts)), hosts, dies, [], []

    def wait(self, refs, num_returns=1, timeout=None):
        late = [r for r in self.late if r in refs]
        assert not late, "an answer to a forgotten request is waited for"
        return [refs[0]], refs[1:]

    def put(self, value):
        return value

    def get(self, ref):
        self.read.append(ref)
        answer = ref.answer()
        if ref.name == "train" and ref.actor == self.dies and not self.late:
            self.late.append(ref)
            self.hosts[ref.actor] = self.fresh[ref.actor]
            raise ActorLostError("gone") from exceptions.ActorUnavailableError("gone", b"0" * 16)
        return answer


class Ref:
    def __init__(self, fake, actor, name, args):
        self.fake, self.actor, self.name, self.args = fake, actor, name, args

    def answer(self):
        host = self.fake.hosts[self.actor]
        if self.name == "members":
            return host.data.client
        if self.name != "train":
            return None
        params, round_, limit, targets = self.args
        self.fake.hosts[self.actor], report = clients.train(host, Broadcast(round_, params), limit, targets)
        return report


class Actor:
    def __init__(self, fake, i):
        self.fake, self.i = fake, i

    def __getattr__(self, name):
        return type("Call", (), {"remote": lambda _, *args: Ref(self.fake, self.i, name, args)})()


@pytest.mark.parametrize("dies", [None, 0, 1])
def test_of_an_actor_that_was_lost_and_answers_twice_one_answer_is_summed(monkeypatch, dies):
    config = tiny_config(PFEDREC)
    method = build(config, DATA.n_items)
    hosts = [make_host(config, method, DATA.take(p)) for p in PARTS]
    fake = Fake(hosts, dies)
    for name in ("wait", "put"):
        monkeypatch.setattr(executor.ray, name, getattr(fake, name))
    monkeypatch.setattr(executor, "get", fake.get)
    actors = [Actor(fake, i) for i in range(2)]
    on_ray = RayExecutor(actors, DATA.client, method, [(), ()], 5)
    broadcast = rounds.start(config, method).broadcast
    found, expected = (e.train(broadcast, EVERYONE, None) for e in (on_ray, SerialExecutor(hosts)))
    assert found.clients == expected.clients == 9
    assert found.total.scalars == expected.total.scalars
    np.testing.assert_array_equal(found.total.rows["item_embedding"].dense(),
                                  expected.total.rows["item_embedding"].dense())  # fmt: skip
    assert len({id(r) for r in fake.read}) == len(fake.read)
    assert sum(r.name == "train" for r in fake.read) == (2 if dies is None else 3)
    assert on_ray.restarts == (dies is not None)


class Late(client_actor.ClientActor):
    """Says in every round that it is a later one."""

    def train(self, params, round_, limit, targets=None):
        return replace(super().train(params, round_, limit, targets), round=round_ + 7)


@pytest.mark.ray
def test_an_actor_whose_report_is_of_another_round_ends_the_run(ray_cluster, monkeypatch):
    config = tiny_config(FCF, runtime={"actors": 2})
    monkeypatch.setattr(client_actor, "Remote", ray_cluster.remote(Late))
    plan = make_plan(config, build(config, DATA.n_items), DATA, session.resources())
    with session.crew(config, plan, DATA) as crew, pytest.raises(BadReportError, match="its report has round 7"):
        get(crew.driver.step.remote())
