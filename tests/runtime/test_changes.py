"""Settings that change between rounds: nothing else does, wherever the run is broken off."""

import numpy as np
import pytest

from fedray.errors import (
    CheckpointError,
    OutOfRangeError,
    ResumeError,
    UnknownKeyError,
    UnsupportedError,
    WrongTypeError,
)
from fedray.federation import federation
from fedray.methods import build
from fedray.runtime.checkpoint import Go, opened
from fedray.runtime.plan import Resources, make_plan
from tests.helpers import FCF, PFEDREC, tiny_config, tiny_data, tiny_features

DATA, FEATURES = tiny_data(), tiny_features()
R = Go("r")
HERE = Resources(cpus=2.0, gpus=0.0, memory_bytes=8e9)
ADAM = {**PFEDREC, "plugins": {**PFEDREC["plugins"], "fedopt": {"lr": 0.02}}}
GROUPED = {**FCF, "plugins": {"gfmfr": {"groups": 3, "group_dim": 5, "fit_epochs": 2, "schedule": "cosine"}}}
VIEWS = {**FCF, "plugins": {"fedvlr": {"views": ["id", "sum"], "router_dim": 4}}}
METHODS = {"pfedrec": PFEDREC, "fedopt": ADAM, "gfmfr": GROUPED, "fedvlr": VIEWS}


def config_of(tmp_path, method=PFEDREC, changes=None, rounds=8, **train):
    checkpoint = {"path": str(tmp_path / "all"), "every": 3, "keep": 3}
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
    whole(child, Go("d"), stop_after=4)
    opened(child, "data", "cpu", Go("d", True)).adopt("p")  # it has rounds of its own
    assert opened(child, "data", "cpu", Go("d", True)).last_round() == 3


@pytest.mark.parametrize(
    ("changes", "data", "said"),
    [
        ({2: {"backbone.lr": 0.3}}, "data", "another one until round 6: changes.2.backbone.lr differ"),
        ({5: {"backbone.lr": 0.3}}, "data", "changes.5.backbone.lr differ"),
        ({}, "others", "the data differ"),
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
