"""Whatever is killed, whenever: the run ends with the bits of the undisturbed one, and says how much was lost."""

import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from fedray.errors import ActorLostError, CheckpointError
from fedray.federation import Driver
from fedray.methods import build
from fedray.runtime import session
from fedray.runtime.checkpoint import Go, opened
from fedray.runtime.executor import get
from fedray.runtime.failures import recoverable
from fedray.runtime.plan import make_plan
from tests.helpers import FCF, PFEDREC, run, tiny_config, tiny_data, tiny_features

pytestmark = pytest.mark.ray
DATA, FEATURES = tiny_data(clients=23), tiny_features()
GPFEDREC = {"backbone": {"name": "gpfedrec", "dim": 5, "item_lr_scale": 10.0, "user_lr_scale": 10.0}}
GROUPED = {"backbone": FCF["backbone"], "plugins": {"gfmfr": {"groups": 3, "group_dim": 5, "fit_epochs": 2}}}
METHODS = {"pfedrec": PFEDREC, "gpfedrec": GPFEDREC, "gfmfr": GROUPED}
TRAIN = {"rounds": 8, "clients_per_round": 0.7}


def numbers(reports, outcome):
    users = {name: column.tolist() for name, column in outcome.users.items()}
    each = [(r.round, r.metrics, r.bytes_up, r.bytes_down, r.clients_ok) for r in reports]
    return each, outcome.test, outcome.validation, users


def config_of(method, tmp_path, **runtime):
    runtime = {"actors": 2, "checkpoint": {"path": str(tmp_path), "every": 3}, **runtime}
    return tiny_config(method, TRAIN, runtime=runtime, evaluation={"k": [5, 10], "every": 2})


def killed(pid):
    os.kill(pid, signal.SIGKILL)


class Victims:
    """The processes of a crew; Ray gives an actor that comes back another one."""

    def __init__(self, crew):
        self.crew = crew

    def clients(self):
        return [get(a.ready.remote())["pid"] for a in self.crew.clients]

    def driver(self):
        return get(self.crew.driver.pid.remote())


def ray_run(config, tmp_path, kill):
    """(reports, outcome, restarts); `kill(round, victims)` is called after each round."""
    plan = make_plan(config, build(config, DATA.n_items, FEATURES), DATA, session.resources())
    checkpoints = opened(config, "data", "cpu", Go("r"))
    with session.crew(config, plan, DATA, FEATURES, checkpoints) as crew:
        driver, victims, reports = Driver(crew, config), Victims(crew), []
        for report in driver.rounds():
            reports.append(report)
            kill(report.round, victims)
        return reports, driver.asked("finish"), reports[-1].restarts


def one_client(round_, victims):
    if round_ in (1, 5):
        killed(victims.clients()[round_ % 2])


def all_clients(round_, victims):
    if round_ == 4:
        for pid in victims.clients():
            killed(pid)


def the_driver(round_, victims):
    if round_ in (2, 7):
        killed(victims.driver())


def everybody(round_, victims):
    if round_ == 5:
        for pid in [*victims.clients(), victims.driver()]:
            killed(pid)


KILLS = {"a client": (one_client, 2), "all clients": (all_clients, 2), "the driver": (the_driver, 2)}


@pytest.mark.parametrize(("kill", "lost"), KILLS.values(), ids=KILLS)
def test_pfedrec_ends_with_the_same_bits(ray_cluster, tmp_path, kill, lost):
    config = config_of(PFEDREC, tmp_path)
    _, reports, outcome, _ = run(config, DATA, features=FEATURES)
    *found, restarts = ray_run(config, tmp_path, kill)
    assert numbers(*found) == numbers(reports, outcome)
    assert restarts == lost


@pytest.mark.parametrize("method", [GPFEDREC, pytest.param(GROUPED, marks=pytest.mark.slow)], ids=["gpfedrec", "gfmfr"])
def test_methods_with_a_second_phase_do_too(ray_cluster, tmp_path, method):
    config = config_of(method, tmp_path)
    _, reports, outcome, _ = run(config, DATA, features=FEATURES)
    *found, restarts = ray_run(config, tmp_path, everybody)
    assert numbers(*found) == numbers(reports, outcome)
    assert restarts > 0


def test_kills_at_any_moment_change_nothing(ray_cluster, tmp_path):
    """From another thread, at random times, in the middle of whatever goes on."""
    config = config_of(PFEDREC, tmp_path).model_copy()
    _, reports, outcome, _ = run(config, DATA, features=FEATURES)
    rng, left = random.Random(1), [3]

    def soon(round_, victims):
        if round_ in (2, 4, 6):
            pid = rng.choice([*victims.clients(), victims.driver()])
            wait = rng.random() * 0.05
            threading.Timer(wait, lambda: (killed(pid), left.__setitem__(0, left[0] - 1))).start()
            time.sleep(wait * rng.random())

    reports_, outcome_, restarts = ray_run(config, tmp_path, soon)
    assert numbers(reports_, outcome_) == numbers(reports, outcome)
    assert left == [0] and restarts > 0


def test_without_recovery_a_killed_actor_is_a_named_error(ray_cluster, tmp_path):
    config = config_of(PFEDREC, tmp_path, recovery="none")
    with pytest.raises(ActorLostError, match="go on from the last checkpoint"):
        ray_run(config, tmp_path, one_client)


@pytest.mark.slow
def test_too_many_restarts_end_the_run(ray_cluster, tmp_path):
    config = config_of(PFEDREC, tmp_path, max_restarts=1)
    with pytest.raises(ActorLostError, match="at most 1 .runtime.max_restarts"):
        ray_run(config, tmp_path, one_client)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_actors(ray_cluster, tmp_path):
    config = config_of(PFEDREC, tmp_path)
    _, reports, outcome, _ = run(config, DATA, features=FEATURES)

    class Stopped(Exception):
        pass

    def stop(round_, victims):
        if round_ == 5:
            raise Stopped

    with pytest.raises(Stopped):
        ray_run(config, tmp_path, stop)
    again = config_of(PFEDREC, tmp_path, actors=3)
    plan = make_plan(again, build(again, DATA.n_items, FEATURES), DATA, session.resources())
    with session.crew(again, plan, DATA, FEATURES, opened(again, "data", "cpu", Go("r", True))) as crew:
        driver = Driver(crew, again)
        past = list(driver.resume())
        assert [r.round for r in past] == [1, 2, 3]
        found = past + list(driver.rounds()), driver.asked("finish")
    assert numbers(*found) == numbers(reports, outcome)


def test_a_folder_that_actors_do_not_see_is_refused_before_the_first_round(ray_cluster, tmp_path, monkeypatch):
    from fedray.storage import Storage

    config = config_of(PFEDREC, tmp_path)
    monkeypatch.setattr(Storage, "write", lambda *_: None)  # written here, and here alone: nowhere
    with pytest.raises(CheckpointError, match="do not see what is written there"):
        ray_run(config, tmp_path, lambda *_: None)


def test_the_clients_of_a_restored_actor_are_the_same_ones(ray_cluster, tmp_path):
    config = config_of(PFEDREC, tmp_path)
    plan = make_plan(config, build(config, DATA.n_items), DATA, session.resources())
    with session.crew(config, plan, DATA, None, opened(config, "data", "cpu", Go("r"))) as crew:
        driver = Driver(crew, config)
        before = [get(a.members.remote()) for a in crew.clients]
        rounds = driver.rounds()
        next(rounds)
        killed(Victims(crew).clients()[0])
        next(rounds)
        for old, actor in zip(before, crew.clients, strict=True):
            np.testing.assert_array_equal(old, get(actor.members.remote()))


def test_a_disk_that_is_full_where_an_actor_writes_comes_back_as_itself(ray_cluster):
    import errno

    @ray_cluster.remote
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    @ray_cluster.remote
    def without_a_node():
        raise OSError("Broken pipe")  # as Ray says it, from within

    with pytest.raises(ActorLostError, match="Broken pipe") as lost:
        get(without_a_node.remote())
    assert recoverable(lost.value)
    with pytest.raises(OSError, match="No space left") as caught:
        get(full.remote())
    assert caught.value.strerror == "No space left on device" and caught.value.errno == errno.ENOSPC


@pytest.mark.slow
def test_a_round_whose_report_died_with_the_driver_is_seen_all_the_same(ray_cluster, tmp_path):
    """It was committed, and then the driver was killed: the round is not done again, and not lost either."""
    config = config_of(PFEDREC, tmp_path)
    _, reports, outcome, _ = run(config, DATA, features=FEATURES)
    plan = make_plan(config, build(config, DATA.n_items, FEATURES), DATA, session.resources())
    with session.crew(config, plan, DATA, FEATURES, opened(config, "data", "cpu", Go("r"))) as crew:
        driver, found = Driver(crew, config), []
        for report in driver.rounds():
            found.append(report)
            if report.round in (2, 7):  # the next one is committed (7: as the last of a run with a name)
                get(crew.driver.step.remote(report.round))
                killed(get(crew.driver.pid.remote()))
        assert numbers(found, driver.asked("finish")) == numbers(reports, outcome)


def test_without_checkpoints_nothing_is_kept_to_do_rounds_again(ray_cluster, tmp_path):
    config = config_of(PFEDREC, tmp_path, checkpoint={"every": 0})
    with pytest.raises(ActorLostError, match="go on from the last checkpoint"):
        plan = make_plan(config, build(config, DATA.n_items, FEATURES), DATA, session.resources())
        with session.crew(config, plan, DATA, FEATURES) as crew:
            driver = Driver(crew, config).rounds()
            next(driver)
            killed(Victims(crew).clients()[0])
            next(driver)
