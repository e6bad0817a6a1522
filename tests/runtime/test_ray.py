"""The Ray shell gives the serial executor's bits, keeps clients where they are, and leaves nothing behind."""

import numpy as np
import pytest

from fedray.errors import NonFiniteLossError, PlacementError
from fedray.federated import rounds
from fedray.methods import build
from fedray.runtime import session
from fedray.runtime.executor import RayExecutor, get
from fedray.runtime.plan import make_plan
from tests.helpers import FCF, PFEDREC, run, tiny_config, tiny_data, tiny_features

pytestmark = pytest.mark.ray
DATA = tiny_data(clients=23)


def crew_of(config, data=DATA, features=None):
    plan = make_plan(config, build(config, data.n_items, features), data, session.resources())
    return session.crew(config, plan, data, features)


def ray_run(config, data=DATA, features=None):
    """Reports and outcome of a run through the driver actor."""
    with crew_of(config, data, features) as crew:
        reports, last = [], False
        while not last:
            report, last = get(crew.driver.step.remote())
            reports.append(report)
        return reports, get(crew.driver.finish.remote())


def numbers(reports, outcome):
    users = {name: column.tolist() for name, column in outcome.users.items()}
    each = [(r.metrics, r.bytes_up, r.bytes_down, r.clients_ok) for r in reports]
    return each, outcome.test, outcome.validation, users


PACKINGS = [
    (PFEDREC, {"actors": 1}),
    (PFEDREC, {"actors": 2}),
    (PFEDREC, {"actors": 5}),
    (PFEDREC, {"clients_per_actor": 7}),
    (FCF, {"actors": 2}),
]


@pytest.mark.parametrize(("method", "runtime"), PACKINGS, ids=["one", "two", "five", "sevens", "fcf two"])
def test_ray_equals_serial_for_any_packing(ray_cluster, method, runtime):
    train = {"clients_per_round": 0.7}
    _, reports, outcome, _ = run(tiny_config(method, train), DATA)
    config = tiny_config(method, train, runtime=runtime)
    assert numbers(*ray_run(config)) == numbers(reports, outcome)


def test_routers_weights_and_what_the_model_is_without_a_part_are_those_of_serial(ray_cluster):
    """The end sends one round down in several versions: a model without its text must not meet that with."""
    features = tiny_features()
    method = {"backbone": FCF["backbone"], "plugins": {"fedvlr": {"views": ["id", "sum"], "gain": 0.5}}}
    _, reports, outcome, _ = run(tiny_config(method), DATA, features=features)
    found = ray_run(tiny_config(method, runtime={"actors": 2}), features=features)
    assert numbers(*found) == numbers(reports, outcome)
    assert found[1].ablation == outcome.ablation and found[1].test_errors == outcome.test_errors
    assert len({a.test["score_std"] for a in outcome.ablation.values()} | {outcome.test["score_std"]}) == 5


def test_groups_of_clients_are_those_of_serial(ray_cluster):
    features, train = tiny_features(), {"clients_per_round": 0.7}
    method = {"backbone": FCF["backbone"], "plugins": {"gfmfr": {"groups": 3, "group_dim": 5, "fit_epochs": 4}}}
    _, reports, outcome, _ = run(tiny_config(method, train), DATA, features=features)
    found = ray_run(tiny_config(method, train, runtime={"actors": 2}), features=features)
    assert numbers(*found) == numbers(reports, outcome) and "group" in outcome.users
    for mine, theirs in zip(found[1].groups, outcome.groups, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_ray_keeps_a_round_for_each_metric_that_selects(ray_cluster):
    options = {"select_on": ["hr_at_5", "ndcg_at_5"], "ties": "random"}
    rules = {"train": {"rounds": 6}, "evaluation": {"protocol": "paper/gfmfr", "k": [5], "options": options}}
    _, reports, outcome, _ = run(tiny_config(PFEDREC, **rules), DATA)
    on_ray = ray_run(tiny_config(PFEDREC, **rules, runtime={"actors": 2}))
    assert numbers(*on_ray) == numbers(reports, outcome)
    assert on_ray[1].rounds == outcome.rounds and len(set(outcome.rounds.values())) == 2


def test_literal_mode_is_one_live_actor_per_client(ray_cluster):
    from ray.util.state import list_actors

    data = DATA.take(np.arange(8))
    config = tiny_config(PFEDREC, runtime={"clients_per_actor": 1})
    with crew_of(config, data) as crew:
        held = [get(a.ready.remote())["clients"] for a in crew.clients]
        here, wanted = ray_cluster.get_runtime_context().gcs_address, [("class_name", "=", "ClientActor")]
        alive = list_actors(address=here, filters=[*wanted, ("state", "=", "ALIVE")])
        assert held == [1] * 8 and len(alive) == 8 and len({a.pid for a in alive}) == 8
        report, _ = get(crew.driver.step.remote())
    _, serial, _, _ = run(config, data)
    assert report.metrics == serial[0].metrics


def test_no_actor_stays_behind_and_resources_come_back(ray_cluster):
    from ray.util.state import list_actors

    with pytest.raises(KeyboardInterrupt), crew_of(tiny_config(runtime={"actors": 2})):
        raise KeyboardInterrupt
    here = ray_cluster.get_runtime_context().gcs_address
    wait_until(lambda: not list_actors(address=here, filters=[("state", "=", "ALIVE")]))
    wait_until(lambda: ray_cluster.available_resources().get("CPU") == ray_cluster.cluster_resources()["CPU"])


def wait_until(fact, seconds=15):
    import time

    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "still not so after the wait"
        time.sleep(0.2)


def test_one_put_and_one_call_per_actor_a_round(ray_cluster, monkeypatch):
    """The state that is evaluated is the state trained from next: one put covers both."""
    import ray

    config = tiny_config(FCF, runtime={"actors": 2})
    puts = []
    with crew_of(config) as crew:
        executor = RayExecutor(crew.clients, DATA.client, build(config, DATA.n_items))
        real = ray.put
        monkeypatch.setattr(ray, "put", lambda value: puts.append(1) or real(value))
        state = rounds.start(config, build(config, DATA.n_items))
        for _ in range(3):
            state, _ = rounds.step(state, executor)
    assert len(puts) == 4  # the start and the state after each of three rounds


def test_an_error_on_purpose_inside_an_actor_comes_back_as_itself(ray_cluster):
    method = {"backbone": {"name": "fcf", "dim": 8, "lr": 1e30}}
    with crew_of(tiny_config(method)) as crew, pytest.raises(NonFiniteLossError, match="clients"):
        while True:
            get(crew.driver.step.remote())


def test_actors_that_cannot_be_placed_say_what_was_asked_and_what_there_is(ray_cluster):
    config = tiny_config(runtime={"actors": 2, "start_timeout_s": 0.1})
    from dataclasses import replace

    plan = make_plan(config, build(config, DATA.n_items), DATA, session.resources())
    greedy = replace(plan, cpus_per_actor=64.0)
    with pytest.raises(PlacementError, match="64 CPU"), session.crew(config, greedy, DATA):
        pass


def test_what_leaves_an_actor_has_no_client_axis(ray_cluster):
    """A partial sum: its size does not grow with the clients it holds."""
    from fedray.federated.cohort import EVERYONE

    config = tiny_config(FCF, runtime={"actors": 1})
    params = build(config, DATA.n_items).init_server(0)
    with crew_of(config) as crew:
        total = get(crew.clients[0].train.remote(params, 0, EVERYONE)).total
    assert set(total.rows) == {"item_embedding"} and not total.dense
    assert total.rows["item_embedding"].values.shape == (DATA.n_items, 8)
    assert all(isinstance(v, int) for v in total.scalars.values())


def test_prometheus_sees_rounds_clients_bytes_and_no_client(ray_cluster):
    import urllib.request

    config = tiny_config(runtime={"actors": 2}).model_copy(update={"name": "watched"})
    with crew_of(config) as crew:
        for _ in range(3):
            get(crew.driver.step.remote())
        (node,) = ray_cluster.nodes()
        page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

        def lines():
            with urllib.request.urlopen(page, timeout=5) as answer:
                text = answer.read().decode()
            return [line for line in text.splitlines() if "fedray_" in line and 'run="watched"' in line]

        wait_until(lambda: any("fedray_round{" in line and line.endswith(" 3.0") for line in lines()), 40)
        found = lines()
    names = {line.split("{")[0].removeprefix("ray_") for line in found}
    assert {"fedray_clients_total", "fedray_bytes_total", "fedray_round_seconds_count"} <= names
    assert any('outcome="ok"' in line and line.endswith(f" {3 * len(DATA)}.0") for line in found)
    assert not any("client=" in line or "round=" in line for line in found)
