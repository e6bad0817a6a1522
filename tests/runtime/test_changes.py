"""Settings that change between rounds: nothing else does, wherever the run is broken off."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from ray.util.state import list_actors

from fedray.changes import MAY_CHANGE, may_change
from fedray.errors import (
    BeforeChangeError,
    CheckpointError,
    OutOfRangeError,
    ResumeError,
    UnknownKeyError,
    UnsupportedError,
    WrongTypeError,
)
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.federation import federation
from fedray.methods import build
from fedray.runtime.checkpoint import Go, opened
from fedray.runtime.coordinator import Coordinator
from fedray.runtime.plan import Resources, make_plan
from tests.helpers import FCF, PFEDREC, tiny_config, tiny_data, tiny_features

DATA, FEATURES = tiny_data(), tiny_features()
R = Go("r")
HERE = Resources(cpus=2.0, gpus=0.0, memory_bytes=8e9)
ADAM = {**PFEDREC, "plugins": {**PFEDREC["plugins"], "fedopt": {"lr": 0.02}}}
GROUPED = {**FCF, "plugins": {"gfmfr": {"groups": 3, "group_dim": 5, "fit_epochs": 2, "schedule": "cosine"}}}
VIEWS = {**FCF, "plugins": {"fedvlr": {"views": ["id", "sum"], "router_dim": 4}}}
METHODS = {"pfedrec": PFEDREC, "fedopt": ADAM, "gfmfr": GROUPED, "fedvlr": VIEWS}


def config_of(tmp_path, method=PFEDREC, changes=None, rounds=8, keep=3, **train):
    checkpoint = {"path": str(tmp_path / "all"), "every": 3, "keep": keep}
    runtime = {"executor": "serial", "checkpoint": checkpoint}
    return tiny_config(method, {"rounds": rounds, **train}, runtime=runtime, changes=changes or {})


def whole(config, go=R, stop_after=0):
    """(reports, outcome, shared parameters) of a run, or what came of it until it was broken off."""
    method = build(config, DATA.n_items, FEATURES)
    plan = make_plan(config, method, DATA, HERE)
    with federation(config, method, DATA, FEATURES, plan, opened(config, "data", "cpu", go)) as clients:
        reports = list(clients.resume()) if go.resume else []
        for report in clients.rounds():
            reports.append(report)
            if report.round == stop_after:
                return reports, None, None
        return reports, clients.finish(), clients.save(str(config.runtime.checkpoint.path) + "-model")[0]


def numbers(found):
    reports, outcome, params = found
    users = {k: v.tolist() for k, v in outcome.users.items()}
    each = [(r.round, r.metrics, r.bytes_up, r.bytes_down) for r in reports]
    return each, outcome.best_round, outcome.test, users, {k: v.tolist() for k, v in params.items()}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_change_to_the_same_changes_nothing(tmp_path, method):
    plain = whole(config_of(tmp_path / "a", method))
    same = whole(config_of(tmp_path / "b", method, {4: {"backbone.lr": 0.1}, 6: {}}))
    assert numbers(same) == numbers(plain)


def test_halving_the_rate_each_round_is_a_decay_of_a_half(tmp_path):
    """An oracle of its own: powers of two are exact, and `lr_decay` is another way through the code."""
    decayed = {**FCF, "backbone": {**FCF["backbone"], "lr": 0.5, "lr_decay": 0.5}}
    constant = {**FCF, "backbone": {**FCF["backbone"], "lr": 0.5}}
    changes = {n: {"backbone.lr": 0.5 ** (n + 1)} for n in range(1, 5)}
    found = whole(config_of(tmp_path / "b", constant, changes, rounds=5))
    assert numbers(found) == numbers(whole(config_of(tmp_path / "a", decayed, rounds=5)))
    assert numbers(found) != numbers(whole(config_of(tmp_path / "c", constant, rounds=5)))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_broken_off_anywhere_it_is_the_same_run(tmp_path, method):
    changes = {3: {"backbone.lr": 0.3}, 5: {"train.negatives": 2, "backbone.lr": 0.05}}
    undisturbed = numbers(whole(config_of(tmp_path / "whole", method, changes)))
    for stop in range(1, 8):
        config = config_of(tmp_path / str(stop), method, changes)
        whole(config, stop_after=stop)
        assert numbers(whole(config, Go("r", True))) == undisturbed, stop


def test_a_torn_checkpoint_after_a_change_leads_back_before_it(tmp_path):
    config = config_of(tmp_path, changes={4: {"backbone.lr": 0.4}})
    undisturbed = numbers(whole(config_of(tmp_path / "whole", changes={4: {"backbone.lr": 0.4}})))
    whole(config, stop_after=7)
    folder = tmp_path / "all" / "r"
    assert sorted(p.name for p in folder.glob("round-*")) == ["round-000003", "round-000004", "round-000006"]
    for torn in ("round-000006", "round-000004"):
        (folder / torn / "server.safetensors").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="is skipped"):
        assert numbers(whole(config, Go("r", True))) == undisturbed


def test_what_is_shared_need_not_be_trained_twice(tmp_path):
    """A run goes on from the checkpoint of another one, which is the same until there; else it trains all itself."""
    parent = config_of(tmp_path, changes={2: {"backbone.lr": 0.2}})
    child = config_of(tmp_path, changes={2: {"backbone.lr": 0.2}, 6: {"backbone.lr": 0.4}})
    alone = numbers(whole(config_of(tmp_path / "alone", changes={**child.changes})))
    assert opened(child, "data", "cpu", Go("c")).adopt("p") is None  # there is no p yet
    whole(parent, Go("p"), stop_after=7)
    theirs = opened(child, "data", "cpu", Go("c", True))
    theirs.adopt("p")
    assert theirs.last_round() == 6 and theirs.newest().round == 6
    assert [r.round for r in theirs.reports(6)] == [1, 2, 3, 4, 5, 6]
    assert numbers(whole(child, Go("c", True))) == alone
    newest = tmp_path / "all" / "p" / "round-000006" / "run.json"
    newest.write_text("torn")
    with pytest.warns(UserWarning, match="is skipped"):
        opened(child, "data", "cpu", Go("e", True)).adopt("p")
    assert opened(child, "data", "cpu", Go("e", True)).last_round() == 3
    assert numbers(whole(child, Go("e", True))) == alone
    whole(child, Go("d"), stop_after=4)
    opened(child, "data", "cpu", Go("d", True)).adopt("p")  # it has rounds of its own
    assert opened(child, "data", "cpu", Go("d", True)).last_round() == 3


@pytest.mark.parametrize(
    ("changes", "data", "said"),
    [
        ({2: {"backbone.lr": 0.3}}, "data", "another one until round 6: changes.2.backbone.lr differ"),
        ({5: {"backbone.lr": 0.3}}, "data", "changes.5.backbone.lr differ"),
        ({}, "others", "the data or the items' features differ"),
    ],
)
def test_another_run_is_no_parent(tmp_path, changes, data, said):
    whole(config_of(tmp_path), Go("p"), stop_after=7)
    with pytest.raises(ResumeError, match=said):
        opened(config_of(tmp_path, changes=changes), data, "cpu", Go("c")).adopt("p")


def test_what_it_costs_to_change_on_a_full_disk_is_said(tmp_path, monkeypatch):
    config = config_of(tmp_path, changes={4: {"backbone.lr": 0.4}})
    monkeypatch.setattr("fedray.runtime.checkpoint.Checkpoints.commit", lambda *_: raised(OSError(28, "No space left")))
    with (
        pytest.warns(UserWarning, match="No space left"),
        pytest.raises(CheckpointError, match="no checkpoint of round 4"),
    ):
        whole(config)


def raised(error):
    raise error


def test_patience_that_ends_on_a_change_ends_the_run(tmp_path):
    still = {**FCF, "backbone": {**FCF["backbone"], "lr": 1e-9}}
    plain = whole(config_of(tmp_path / "a", still, patience=3))
    assert plain[0][-1].round == 4
    changed = whole(config_of(tmp_path / "b", still, {4: {"backbone.lr": 1e-8}}, patience=3))
    assert numbers(changed) == numbers(plain)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({0: {"backbone.lr": 1.0}}, OutOfRangeError, "changes has a round 0; expected 1 to 7"),
        ({8: {"backbone.lr": 1.0}}, OutOfRangeError, "changes has a round 8"),
        ({4: {"backbone.dim": 4}}, UnsupportedError, "backbone.dim stays as it is for a run"),
        ({4: {"train.rounds": 4}}, UnsupportedError, "train.rounds stays as it is"),
        ({4: {"evaluation.every": 2}}, UnsupportedError, "expected a key of train, backbone, plugins"),
        ({4: {"plugins.gfmfr.weight": 0.1}}, UnknownKeyError, "is not a setting of this job"),
        ({4: {"backbone.independence": 0.1}}, UnknownKeyError, "is not a setting of this job"),
        ({4: {"backbone.lr": 0}}, UnsupportedError, r"what is off \(0\) stays off"),
        ({4: {"backbone.lr": True}}, UnsupportedError, "expected numbers"),
        ({4: {"backbone.lr": -1}}, OutOfRangeError, "changes.4: backbone.lr is -1"),
        ({4: {"train.negatives": 2.5}}, WrongTypeError, "changes.4: train.negatives is 2.5"),
        ({"soon": {"backbone.lr": 0.1}}, WrongTypeError, "changes"),
    ],
)
def test_changes_that_cannot_be_made_are_refused(tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        config_of(tmp_path, changes=changes)


def test_a_job_without_changes_is_what_it_was(tmp_path):
    assert config_of(tmp_path).fingerprint() == config_of(tmp_path, changes={}).fingerprint()
    assert config_of(tmp_path, changes={4: {"backbone.lr": 0.2}}).fingerprint() != config_of(tmp_path).fingerprint()
    for more in ({"evaluation": {"local_only": True}}, {"runtime": {"checkpoint": {"every": 0}}}):
        with pytest.raises(UnsupportedError, match="with changes"):
            tiny_config(FCF, {"rounds": 8}, changes={4: {"backbone.lr": 0.2}}, **more)


@pytest.mark.ray
def test_on_ray_it_is_the_same_run(tmp_path, ray_cluster):
    changes = {2: {"backbone.lr": 0.3}}
    alone = config_of(tmp_path / "a", changes=changes, rounds=4)
    runtime = {"executor": "ray", "actors": 2, "checkpoint": {"path": str(tmp_path / "b"), "every": 3}}
    together = tiny_config(PFEDREC, {"rounds": 4}, runtime=runtime, changes=changes)
    (tmp_path / "b").mkdir()
    assert numbers(whole(together))[:4] == numbers(whole(alone))[:4]
    assert np.isfinite(list(whole(alone, Go("s"))[1].test.values())).all()


def test_with_one_checkpoint_kept_a_torn_one_leads_back_and_is_replaced(tmp_path):
    """The torn one has the higher number: what is written next must not be taken for the older of the two."""
    undisturbed = numbers(whole(config_of(tmp_path / "whole", changes={4: {"backbone.lr": 0.4}})))
    config = config_of(tmp_path, changes={4: {"backbone.lr": 0.4}}, keep=1)
    whole(config, stop_after=7)
    (tmp_path / "all" / "r" / "round-000006" / "server.safetensors").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="is skipped"):
        assert numbers(whole(config, Go("r", True))) == undisturbed
    assert [p.name for p in (tmp_path / "all" / "r").glob("round-*")] == ["round-000008"]


def test_a_checkpoint_of_other_settings_is_none(tmp_path):
    config = config_of(tmp_path, changes={4: {"backbone.lr": 0.4}})
    whole(config, stop_after=3)
    there = opened(config, "data", "cpu", Go("r", True))
    assert there.newest().round == 3
    with pytest.raises(BeforeChangeError, match="is of round 3; expected 4"):
        replace(there, since=4).newest()


def test_torn_under_way_it_goes_back_before_the_change_and_shows_no_round_twice(tmp_path, monkeypatch):
    """As on Ray, where the driver dies and finds its last checkpoints torn."""
    config = config_of(tmp_path, changes={4: {"backbone.lr": 0.4}})
    undisturbed = numbers(whole(config_of(tmp_path / "whole", changes={4: {"backbone.lr": 0.4}})))
    kept, died = Coordinator.step, []

    def step(self):
        if self.run.state.round == 6 and not died:
            died.append(1)
            for name in ("round-000006", "round-000004"):
                (tmp_path / "all" / "r" / name / "server.safetensors").write_bytes(b"torn")
            self.resume()  # as a driver that was started again
        return kept(self)

    monkeypatch.setattr(Coordinator, "step", step)
    with pytest.warns(UserWarning, match="is skipped"):
        assert numbers(whole(config)) == undisturbed
    assert died


def in_memory(config):
    """The run without checkpoints: the settings just swapped between two rounds."""
    run = rounds.start(config, build(config, DATA.n_items, FEATURES))
    where = SerialExecutor([make_host(config, run.method, DATA)])
    reports = []
    while not rounds.finished(run):
        now = config.at(run.state.round)
        method = build(now, DATA.n_items, FEATURES)
        where._hosts = [replace(h, config=now, method=method) for h in where._hosts]
        run, report = rounds.step(replace(run, config=now, method=method), where)
        reports.append(report)
    return reports, rounds.finish(run, where), run.best.broadcast.params


FULL = {
    "fcf": {"backbone": {"name": "fcf", "dim": 4, "lr": 0.1}, "plugins": {"dualper": {"item_lr_scale": 10}}},
    "fedncf": {"backbone": {"name": "fedncf", "dim": 4, "hidden": [4], "lr": 0.1}},
    "fedrap": {"backbone": {"name": "fedrap", "dim": 4, "item_lr": 2.0}},
    "gpfedrec": {"backbone": {"name": "gpfedrec", "dim": 4, "hidden": [4], "reg": 0.1, "neighbours": 3}},
    "fedopt": {"backbone": {"name": "fcf", "dim": 4, "lr": 0.1}, "plugins": {"fedopt": {"weight_decay": 0.01}}},
    "noise": {
        "backbone": {"name": "fcf", "dim": 4, "lr": 0.1},
        "plugins": {"laplace_ldp": {"scale": 0.1, "clip": 5.0}},
    },
    "gfmfr": {
        "backbone": {"name": "fcf", "dim": 4, "lr": 0.1},
        "plugins": {
            "gfmfr": {"groups": 2, "group_dim": 4, "fit_epochs": 2, "ratio": "client", "fit_weight_decay": 0.01}
        },
    },
    "fedvlr": {"backbone": {"name": "fcf", "dim": 4, "lr": 0.1}, "plugins": {"fedvlr": {"router_dim": 4}}},
}
ON = {"weight_decay": 0.01, "private_weight_decay": 0.02, "private_steps": 1, "max_update_norm": 50.0}


def changeable():
    """(method, train, key, another value) for every setting of these jobs that may change and is on."""
    for name, method in FULL.items():
        train = ON if name == "fcf" else {}
        body = tiny_config(method, train).model_dump(mode="json")
        sections = {"train": body["train"]} if train else {}
        sections |= {"backbone": body["backbone"], **{f"plugins.{p}": s for p, s in body["plugins"].items()}}
        for section, settings in sections.items():
            for key, value in settings.items():
                if may_change(f"{section}.{key}") and value:
                    other = {"clients_per_round": 0.6, "step_decay": 0.5, "ratio_decay": 0.5}.get(key, value * 2)
                    yield pytest.param(method, train, f"{section}.{key}", other, id=f"{name}-{section}.{key}")


@pytest.mark.parametrize(("method", "train", "key", "value"), list(changeable()))
def test_every_setting_that_may_change_does_so_at_a_checkpoint_as_in_memory(tmp_path, method, train, key, value):
    config = config_of(tmp_path, method, {2: {key: value}}, rounds=4, **train)
    assert numbers(whole(config)) == numbers(in_memory(config))


def test_every_setting_that_may_change_is_among_those_tried():
    keys = [p.values[2].split(".") for p in changeable()]
    assert {(k[0], k[-1]) for k in keys} == {(section, k) for section, names in MAY_CHANGE.items() for k in names}


@pytest.mark.ray
def test_a_driver_that_dies_where_settings_change_costs_nothing(tmp_path, ray_cluster):
    changes = {3: {"backbone.lr": 0.3}}
    alone = numbers(whole(config_of(tmp_path / "a", changes=changes, rounds=5)))
    (tmp_path / "b").mkdir()
    runtime = {"executor": "ray", "actors": 2, "checkpoint": {"path": str(tmp_path / "b"), "every": 2}}
    config = tiny_config(PFEDREC, {"rounds": 5}, runtime=runtime, changes=changes)
    method = build(config, DATA.n_items, FEATURES)
    plan, reports = make_plan(config, method, DATA, HERE), []
    with federation(config, method, DATA, FEATURES, plan, opened(config, "data", "cpu", R)) as clients:
        for report in clients.rounds():
            reports.append(report)
            if report.round == 3:
                os.kill(driver_pid(ray_cluster), signal.SIGKILL)
        outcome = clients.finish()
    assert [r.round for r in reports] == [1, 2, 3, 4, 5]
    assert outcome.test == alone[2]


def driver_pid(ray):
    """Of the one driver actor that is alive in this Ray; others may run beside it."""
    here, living = ray.get_runtime_context().gcs_address, [("state", "=", "ALIVE"), ("class_name", "=", "DriverActor")]
    (found,) = list_actors(address=here, filters=living, detail=True)
    return found.pid
