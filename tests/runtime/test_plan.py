"""The plan: what is asked, by hand; and what is refused before anything starts."""

import numpy as np
import pytest

from fedray.errors import MemoryPlanError, PlacementError, UnsupportedError
from fedray.methods import build
from fedray.runtime import plan as planning
from fedray.runtime.address import reachable
from fedray.runtime.plan import Resources
from tests.helpers import FCF, PFEDREC, run, tiny_config, tiny_data

DATA = tiny_data(clients=23)
TWO = Resources(2.0, 0.0, 8e9)


def plan_of(there=TWO, method=PFEDREC, train=None, **runtime):
    config = tiny_config(method, train, runtime=runtime)
    return planning.make_plan(config, build(config, DATA.n_items), DATA, there), config


def test_auto_is_one_actor_a_cpu_and_literal_mode_one_a_client():
    assert (plan_of()[0].actors, plan_of()[0].cpus_per_actor) == (2, 1.0)
    literal, _ = plan_of(clients_per_actor=1)
    assert literal.actors == 23 and 23 * literal.cpus_per_actor <= 2.0 and literal.cpus_per_actor > 0.08
    assert plan_of(clients_per_actor=7)[0].actors == 4


def test_actors_fit_node_by_node_not_only_in_the_sum():
    plan, _ = plan_of(Resources(2.0, 0.0, 8e9, (1.0, 1.0)), actors=3)
    assert sum(int(1.0 / plan.cpus_per_actor) for _ in range(2)) >= 3


def test_a_gpu_is_taken_where_it_helps_and_refused_where_it_is_not():
    with_gpu = Resources(2.0, 1.0, 8e9)
    assert plan_of(with_gpu)[0].device == "cpu"  # the compiled kernel is for the CPU
    vmapped, _ = plan_of(with_gpu, train={"path": "vmap"})
    assert (vmapped.device, vmapped.actors, vmapped.gpus_per_actor) == ("cuda", 1, 1.0)
    with pytest.raises(PlacementError, match="no GPU"):
        plan_of(device="cuda")
    with pytest.raises(UnsupportedError):
        plan_of(with_gpu, train={"path": "compiled"}, device="cuda")
    plan, config = plan_of(with_gpu, train={"path": "vmap"}, actors=2)
    with pytest.raises(PlacementError, match="2 actors"):
        planning.check(plan, config, with_gpu)


def test_a_plan_that_does_not_fit_is_refused_with_figures():
    plan, config = plan_of(memory_limit_gb=0.5)
    with pytest.raises(MemoryPlanError, match=r"GB in all; expected at most 0\.50 GB.*serial"):
        planning.check(plan, config, TWO)
    planning.check(*plan_of(memory_limit_gb=4.0), TWO)


def test_traffic_is_what_a_round_then_counts():
    """Down exactly; up as expected over the draws of negatives."""
    plan, config = plan_of(method=FCF)
    _, reports, _, _ = run(config, DATA)
    assert {r.bytes_down for r in reports} == {plan.down_bytes}
    assert np.mean([r.bytes_up for r in reports]) == pytest.approx(plan.up_bytes, rel=0.05)


def test_shards_hold_every_client_once_and_are_even():
    parts = planning.shards(DATA, 4)
    assert sorted(np.concatenate(parts).tolist()) == list(range(23))
    loads = [int(DATA.train.take(p).lengths().sum()) for p in parts]
    assert max(loads) < 1.35 * min(loads)
    assert [len(p) for p in planning.even_shards(DATA, 7)] == [7, 7, 7, 2]


def test_reachable_needs_a_port_to_ask():
    assert reachable("auto") and reachable("") and not reachable("127.0.0.1:9") and not reachable("ray://127.0.0.1:9")
