"""The plan: what is asked, by hand; and what is refused before anything starts."""

import os
import signal

import numpy as np
import pytest

from fedray.errors import MemoryPlanError, PlacementError, Terminated, UnsupportedError
from fedray.methods import build
from fedray.progress import signals_raise
from fedray.runtime import plan as planning
from fedray.runtime import session
from fedray.runtime.address import reachable
from fedray.runtime.plan import Resources
from fedray.types import ClientData, Ragged
from tests.helpers import FCF, PFEDREC, run, tiny_config, tiny_data

DATA = tiny_data(clients=23)
GPFEDREC = {"backbone": {"name": "gpfedrec", "dim": 8, "item_lr_scale": 10}}
FEDRAP = {"backbone": {"name": "fedrap", "dim": 8}}
NOISY = {**FCF, "plugins": {"laplace_ldp": {"scale": 0.1}}}
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


@pytest.mark.parametrize(
    ("method", "up", "down"),
    [
        (NOISY, 23 * 60 * 8 * 4, 23 * 60 * 8 * 4),
        (GPFEDREC, 23 * 60 * 8 * 4, 2 * 23 * 60 * 8 * 4),  # down: the common table and, after round 1, the client's own
    ],
    ids=["noise", "collected"],
)
def test_noisy_and_collected_tables_travel_whole(method, up, down):
    """23 clients, 60 items, 8 numbers of 4 bytes each; no row ids, whatever was touched."""
    plan, config = plan_of(method=method)
    _, reports, _, _ = run(config, DATA)
    assert {(r.bytes_up, r.bytes_down) for r in reports[1:]} == {(plan.up_bytes, plan.down_bytes)} == {(up, down)}
    assert (reports[0].bytes_up, reports[0].bytes_down) == (up, 23 * 60 * 8 * 4)


def test_of_a_cohort_only_those_of_the_last_one_have_a_table_of_their_own():
    plan, _ = plan_of(method=GPFEDREC, train={"clients_per_round": 12})
    assert plan.up_bytes == pytest.approx(12 * 60 * 8 * 4)
    assert plan.down_bytes == pytest.approx(12 * 60 * 8 * 4 * (1 + 12 / 23))


def test_the_driver_holds_four_tables_a_client_and_four_matrices_of_clients():
    """Uploads as they come and joined, targets, a working copy; of a cohort of 12: 4 x 4 x 12 x (60 x 8 + 12) bytes. In
    the clients' own process two of the four tables."""
    assert plan_of(method=GPFEDREC)[0].server_bytes == 16 * 23 * 60 * 8 + 16 * 23**2
    assert plan_of(method=GPFEDREC, train={"clients_per_round": 12})[0].server_bytes == 16 * 12 * (60 * 8 + 12)
    assert plan_of(method=GPFEDREC, executor="serial")[0].server_bytes == 8 * 23 * 60 * 8 + 16 * 23**2
    assert plan_of(method=FCF)[0].server_bytes == 0 == plan_of(method=FEDRAP)[0].server_bytes


def kept(method, **train):
    """`client_bytes` of two clients with 6 training items each of 60, and no negatives: 6 touched rows a round."""
    config = tiny_config(method, {"negatives": 0, **train})
    data, m = synthetic(2, 60, 6), build(config, 60)
    rows = planning.touched_rows(config, data)
    assert rows.tolist() == [6, 6]
    return planning.client_bytes(config, m, data, rows, planning.sizes(config, m))


def synthetic(clients, items, each):
    """Clients with the items 0 ... each - 1, and the next two held out."""
    ptr = np.arange(clients + 1, dtype=np.int64)
    train = Ragged(ptr * each, np.tile(np.arange(each), clients))
    held_out = (Ragged(ptr, np.full(clients, each + i)) for i in (0, 1))
    return ClientData(np.arange(clients), train, *held_out, items)


def test_rounds_are_kept_until_the_next_checkpoint():
    def kept(method=FCF, **runtime):
        config = tiny_config(method, {"rounds": 50}, runtime=runtime)
        made = build(config, DATA.n_items)
        return planning.kept_rounds(config, DATA.n_items, 23, planning.sizes(config, made))

    table = 4 * 8 * DATA.n_items
    assert kept() == 50 * table  # of `auto` nothing is known but that there are no more rounds
    assert kept(checkpoint={"every": 7}) == 7 * table
    assert kept(recovery="none") == kept(checkpoint={"every": 0}) == table
    assert kept(GPFEDREC, checkpoint={"every": 1}) > 23 * table
    assert kept(GPFEDREC, checkpoint={"every": 1_000_000}) == planning.MOST_BYTES


def test_a_private_table_is_kept_as_the_rows_ever_touched():
    """FedRAP over FCF: 12 more rows of 8 trained, start and end; and by 10 rounds 60 (1 - e^-1) rows of 8 and an id a
    client, now, at the best round and in hand."""
    trained = 12 * 8 * 4 * 2
    ever = 60 * (1 - np.exp(-1.0))
    own = 3 * 2 * ever * (8 + 1) * 4
    assert kept(FEDRAP, rounds=10) - kept(FCF, rounds=10) == pytest.approx(trained + own)
    assert kept(FEDRAP, rounds=10_000) - kept(FCF, rounds=10_000) == pytest.approx(trained + 3 * 2 * 60 * 9 * 4)


def test_a_collected_table_is_kept_whole_four_times():
    """GPFedRec over FedNCF, but for the layers, which it keeps private: 4 tables of 60 x 8 a client."""
    layers = 16 * 32 + 32 + 32 * 16 + 16 + 16 * 8 + 8 + 8 + 1
    fedncf = {"backbone": {"name": "fedncf", "dim": 8}}
    assert kept(GPFEDREC) - kept(fedncf) == pytest.approx(4 * 2 * 60 * 8 * 4)
    sizes = {name: planning.sizes(c := tiny_config(m), build(c, 60)) for name, m in (("a", fedncf), ("b", GPFEDREC))}
    assert (sizes["a"].dense, sizes["a"].private, sizes["a"].collected) == (layers, 8, 0)
    assert (sizes["b"].dense, sizes["b"].private, sizes["b"].collected) == (0, layers + 8, 8)


def test_gpfedrec_on_amazon_video_is_refused_with_the_figures_of_its_tables_and_graph():
    """8,072 clients x 11,830 items x 32 x 4 bytes is 12.22 GB, four times and with four 8,072 x 8,072 matrices 49.93 GB
    at the driver, and as much again at the clients. Nothing of that size is made to find out."""
    data = synthetic(8072, 11_830, 6)
    config = tiny_config({"backbone": {"name": "gpfedrec", "dim": 32}})
    plan = planning.make_plan(config, build(config, data.n_items), data, Resources(2.0, 0.0, 24e9))
    assert plan.server_bytes == 16 * 8072 * 11_830 * 32 + 16 * 8072**2 == pytest.approx(49.93e9, rel=1e-3)
    assert plan.total_bytes > 2 * 4 * 8072 * 11_830 * 32 * 4
    with pytest.raises(MemoryPlanError, match=r"49\.93 GB for tables and a graph at the driver.*at most 24\.00 GB"):
        planning.check(plan, config, Resources(2.0, 0.0, 24e9))


def test_shards_hold_every_client_once_and_are_even():
    parts = planning.shards(DATA, 4)
    assert sorted(np.concatenate(parts).tolist()) == list(range(23))
    loads = [int(DATA.train.take(p).lengths().sum()) for p in parts]
    assert max(loads) < 1.35 * min(loads)
    assert [len(p) for p in planning.even_shards(DATA, 7)] == [7, 7, 7, 2]


def test_reachable_needs_a_port_to_ask():
    assert reachable("auto") and reachable("") and not reachable("127.0.0.1:9") and not reachable("ray://127.0.0.1:9")


def test_a_signal_while_ray_starts_waits_until_it_has_started_and_a_second_one_does_not():
    started = []
    with pytest.raises(Terminated), signals_raise(), session._signals_wait():
        os.kill(os.getpid(), signal.SIGTERM)
        started.append("one")
    with pytest.raises(Terminated), signals_raise(), session._signals_wait():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        started.append("two")
    assert started == ["one"]
    with signals_raise(), session._signals_wait():
        pass
