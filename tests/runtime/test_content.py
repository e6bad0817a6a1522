"""Content stays with the driver: client actors get names and views, and a run has the serial executor's bits."""

import pickle

import numpy as np
import pytest

from fedray.errors import ContentError
from fedray.federated.clients import first_tables, make_host
from fedray.methods import build
from fedray.runtime import client_actor, session
from fedray.runtime.executor import get
from fedray.runtime.plan import make_plan
from fedray.types import FeatureNames
from tests.federated.test_against_loop import GPFEDREC
from tests.helpers import FCF, PFEDREC, run, tiny_config, tiny_data, tiny_features
from tests.runtime.test_ray import numbers

DATA = tiny_data(clients=11)
FEATURES = tiny_features(DATA.n_items)
NAMES = FeatureNames(FEATURES.names)
FEDVLR = {"fedvlr": {"router_dim": 6, "gain": 0.3}}
METHODS = {
    "plain": {**FCF, "plugins": FEDVLR},
    "dualper": {**PFEDREC, "plugins": {**PFEDREC["plugins"], **FEDVLR}},
    "collected": {**GPFEDREC, "plugins": FEDVLR},
    "vbpr": {**FCF, "plugins": {"vbpr": {}}},
}
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def config_of(method):
    evaluation = {"k": [5, 10], "local_only": True}
    return tiny_config(method, {"clients_per_round": 0.7}, evaluation=evaluation, runtime={"actors": 2})


def crew_of(config):
    plan = make_plan(config, build(config, DATA.n_items, FEATURES), DATA, session.resources())
    return session.crew(config, plan, DATA, FEATURES)


def content_in(values):
    """Whether some item's content is among the bytes of these values."""
    sent = pickle.dumps(values)
    return any(row.tobytes() in sent for table in FEATURES.tables.values() for row in table if row.any())


@pytest.mark.ray
@pytest.mark.parametrize("method", [METHODS["plain"], METHODS["dualper"]], ids=["plain", "dualper"])
def test_a_run_on_ray_equals_serial_and_its_clients_are_told_no_content(ray_cluster, monkeypatch, method):
    told, real = [], client_actor.Remote

    class Recorded:
        def options(self, **asked):
            told.append(asked)
            return self

        def remote(self, *given):
            told.append([get(v) if isinstance(v, ray_cluster.ObjectRef) else v for v in given])
            return real.options(**told[-2]).remote(*given)

    monkeypatch.setattr(client_actor, "Remote", Recorded())
    config, last, reports = config_of(method), False, []
    _, expected, outcome, _ = run(config, DATA, features=FEATURES)
    with crew_of(config) as crew:
        while not last:
            report, last = get(crew.driver.step.remote())
            reports.append(report)
        found = get(crew.driver.finish.remote())
    assert numbers(reports, found) == numbers(expected, outcome)
    assert found.local_only == outcome.local_only and outcome.local_only
    assert NAMES in told[1] and not content_in(told) and content_in([told, FEATURES])


@EACH
def test_a_client_told_the_names_is_the_client_that_has_the_content(method):
    config = config_of(method)
    knows, told = (build(config, DATA.n_items, f) for f in (FEATURES, NAMES))
    for field in ("name", "shared_rows", "private", "tuned", "collects", "fixed"):
        assert getattr(told, field) == getattr(knows, field)
    initial = first_tables(knows, config.seed)
    a, b = make_host(config, knows, DATA), make_host(config, told, DATA, initial=initial)
    for kind in ("private", "whole"):
        x, y = getattr(a.store, kind), getattr(b.store, kind)
        assert x.keys() == y.keys()
        for k, v in x.items():
            np.testing.assert_array_equal(v, y[k])
            assert not any(np.shares_memory(y[k], given) for given in initial.values())
    assert pickle.dumps(a.store.tuned) == pickle.dumps(b.store.tuned)


@EACH
def test_content_on_a_client_is_a_named_error(method):
    config = config_of(method)
    knows, told = (build(config, DATA.n_items, f) for f in (FEATURES, NAMES))
    with pytest.raises(ContentError, match=r"content of its items \(image, text\), and has the names alone"):
        told.init_server(config.seed)
    with pytest.raises(ContentError, match="the names alone"):
        told.down(knows.init_server(config.seed))


def test_a_client_draws_no_item_table(monkeypatch):
    """Not to know its width, and not to start."""
    from fedray.methods.backbones import fcf

    config = config_of(METHODS["dualper"])
    initial = first_tables(build(config, DATA.n_items, FEATURES), config.seed)
    monkeypatch.setattr(fcf, "item_table", None)
    make_host(config, build(config, DATA.n_items, NAMES), DATA, initial=initial)
    with pytest.raises(TypeError):
        build(config, DATA.n_items, FEATURES)
