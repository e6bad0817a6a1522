"""The bench that every backbone under every set of plug-ins passes. A new file in `methods/` is on it by itself; a
combination that `build` refuses as unsupported is not."""

import numpy as np
import pytest
import yaml

from fedray import methods
from fedray.config import RunConfig, make_config, names_in, to_yaml
from fedray.errors import UnsupportedError
from fedray.federated import clients, rounds
from fedray.federated.cohort import EVERYONE
from fedray.federated.scoring import score_clients
from fedray.types import Broadcast
from tests import helpers
from tests.helpers import tiny_data, tiny_features

DATA = tiny_data()
M = DATA.n_items
FEATURES = tiny_features(M)
BACKBONES, PLUGINS = names_in("methods.backbones"), names_in("methods.plugins")


def build(config, n_items):
    return methods.build(config, n_items, FEATURES)


def executor(config, data):
    return helpers.executor(config, data, features=FEATURES)


def run(config, data, parts=None):
    return helpers.run(config, data, parts, FEATURES)


SMALL = {  # the terms that pull or push whole tables count per number: five dimensions want smaller steps than 32
    "fedrap": {"item_lr": 0.5},
    "gpfedrec": {"item_lr_scale": 10.0, "user_lr_scale": 10.0},
}
PLUGIN = {
    "fedopt": {"eps": 1e-3},  # without it Adam makes a full step of a change that is rounding alone
    "fedmr": {"gain": 1.0},  # views loud enough to be felt by a router within a few rounds
    "fedvlr": {"gain": 1.0},
}


def config_of(method, **train):
    """Default settings but for what the size needs; a few small steps a round."""
    backbone, plugins = method
    schedule = {"rounds": 10, "batch_size": 50, **train}
    evaluation = {"k": [5, 10], "local_only": True}
    settings = {"name": backbone, "dim": 5, **SMALL.get(backbone, {})}
    raw = {"backbone": settings, "plugins": {p: PLUGIN.get(p) for p in plugins}, "evaluation": evaluation}
    return make_config({**raw, "train": schedule})


def legal(method):
    try:
        build(config_of(method), M)
    except UnsupportedError:
        return False
    return True


CONTENT = {"fedmr", "fedvlr", "mlp", "vbpr"}  # each makes the item rows: one at a time
NOISY = [p for p in PLUGINS if p != "gfmfr"]  # groups are made of single clients' vectors, which noise is to hide
ALL = [tuple(p for p in NOISY if p not in CONTENT - {one}) for one in sorted(CONTENT)]
ALL.append(tuple(p for p in PLUGINS if p not in {*CONTENT - {"fedvlr"}, "laplace_ldp"}))
SUBSETS = [(), *((p,) for p in PLUGINS), *ALL]
METHODS = [(b, p) for b in BACKBONES for p in SUBSETS if legal((b, p))]
EACH = pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join([m[0], *m[1]]))


def test_there_is_something_on_the_bench():
    assert ("fcf", ("dualper",)) in METHODS
    assert {(b, ()) for b in BACKBONES} <= set(METHODS)
    assert {("fcf", p) for p in ALL if "fedvlr" in p} <= set(METHODS)


@EACH
def test_the_configuration_survives_yaml(method):
    config = config_of(method)
    again = make_config(yaml.safe_load(to_yaml(config)))
    assert again == config
    assert again.fingerprint() == config.fingerprint()
    assert [config.backbone.name, *config.plugins] == [method[0], *method[1]]
    name = method[0]
    for plugin in method[1]:
        name = f"{plugin}({name})"
    assert config.method_name() == build(config, M).name == name


def leaves(part):
    """(path, changed copy of the part) for every setting in it."""
    for name, value in part:
        if hasattr(value, "model_fields_set"):
            for path, child in leaves(value):
                yield f"{name}.{path}", part.model_copy(update={name: child})
        elif isinstance(value, dict):
            for key, section in value.items():
                for path, child in leaves(section):
                    yield f"{name}.{key}.{path}", part.model_copy(update={name: {**value, key: child}})
        else:
            yield name, part.model_copy(update={name: changed(value)})


def changed(value):
    if isinstance(value, bool):
        return not value
    if value is None:
        return 1
    if isinstance(value, str):
        return value + "x"
    return (value[:-1] if value else ("x",)) if isinstance(value, tuple) else value + 1


@EACH
def test_the_fingerprint_changes_with_every_setting_that_can_change_a_number(method):
    config = config_of(method)
    seen = {config.fingerprint()}
    for path, other in leaves(config):
        outside = path == "name" or path.startswith(("encoding.", "runtime.", "tracking."))
        assert (other.fingerprint() in seen) == outside, path
        seen |= {other.fingerprint()}
    assert len(seen) > 20


@EACH
def test_parameters_are_declared_once_and_start_in_the_right_shapes(method):
    m = build(config_of(method), M)
    shared, private = {*m.shared_rows, *m.shared_dense}, set(m.private)
    assert len(shared) + len(private) == len(m.shared_rows) + len(m.shared_dense) + len(m.private)
    assert not shared & private
    assert set(m.tuned) | set(m.collects) | set(m.pull) <= set(m.shared_rows)
    assert not set(m.private_rows) & (shared | private)
    assert {k: v.shape[0] for k, v in m.init_private_rows(0).items()} == dict.fromkeys(m.private_rows, M)
    server, own = m.parameters(m.down(m.init_server(0))), m.init_clients(0, np.array([4, 9, 2]))
    assert set(server) == shared
    assert set(own) == private
    assert all(len(server[k]) == M for k in m.shared_rows)
    assert all(len(v) == 3 for v in own.values())
    assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in [*server.values(), *own.values()])
    alone = m.init_clients(0, np.array([9]))
    for k, v in alone.items():
        np.testing.assert_array_equal(v[0], own[k][1])


@EACH
def test_phases_move_declared_parameters_only(method):
    m = build(config_of(method), M)
    for round_ in (0, 5):
        moved = [k for phase in m.phases(round_) for k in phase]
        assert set(moved) == {*m.row_tables, *m.shared_dense, *m.private}
        assert all(rate >= 0 for phase in m.phases(round_) for rate in phase.values())


@EACH
def test_loss_falls_and_private_parameters_move(method):
    config = config_of(method)
    final, reports, outcome, where = run(config, DATA)
    losses = [r.metrics["train/loss"] for r in reports]
    assert losses[-1] < losses[0]
    start = final.method.init_clients(config.seed, DATA.client)
    for k in final.method.private:
        moved = where._hosts[0].store.private[k] != start[k]
        assert moved.reshape(len(DATA), -1).any(axis=1).all(), k
    assert all(np.isfinite(v).all() for v in final.state.params.values())
    assert 0 <= outcome.test["ndcg_at_10"] <= outcome.test["hr_at_10"] <= 1


@EACH
@pytest.mark.parametrize("decay", [0.0, 1e-4])
def test_what_leaves_a_host_is_declared_summed_and_not_private(method, decay):
    config = config_of(method, weight_decay=decay)
    host = executor(config, DATA)._hosts[0]
    m, params = host.method, host.method.down(host.method.init_server(0))
    report = clients.train(host, Broadcast(0, params), EVERYONE)[1]
    total = report.total
    assert total.rows.keys() == set(m.shared_rows) - set(m.collects)
    assert [set(u.tables) for u in report.uploads] == ([set(m.collects)] if m.collects else [])
    assert total.dense.keys() == set(m.shared_dense)
    assert all(v.dense().shape == params[k].shape for k, v in total.rows.items())
    assert all(v.shape == params[k].shape for k, v in total.dense.items())
    known = {"loss", "clients", "samples", *(f"{x}/{k}" for k in params for x in ("weight", "decay"))}
    assert total.scalars.keys() <= known
    assert all(isinstance(v, int) for v in [*total.scalars.values(), *total.peak.values()])
    assert total.scalar("clients") == len(DATA)


@EACH
def test_the_compiled_and_the_vmapped_path_agree(method):
    if build(config_of(method), M).kernel is None:
        pytest.skip("one path only")
    a, b = (run(config_of(method, path=path, rounds=3, weight_decay=1e-6), DATA) for path in ("compiled", "vmap"))
    for k, v in a[0].state.params.items():
        np.testing.assert_allclose(v, b[0].state.params[k], atol=1e-5, rtol=1e-5)
    for k, v in a[3]._hosts[0].store.private.items():
        np.testing.assert_allclose(v, b[3]._hosts[0].store.private[k], atol=1e-5, rtol=1e-5)
    losses = [[r.metrics["train/loss"] for r in x[1]] for x in (a, b)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@EACH
@pytest.mark.parametrize("path", ["auto", "vmap"])
def test_two_hosts_equal_one(method, path):
    config = config_of(method, rounds=3, clients_per_round=0.7, path=path)
    one, two = run(config, DATA), run(config, DATA, [np.arange(0, 20, 2)[::-1], np.arange(1, 20, 2)])
    for k, v in one[0].state.params.items():
        np.testing.assert_array_equal(v, two[0].state.params[k])
    assert [r.metrics for r in one[1]] == [r.metrics for r in two[1]]
    assert one[2] == two[2]


@EACH
def test_every_client_gets_a_finite_score_for_every_item_before_and_after_training(method):
    config = config_of(method, rounds=2)
    where = executor(config, DATA)
    state = rounds.start(config, build(config, M))
    for _ in range(2):
        host, seen = where._hosts[0], []
        for who, scores in score_clients(host.method, host.store, state.broadcast.params):
            assert scores.shape == (len(who), M)
            assert np.isfinite(scores).all()
            assert np.all(scores.std(axis=1) > 0)
            seen += who.tolist()
        assert sorted(seen) == list(range(len(DATA)))
        state, _ = rounds.step(state, where)


@EACH
def test_a_method_is_the_same_wherever_it_is_made(method):
    """An actor builds its own from the configuration."""
    config = config_of(method)
    other = build(RunConfig.model_validate(config.model_dump()), M)
    here = build(config, M)
    assert [here.phases(r) for r in range(3)] == [other.phases(r) for r in range(3)]
    for k, v in here.init_server(3).items():
        np.testing.assert_array_equal(v, other.init_server(3)[k])
