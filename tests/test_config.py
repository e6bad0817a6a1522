"""The configuration (fingerprint, --set, YAML) and the error tree."""

import inspect
import pickle
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from fedray import config as configuration
from fedray import errors
from fedray.config import (
    Closed,
    flatten,
    load_config,
    make_config,
    names_in,
    part_module,
    read_yaml,
    to_yaml,
)
from fedray.errors import (
    ConfigError,
    ConfigFileError,
    FedrayError,
    MissingPathError,
    OutOfRangeError,
    UnknownKeyError,
    UnknownNameError,
    UnsupportedError,
    WrongTypeError,
)

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.yaml"))


def loaded(tmp_path, text="{}", *sets):
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, list(sets))


# fingerprint


@pytest.mark.parametrize(
    "other",
    [
        {"name": "another"},
        {"runtime": {"executor": "serial", "actors": 3, "device": "cpu"}},
        {"tracking": {"backend": "none", "experiment": "x"}},
        {"train": {"rounds": 100}, "backbone": {"name": "fcf"}},  # the defaults, said aloud
    ],
)
def test_the_fingerprint_leaves_out_what_cannot_change_a_number(other):
    assert make_config(other).fingerprint() == make_config({}).fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"data": {"seed": 1}},
        {"backbone": {"name": "fedavg"}},
        {"backbone": {"lr": 0.2}},
        {"plugins": {"dualper": {}}},
        {"train": {"batch_size": 128}},
        {"evaluation": {"protocol": "paper/pfedrec"}},
    ],
)
def test_the_fingerprint_changes_with_what_can(other):
    assert make_config(other).fingerprint() != make_config({}).fingerprint()
    assert re.fullmatch("[0-9a-f]{12}", make_config(other).fingerprint())


def test_the_order_of_plugins_counts():
    a, b = (make_config({"plugins": dict.fromkeys(order, Closed())}) for order in (("x", "y"), ("y", "x")))
    assert (a.method_name(), b.method_name()) == ("y(x(fcf))", "x(y(fcf))")
    assert a.fingerprint() != b.fingerprint()


# --set


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("train.rounds=3", "train.rounds", 3),
        ("backbone.lr=1e-3", "backbone.lr", 0.001),
        ("backbone.lr=2.5E-1", "backbone.lr", 0.25),
        ("backbone.name=fedavg", "backbone.name", "fedavg"),
        ("evaluation.k=[1, 7]", "evaluation.k", [1, 7]),
        ("evaluation.local_only=true", "evaluation.local_only", True),
        ("tracking.uri=http://host:5000", "tracking.uri", "http://host:5000"),
        ("tracking.run_name='a=b'", "tracking.run_name", "a=b"),
        ("plugins.dualper.item_lr_scale=5", "plugins.dualper.item_lr_scale", 5.0),
        ("plugins.dualper=", "plugins.dualper.item_lr_scale", 80.0),
        ("plugins.dualper=null", "plugins.dualper.item_lr_scale", 80.0),
        ("plugins={dualper: {item_lr_scale: 3}}", "plugins.dualper.item_lr_scale", 3.0),
        ("name=x", "name", "x"),
    ],
)
def test_a_setting_is_laid_over_the_file(tmp_path, setting, key, value):
    text = "train: {rounds: 9}\nplugins:\n"
    assert flatten(loaded(tmp_path, text, setting))[key] == value


def test_settings_keep_their_neighbours_and_the_last_wins(tmp_path):
    config = loaded(tmp_path, "train: {rounds: 9, negatives: 2}", "train.rounds=1", "train.rounds=2")
    assert (config.train.rounds, config.train.negatives) == (2, 2)


@pytest.mark.parametrize(
    ("setting", "error", "says"),
    [
        ("train.rounds", ConfigError, "--set 'train.rounds'; expected a.b=value"),
        ("=3", ConfigError, "expected a.b=value"),
        ("train.rounds=", WrongTypeError, "train.rounds is None"),
        ("train.rounds=many", WrongTypeError, "train.rounds is 'many'"),
        ("train.rounds=0", OutOfRangeError, "train.rounds is 0"),
        ("train.rounds=2.5", WrongTypeError, "train.rounds is 2.5"),
        ("train.rouns=3", UnknownKeyError, "Did you mean 'rounds'"),
        ("name.x=3", ConfigError, "name is a value"),
        ("backbone.name=fcff", UnknownNameError, "Did you mean 'fcf'"),
        ("plugins.dualpr.x=1", UnknownNameError, "Did you mean 'dualper'"),
        ("plugins.dualper.scale=1", UnknownKeyError, "plugins.dualper.scale"),
        ("train.rounds=[", ConfigFileError, "--set train.rounds"),
        ("evaluation.k=[]", OutOfRangeError, "evaluation.k"),
        ("evaluation.k=[10, 0]", OutOfRangeError, "evaluation.k.1 is 0"),
        ("backbone.lr=.inf", OutOfRangeError, "backbone.lr"),
        ("backbone.lr=.nan", OutOfRangeError, "backbone.lr"),
        ("train.block_width=48", OutOfRangeError, "multiple of 32"),
    ],
)
def test_a_bad_setting_is_a_named_error(tmp_path, setting, error, says):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "name: job", setting)
    assert type(caught.value) is error
    assert says in str(caught.value)


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E5", 1e5), ("-2e3", -2000.0), ("1.5e3", 1500.0), ("+1e+2", 100.0), ("1e", "1e"), ("e3", "e3")],
)
def test_numbers_with_exponents_are_numbers(text, value):
    found = read_yaml(f"x: {text}", "here")["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nseed: 2", "'seed' is given twice"),
        ("train: {rounds: 1, rounds: 2}", "'rounds' is given twice"),
        ("a: &x {rounds: 1}\ntrain: *x", "aliases"),
        ("train: [", "line 1"),
        ("? [a, b]\n: 1", "unhashable"),
        ("!!python/object/apply:os.getcwd []", "python/object"),
        ("- 1", "holds list"),
        ("", "holds NoneType"),
    ],
)
def test_yaml_that_is_not_one_plain_mapping_is_refused(tmp_path, text, says):
    with pytest.raises(ConfigFileError, match=re.escape(says)) as caught:
        loaded(tmp_path, text)
    assert "job.yaml" in str(caught.value)


def test_a_missing_file_names_the_nearest_and_bytes_that_are_not_utf8_the_position(tmp_path):
    loaded(tmp_path)
    with pytest.raises(MissingPathError, match="Did you mean 'job.yaml'"):
        load_config(tmp_path / "jobb.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigFileError, match="not UTF-8 at byte 6"):
        load_config(tmp_path / "latin.yaml")


def test_the_files_name_is_the_runs_name_unless_it_says_so(tmp_path):
    assert loaded(tmp_path).name == "job"
    assert loaded(tmp_path, "name: other").name == "other"


# the whole


def test_every_job_of_the_repository_loads_and_its_resolved_text_gives_it_back(tmp_path):
    assert JOBS
    for file in JOBS:
        config = load_config(file)
        assert loaded(tmp_path, to_yaml(config)) == config


def test_a_configuration_is_frozen_and_with_seed_changes_the_seed_alone():
    config = make_config({"plugins": {"dualper": {}}})
    other = config.with_seed(4)
    assert (config.seed, other.seed) == (0, 4)
    assert {k for k, v in flatten(other).items() if flatten(config)[k] != v} == {"seed"}
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_flatten_names_every_leaf_by_its_dotted_key():
    flat = flatten(make_config({"plugins": {"dualper": {"item_lr_scale": 2}}, "evaluation": {"k": [3]}}))
    assert flat["plugins.dualper.item_lr_scale"] == 2
    assert flat["evaluation.k"] == [3]
    assert flat["data.source"] == "synthetic"
    assert not [v for v in flat.values() if isinstance(v, dict)]


def parts():
    """Every closed section there is, by name; those of sources, backbones and plug-ins included."""
    found = {c.__name__: c for _, c in inspect.getmembers(configuration, inspect.isclass) if issubclass(c, Closed)}
    for package in ("data.sources", "encoders", "methods.backbones", "methods.plugins"):
        found |= {f"{package}.{name}": part_module(package, name).Config for name in names_in(package)}
    return found


@pytest.mark.parametrize("name", parts())
def test_every_section_is_closed_and_frozen(name):
    assert parts()[name].model_config["extra"] == "forbid"
    assert parts()[name].model_config["frozen"]


@pytest.mark.parametrize("name", parts())
def test_each_default_exists_once(name):
    """A section may fix its tag (`name`, `source`), and give a key of the section it extends another default (its
    paper's own); it repeats nothing."""
    cls = parts()[name]
    bases = [b for b in cls.__mro__[1:] if issubclass(b, BaseModel)]
    for key in set(cls.__annotations__) - {"name", "source", "model_config"}:
        inherited = [b.model_fields[key].default for b in bases if key in b.model_fields]
        assert cls.model_fields[key].default not in inherited, key


# errors


def tree_in_the_docstring():
    """class -> (its parent, its exit code) as drawn."""
    found, open_ = {}, []
    for line in errors.__doc__.splitlines():
        drawn = re.fullmatch(r" {4}((?:\|  )*)(\+- )?(\w+Error)\b(?:.*exit code (\d+))?.*", line)
        if drawn:
            depth = len(drawn[1]) // 3 + bool(drawn[2])
            open_[depth:] = [(drawn[3], drawn[4] or open_[depth - 1][1])]
            found[drawn[3]] = open_[depth - 1][0] if depth else "Exception", open_[depth][1]
    return found


def classes():
    return [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, FedrayError)]


def test_the_tree_in_the_docstring_is_the_tree_there_is():
    there_is = {c.__name__: (c.__bases__[0].__name__, str(c.exit_code)) for c in classes()}
    assert tree_in_the_docstring() == there_is
    assert len(there_is) > 25
    assert all(len(c.__bases__) == 1 for c in classes())


@pytest.mark.parametrize("cls", classes(), ids=lambda c: c.__name__)
def test_an_error_survives_the_way_from_an_actor(cls):
    error = cls("x is 3", "1 or 2", "Lower it.")
    error.where = "job.yaml"  # as make_config adds it
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert str(back) == str(error) == "job.yaml: x is 3; expected 1 or 2. Lower it."
    assert (back.found, back.expected, back.mend, back.where) == ("x is 3", "1 or 2", "Lower it.", "job.yaml")
    assert back.exit_code == cls.exit_code


@pytest.mark.parametrize(
    ("args", "text"),
    [(("a",), "a"), (("a", "b"), "a; expected b"), (("a", "", "C."), "a. C."), (("a", "", "", "w"), "w: a")],
)
def test_an_error_says_what_it_has(args, text):
    assert str(FedrayError(*args)) == text


def test_a_refused_configuration_says_where(tmp_path):
    with pytest.raises(OutOfRangeError, match=r"job\.yaml: train\.rounds is -1"):
        loaded(tmp_path, "train: {rounds: -1}")
    with pytest.raises(UnknownKeyError, match=r"\(1 more\).*Did you mean 'seed'"):
        loaded(tmp_path, "sed: 1\nzz: 2")


# who may be left out


@pytest.mark.parametrize("setting", ["train.over_select=1.3", "train.min_fraction=0.5", "runtime.deadline_s=20"])
@pytest.mark.parametrize("where", ["recovery=exact", "recovery=none", "executor=serial"])
def test_only_a_run_that_may_drop_clients_does_not_wait_for_them(tmp_path, setting, where):
    key, _, value = setting.partition("=")
    drop = ["runtime.recovery=drop"] if where == "executor=serial" else []
    with pytest.raises(UnsupportedError) as caught:
        loaded(tmp_path, "{}", *drop, f"runtime.{where}", setting)
    assert f"{key} is {value} with runtime.recovery: " in str(caught.value)
    assert "expected recovery: drop and executor: ray" in str(caught.value)
    assert f"or {key}={0 if key != 'train.over_select' else 1}." in caught.value.mend
    assert loaded(tmp_path, "{}", "runtime.recovery=drop", setting).runtime.recovery == "drop"


@pytest.mark.parametrize("setting", ["train.over_select=0.9", "train.min_fraction=1.1", "runtime.deadline_s=-1"])
def test_what_cannot_be_asked_of_a_round(tmp_path, setting):
    with pytest.raises(OutOfRangeError, match=setting.partition("=")[0]):
        loaded(tmp_path, "{}", "runtime.recovery=drop", setting)
