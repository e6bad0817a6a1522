"""Sweep files: what they resolve to, and everything that is refused before anything starts."""

import copy
from pathlib import Path

import pytest
import yaml

from fedray import errors
from fedray.search.sweep import load_sweep, make_sweep
from fedray.yamls import laid

ROOT = Path(__file__).parents[2]
SWEEP = {
    "base": {
        "data": {"source": "synthetic"},
        "backbone": {"name": "fcf", "dim": 8},
        "plugins": {"dualper": {}},
        "train": {"rounds": 9},
    },
    "space": {"backbone.lr": {"loguniform": [0.01, 1.0]}},
    "budget": {"trials": 4},
}
LR = "space.backbone.lr"


def without(key):
    return {k: v for k, v in SWEEP.items() if k != key}


def changed(**settings):
    """`SWEEP` with `a__b` keys, or whole sections."""
    out = copy.deepcopy(SWEEP)
    for key, value in settings.items():
        out = laid(out, {key.replace("__", "."): value})
    return out


def spaced(**axes):
    return {**SWEEP, "space": {k.replace("__", "."): v for k, v in axes.items()}}


def pbt(**more):
    return {**SWEEP, "search": {"name": "random"}, "scheduler": {"name": "pbt"}, "budget": {}, **more}


WRONG = [
    (without("base"), errors.WrongTypeError, "base is None"),
    ({**SWEEP, "base": "nowhere.yaml"}, errors.MissingPathError, "nowhere.yaml does not exist"),
    (without("space"), errors.WrongTypeError, "space is empty"),
    ({**SWEEP, "space": {}}, errors.WrongTypeError, "space is empty"),
    (without("budget"), errors.OutOfRangeError, "budget is empty and search.name is tpe"),
    ({**SWEEP, "spaces": {}}, errors.UnknownKeyError, "Did you mean 'space'"),
    ({**SWEEP, "train": {"rounds": 3}}, errors.UnknownKeyError, "'train' is not known"),
    ({**SWEEP, "search": {"name": "bayes"}}, errors.ConfigError, "search.name is 'bayes'"),
    ({**SWEEP, "search": {"nam": "tpe"}}, errors.UnknownKeyError, "Did you mean 'name'"),
    ({**SWEEP, "search": {"name": "random", "batch": 2}}, errors.UnsupportedError, "search.batch"),
    ({**SWEEP, "search": {"name": "grid"}}, errors.UnsupportedError, "backbone.lr is a range"),
    ({**SWEEP, "scheduler": {"name": "hyperband"}}, errors.ConfigError, "scheduler.name"),
    ({**SWEEP, "scheduler": {"grace": 10}}, errors.OutOfRangeError, "scheduler.grace is 10"),
    ({**SWEEP, "scheduler": {"reduction": 1}}, errors.OutOfRangeError, "scheduler.reduction"),
    ({**SWEEP, "budget": {"trials": -1}}, errors.OutOfRangeError, "budget.trials is -1"),
    ({**SWEEP, "budget": {"trials": "many"}}, errors.WrongTypeError, "budget.trials is 'many'"),
    ({**SWEEP, "trials": {"concurrent": 0}}, errors.ConfigError, "trials.concurrent"),
    ({**SWEEP, "trials": {"place": "there"}}, errors.ConfigError, "trials.place"),
    ({**SWEEP, "refit": {"seeds": [1, 1]}}, errors.OutOfRangeError, "each seed once"),
    (spaced(backbone__lrr={"choice": [1]}), errors.UnknownKeyError, "Did you mean 'lr'"),
    (spaced(backbone__lr={"lognormal": [0, 1]}), errors.UnknownKeyError, "lognormal"),
    (spaced(backbone__lr={"choices": [1]}), errors.UnknownKeyError, "Did you mean 'choice'"),
    (spaced(backbone__lr=0.1), errors.WrongTypeError, "one of uniform"),
    (spaced(backbone__lr={"choice": [1], "uniform": [0, 1]}), errors.MissingKeyError, "exactly one"),
    (spaced(backbone__lr={"when": {}}), errors.MissingKeyError, "none of uniform"),
    (spaced(backbone__lr={"uniform": [1, 0]}), errors.OutOfRangeError, "low < high"),
    (spaced(backbone__lr={"loguniform": [0, 1]}), errors.OutOfRangeError, "both above 0"),
    (spaced(backbone__lr={"uniform": [0, 1, 2]}), errors.WrongTypeError, r"\[low, high\]"),
    (spaced(backbone__lr={"uniform": "0 to 1"}), errors.WrongTypeError, "a list"),
    (spaced(train__negatives={"randint": [1.5, 3]}), errors.WrongTypeError, "whole numbers"),
    (spaced(backbone__lr={"choice": []}), errors.OutOfRangeError, "at least one value"),
    (spaced(backbone__lr={"choice": [1, 1]}), errors.OutOfRangeError, "each once"),
    (spaced(backbone__lr={"choice": [-1, 1]}), errors.OutOfRangeError, r"space\.backbone\.lr, value -1"),
    (spaced(train__negatives={"uniform": [0.5, 3.5]}), errors.ConfigError, r"space\.train\.negatives, value 0\.5"),
    (spaced(backbone__lr={"choice": [1], "when": "always"}), errors.WrongTypeError, "a mapping"),
    (spaced(backbone__name={"choice": ["fcf", "fcg"]}), errors.UnknownNameError, "'fcg' does not exist"),
    (spaced(seed={"choice": [0, 1]}), errors.UnsupportedError, "refit.seeds"),
    (spaced(data__last={"choice": [5, 10]}), errors.UnsupportedError, "cannot be compared"),
    (spaced(evaluation__k={"choice": [5, 10]}), errors.UnsupportedError, "other rules"),
    (spaced(runtime__actors={"choice": [1, 2]}), errors.UnsupportedError, "changes no result"),
    (spaced(plugins__gfmfr__groups={"choice": [1, 2]}), errors.UnsupportedError, "never applies"),
    (spaced(backbone__lr={"grid": [1, 2]}), errors.UnsupportedError, "is a grid and search.name is tpe"),
    (changed(base__backbone__name="fcff"), errors.UnknownNameError, "Did you mean 'fcf'"),
    (changed(base__trains={}), errors.UnknownKeyError, "Did you mean 'train'"),
    (changed(base__evaluation={"options": {"select_split": "test"}}), errors.UnsupportedError, "on the test set"),
    (pbt(search={"name": "tpe"}), errors.UnsupportedError, "search.name tpe"),
    (pbt(budget={"trials": 8}), errors.UnsupportedError, "budget.trials; expected"),
    (pbt(space={"backbone.dim": {"choice": [4, 8]}}), errors.UnsupportedError, "may change in a run, but backbone.dim"),
    (pbt(space={"train.negatives": {"randint": [0, 4]}}), errors.UnsupportedError, "0 in space.train.negatives"),
    (pbt(scheduler={"name": "pbt", "interval": 9}), errors.OutOfRangeError, "scheduler.interval is 9"),
    (pbt(scheduler={"name": "pbt", "population": 1}), errors.OutOfRangeError, "scheduler.population is 1"),
    (pbt(space={"train.negatives": {"choice": [1, 2]}}), errors.OutOfRangeError, "population is 8; expected at most 2"),
    (pbt(set={"train.patience": 2}), errors.UnsupportedError, "train.patience"),
    (pbt(set={"changes": {3: {"backbone.lr": 0.1}}}), errors.UnsupportedError, "changes of the job"),
    (pbt(set={"runtime.checkpoint.every": 0}), errors.UnsupportedError, "runtime.checkpoint.every 0"),
    ({**SWEEP, "set": ["backbone.lr=1"]}, errors.WrongTypeError, "set is"),
]


@pytest.mark.parametrize(("raw", "kind", "said"), WRONG, ids=[f"{n}" for n in range(len(WRONG))])
def test_is_refused_by_name(raw, kind, said):
    with pytest.raises(kind, match=said) as caught:
        make_sweep(raw)
    assert isinstance(caught.value, errors.ConfigError)


def test_a_grid_larger_than_its_budget_is_refused():
    raw = spaced(train__negatives={"randint": [1, 9]})
    with pytest.raises(errors.OutOfRangeError, match="the grid has 9 points"):
        make_sweep({**raw, "search": {"name": "grid"}})


def test_each_trial_of_a_grid_is_a_valid_job():
    """`bpr` wants pairs: an odd batch is fine alone."""
    raw = spaced(train__loss={"choice": ["bce", "bpr"]}, train__batch_size={"choice": [31, 32]})
    with pytest.raises(errors.OutOfRangeError, match=r'trial \{"train.loss": "bpr", "train.batch_size": 31\}'):
        make_sweep({**raw, "search": {"name": "grid"}})


def test_settings_go_where_they_belong():
    sweep = make_sweep(SWEEP, ["budget.trials=7", "train.rounds=12", "space.train.negatives={choice: [1, 2]}"])
    assert sweep.config.budget.trials == 7
    assert sweep.job.train.rounds == 12
    assert [a.key for a in sweep.space] == ["backbone.lr", "train.negatives"]


def test_of_a_trial_nothing_but_validation_is_scored():
    trial = make_sweep(changed(base__evaluation={"test": "every_round", "local_only": True})).trial(
        {"backbone.lr": 0.5}
    )
    assert trial.backbone.lr == 0.5
    scored = trial.evaluation
    assert (scored.test, scored.controls, scored.local_only, scored.ablation) == ("selected", False, False, False)


def test_a_larger_budget_is_the_same_sweep():
    one, more, other = (make_sweep(SWEEP, s) for s in ([], ["budget.trials=9"], ["search.seed=1"]))
    assert one.fingerprint() == more.fingerprint() != other.fingerprint()
    assert make_sweep(SWEEP, ["backbone.dim=9"]).fingerprint() != one.fingerprint()


def test_a_file_names_itself_in_its_errors(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({**SWEEP, "budget": {}}))
    with pytest.raises(errors.OutOfRangeError, match=r"x\.yaml: budget is empty"):
        load_sweep(file)
    with pytest.raises(errors.MissingPathError, match="Did you mean 'x.yaml'"):
        load_sweep(tmp_path / "y.yaml")


def test_a_base_file_is_found_beside_the_sweep(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(SWEEP["base"]))
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({**SWEEP, "base": "job.yaml", "set": {"train.rounds": 5, "plugins.dualper": {}}}))
    assert load_sweep(file).job.train.rounds == 5
    assert load_sweep(file).base["name"] == "job"


@pytest.mark.parametrize("file", sorted((ROOT / "tune_configs").glob("*.yaml")), ids=lambda f: f.stem)
def test_those_of_the_repository_are_valid(file):
    sweep = load_sweep(file)
    assert sweep.config.name == file.stem
