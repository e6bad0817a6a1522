"""`runtime.recovery: drop` on Ray: who dies or is late is left out of a round, counted, and back in another one."""

import os
import signal
import time

import numpy as np
import pytest

from fedray.errors import FedrayError, FedrayWarning
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federation import Driver
from fedray.methods import build
from fedray.runtime import session
from fedray.runtime.checkpoint import Go, opened
from fedray.runtime.executor import get
from fedray.runtime.plan import make_plan
from tests.helpers import PFEDREC, tiny_config, tiny_data
from tests.runtime.test_dropping import Oracle

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::fedray.errors.FedrayWarning")]
DATA = tiny_data(clients=23)
ROUNDS = 6


def config_of(train=None, **runtime):
    """Validated once, at the end: when an actor is back is a matter of time, and so who is validated."""
    runtime = {"actors": 2, "recovery": "drop", "checkpoint": {"every": 0}, **runtime}
    schedule = {"rounds": ROUNDS, "clients_per_round": 0.7, **(train or {})}
    return tiny_config(PFEDREC, schedule, runtime=runtime, evaluation={"k": [5, 10], "every": 100})


def plan_of(config):
    return make_plan(config, build(config, DATA.n_items), DATA, session.resources())


def pid_of(actor):
    """Once it is there, with its clients."""
    for _ in range(300):
        try:
            return get(actor.ready.remote())["pid"]
        except FedrayError:
            time.sleep(0.1)
    raise AssertionError("it does not come back")


def ray_run(config, disturb, settled=lambda round_, crew: None, checkpoints=None):
    """(reports, outcome); `disturb` is called before each round, `settled` after it."""
    with session.crew(config, plan_of(config), DATA, None, checkpoints) as crew:
        driver, reports = Driver(crew, config), []
        disturb(0, crew)
        for report in driver.rounds():
            reports.append(report)
            settled(report.round, crew)
            disturb(report.round, crew)
        return reports, driver.asked("finish")


def oracle_run(config, missing, lost=()):
    """The same without host 0 in the rounds `missing`; in those of `lost` its clients begin again."""
    method = build(config, DATA.n_items)
    parts = session.split(config, plan_of(config), DATA)
    oracle = Oracle([make_host(config, method, DATA.take(p)) for p in parts])
    run, reports = rounds.start(config, method), []
    while not rounds.finished(run):
        at = run.state.round
        oracle.missing = {0} if at in missing else set()
        oracle.lose([0] if at in lost else [])
        run, report = rounds.step(run, oracle)
        reports.append(report)
    return reports, rounds.finish(run, oracle)


def assert_same(found, expected):
    counts = [
        [(r.round, r.clients_ok, r.clients_dropped, r.bytes_up) for r in reports] for reports, _ in (found, expected)
    ]
    assert counts[0] == counts[1]
    losses = [[r.metrics["train/loss"] for r in reports] for reports, _ in (found, expected)]
    np.testing.assert_array_equal(*losses)
    a, b = found[1], expected[1]
    assert a.test == b.test and a.validation == b.validation
    assert {k: v.tolist() for k, v in a.users.items()} == {k: v.tolist() for k, v in b.users.items()}


def test_a_killed_actor_is_left_out_of_one_round(ray_cluster):
    config = config_of()

    def kill(round_, crew):
        if round_ == 2:
            os.kill(pid_of(crew.clients[0]), signal.SIGKILL)

    def back(round_, crew):
        pid_of(crew.clients[0])
        time.sleep(0.3)  # it is restored, too

    with pytest.warns(FedrayWarning, match="round 3 is without"):
        found = ray_run(config, kill, back)
    assert_same(found, oracle_run(config, missing=[2], lost=[2]))
    assert [r.clients_dropped > 0 for r in found[0]] == [False, False, True, False, False, False]
    assert found[0][-1].restarts == 1


def test_a_straggler_is_left_out_and_comes_back_uncounted(ray_cluster):
    """It is stopped for two rounds: the first waits for the deadline, the other does not ask it."""
    config, stopped = config_of({"over_select": 1.2}, deadline_s=8.0), []

    def stop(round_, crew):
        if round_ == 2:
            stopped.append(pid_of(crew.clients[0]))
            os.kill(stopped[0], signal.SIGSTOP)

    def go(round_, crew):
        if round_ == 4:
            os.kill(stopped[0], signal.SIGCONT)
            pid_of(crew.clients[0])

    found = ray_run(config, stop, go)
    dropped = [r.round - 1 for r in found[0] if r.clients_dropped]
    assert_same(found, oracle_run(config, missing=dropped))
    assert {2, 3} <= set(dropped)
    assert found[0][3].seconds["round"] < 8.0 < found[0][2].seconds["round"]
    assert found[0][-1].restarts == 0


@pytest.mark.slow
def test_too_few_leave_the_model_as_it_was(ray_cluster):
    config = config_of({"min_fraction": 1.0})

    def kill(round_, crew):
        if round_ == 2:
            os.kill(pid_of(crew.clients[1]), signal.SIGKILL)

    reports, _ = ray_run(config, kill)
    assert [r.abandoned for r in reports] == [0, 0, 1, 0, 0, 0]
    selected = reports[0].clients_ok
    assert [(r.clients_ok, r.clients_dropped) for r in reports] == [(selected, 0)] * 2 + [(0, selected)] + [
        (selected, 0)
    ] * 3


@pytest.mark.slow
def test_a_driver_that_dies_goes_on_from_its_checkpoint(ray_cluster, tmp_path):
    config = config_of(checkpoint={"path": str(tmp_path), "every": 2})

    def kill(round_, crew):
        if round_ == 3:
            os.kill(get(crew.driver.pid.remote()), signal.SIGKILL)

    found = ray_run(config, kill, checkpoints=opened(config, "data", "cpu", Go("r")))
    assert_same(found, oracle_run(config, missing=[]))
    assert found[0][-1].restarts == 1
