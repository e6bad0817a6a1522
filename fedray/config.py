"""One YAML file + `--set a.b=value` -> a frozen, closed `RunConfig`.

Each part keeps its settings beside its code: `backbone.name: fcf` is read by `Config` in
`fedray/methods/backbones/fcf.py`, `plugins.dualper` by that of `fedray/methods/plugins/dualper.py`,
`data.source: folder` by that of `fedray/data/sources/folder.py`. The name is the module's name. Each
default exists once. Unknown keys are errors that name the nearest key.
"""

import difflib
import hashlib
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from fedray import changes as changing
from fedray.errors import (
    ConfigError,
    ConfigFileError,
    FedrayError,
    MissingKeyError,
    MissingPathError,
    OutOfRangeError,
    UnknownKeyError,
    UnknownNameError,
    UnsupportedError,
    WrongTypeError,
)
from fedray.sections import Closed as Closed
from fedray.sections import EncoderConfig as EncoderConfig
from fedray.sections import EncodingConfig as EncodingConfig
from fedray.sections import EvaluationConfig as EvaluationConfig
from fedray.sections import RuntimeConfig as RuntimeConfig
from fedray.sections import TrackingConfig as TrackingConfig
from fedray.sections import TrainConfig as TrainConfig
from fedray.yamls import read_yaml as read_yaml


def names_in(package: str) -> list[str]:
    """The module names in `fedray.<package>`: what a YAML may say there."""
    root = importlib.import_module(f"fedray.{package}")
    return sorted(m.name for m in pkgutil.iter_modules(root.__path__) if not m.name.startswith("_"))


def part_module(package: str, name: object) -> Any:
    """The module of a named part; `UnknownNameError` lists the names there are."""
    names = names_in(package)
    if name not in names:
        raise UnknownNameError(
            f"{package.split('.')[-1]} {name!r} does not exist",
            f"one of {', '.join(names)}",
            nearest_hint(str(name), names),
        )
    return importlib.import_module(f"fedray.{package}.{name}")


def nearest_hint(word: str, known: list[str]) -> str:
    """'Did you mean x?' or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else ""


def _named(package: str, section: str, tag: str, default: str) -> BeforeValidator:
    """Read a mapping by the `Config` of the module that its `tag` key names."""

    def read(raw: Any) -> Any:
        if isinstance(raw, Closed):
            return raw
        if not isinstance(raw, Mapping):
            raise WrongTypeError(f"{section} is {raw!r}", "a mapping", f"Write {{{tag}: {default}}}.")
        module = part_module(package, raw.get(tag, default))
        return validated(module.Config, {tag: default, **raw}, section)

    return BeforeValidator(read)


def _plugins(raw: Any) -> Any:
    if not isinstance(raw, Mapping | None):
        raise WrongTypeError(f"plugins is {raw!r}", "a mapping", "Write plugins: {dualper: {}}.")
    return {name: _plugin(name, settings) for name, settings in (raw or {}).items()}


def _plugin(name: str, settings: Any) -> Any:
    if isinstance(settings, Closed):
        return settings
    module = part_module("methods.plugins", name)
    return validated(module.Config, settings or {}, f"plugins.{name}")


def _encoders(raw: Any) -> Any:
    if not isinstance(raw, Mapping | None):
        raise WrongTypeError(f"encoders is {raw!r}", "a mapping", "Write encoders: {text: {name: hashing}}.")
    return {feature: _encoder(str(feature), settings) for feature, settings in (raw or {}).items()}


def _encoder(feature: str, settings: Any) -> Any:
    if isinstance(settings, Closed):
        return settings
    section = f"encoders.{feature}"
    if not _FEATURE.fullmatch(feature):
        raise OutOfRangeError(f"{section}", "letters, digits and _ in the name of a feature")
    if not isinstance(settings, Mapping) or "name" not in settings:
        raise MissingKeyError(
            f"key '{section}.name' is missing", "a value", f"One of {', '.join(names_in('encoders'))}."
        )
    module = part_module("encoders", settings["name"])
    found: EncoderConfig = validated(module.Config, settings, section)
    if found.input == "auto":
        return validated(module.Config, {**settings, "input": _input_of(feature)}, section)
    return found


_FEATURE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


def _input_of(feature: str) -> str:
    """`image` and `text` are fed what they are called; another name must say it."""
    if feature not in ("image", "text"):
        raise MissingKeyError(
            f"key 'encoders.{feature}.input' is missing", "image or text", "Only features so named need not say it."
        )
    return feature


class DataConfig(Closed):
    """What every source shares; `Config` of a source module adds its own keys (a path, sizes, ...)."""

    source: str
    name: str = Field("", description="the data's name in MLflow; empty: the source's own")
    split: Literal["leave_one_out", "given"] = Field(
        "leave_one_out",
        description="last item to test, second last to validation; or the file's split column",
    )
    duplicates: Literal["keep_latest", "error"] = "keep_latest"
    short_users: Literal["drop", "keep", "error"] = Field(
        "drop", description="users too short to split: drop, keep for training only, or refuse"
    )
    missing: Literal["mask", "mean", "error"] = Field(
        "mask",
        description="items that lack a feature: zeros and not present; the mean of the others, and present; or refuse",
    )
    min_user_interactions: int = Field(0, ge=0, description="iterative k-core: least per user; 0 = off")
    min_item_interactions: int = Field(0, ge=0, description="iterative k-core: least per item; 0 = off")
    last: int = Field(0, ge=0, description="keep so many latest training items of each user; 0 = all")
    shuffle_features: bool = Field(False, description="hand each item another one's features: what content is worth")
    cold_items: float = Field(
        0.0, ge=0, lt=1, description="share of the items held out of training: test targets only; see data.splits"
    )
    seed: int = Field(
        0, ge=0, lt=1 << 63, description="of random splits, item id permutation, sampled candidates and cold items"
    )


class BackboneConfig(Closed):
    """What every backbone shares; `Config` of a backbone module adds its own keys."""

    name: str
    dim: int = Field(32, ge=1, le=4096, description="latent size d")
    lr: float = Field(0.1, ge=0, description="learning rate of the private head")
    lr_decay: float = Field(1.0, gt=0, le=1, description="every learning rate is multiplied by it after each round")
    init_std: float = Field(1.0, ge=0, description="standard deviation of the item table's start")


Data = Annotated[SerializeAsAny[DataConfig], _named("data.sources", "data", tag="source", default="synthetic")]
Backbone = Annotated[SerializeAsAny[BackboneConfig], _named("methods.backbones", "backbone", tag="name", default="fcf")]
Encoders = Annotated[dict[str, SerializeAsAny[EncoderConfig]], BeforeValidator(_encoders)]
Plugins = Annotated[dict[str, SerializeAsAny[Closed]], BeforeValidator(_plugins)]


ELSEWHERE = ("name", "encoding", "runtime", "tracking")
"""Sections that change no number of a run."""


class RunConfig(Closed):
    """One run. `fingerprint` covers what can change its numbers."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(0, ge=0, lt=1 << 63)
    data: Data = Field(default_factory=lambda: {"source": "synthetic"})  # type: ignore[assignment]
    encoders: Encoders = Field(default_factory=dict, description="feature -> what makes it; on top of the data's own")
    backbone: Backbone = Field(default_factory=lambda: {"name": "fcf"})  # type: ignore[assignment]
    plugins: Plugins = Field(default_factory=dict, description="applied to the backbone in this order")
    train: TrainConfig = TrainConfig()
    changes: dict[int, dict[str, Any]] = Field(
        default_factory=dict, description="round -> settings from the next one on; see fedray.changes"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    encoding: EncodingConfig = EncodingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _nobody_is_left_out_of_an_exact_run(self) -> "RunConfig":
        train, runtime = self.train, self.runtime
        asked = {
            "train.over_select": (train.over_select, 1.0),
            "train.min_fraction": (train.min_fraction, 0.0),
            "runtime.deadline_s": (runtime.deadline_s, 0.0),
        }
        leaves_out = runtime.recovery == "drop" and runtime.executor == "ray"
        for key, (value, off) in asked.items():
            if value != off and not leaves_out:
                raise UnsupportedError(
                    f"{key} is {value:g} with runtime.recovery: {runtime.recovery} and executor: {runtime.executor}",
                    "recovery: drop and executor: ray: elsewhere no result may depend on who is late",
                    f"Set runtime.recovery=drop, if it may; or {key}={off:g}.",
                )
        return self

    @model_validator(mode="after")
    def _changes_can_be_made(self) -> "RunConfig":
        if self.changes:
            changing.check(self.changes, self.train.rounds, self.model_dump(mode="json", exclude={"changes"}))
            if self.evaluation.local_only:
                raise UnsupportedError("evaluation.local_only with changes", "one of them: local training knows none")
            if not self.runtime.checkpoint.every:
                raise UnsupportedError("runtime.checkpoint.every is 0 with changes", "checkpoints, to go on from")
        for round_ in self.changes:
            self.at(round_)
        return self

    def at(self, round_: int) -> "RunConfig":
        """The run as it is after so many rounds, with the changes until there in it."""
        body = self.model_dump(mode="json", exclude={"changes"})
        return make_config(changing.made(body, self.changes, round_), f"changes.{round_}") if self.changes else self

    def fingerprint(self) -> str:
        """12 hex digits over everything but `name`, `encoding`, `runtime` and `tracking`."""
        body = self.model_dump(mode="json", exclude={*ELSEWHERE, *(() if self.changes else ("changes",))})
        body["plugins"] = list(body["plugins"].items())  # their order counts, and sort_keys would lose it
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]

    def method_name(self) -> str:
        """`dualper(fcf)`, inner first applied."""
        name = self.backbone.name
        for plugin in self.plugins:
            name = f"{plugin}({name})"
        return name

    def with_seed(self, seed: int) -> "RunConfig":
        """The same run with another seed."""
        return self.model_copy(update={"seed": seed})


def load_config(path: str | Path, sets: list[str] | None = None) -> RunConfig:
    """The file with the `a.b=value` settings laid over it, checked.

    Raises `MissingPathError`, `ConfigFileError` and every error of `make_config`.
    """
    file = Path(path)
    if not file.is_file():
        near = nearest_hint(file.name, [p.name for p in file.parent.glob("*.yaml")])
        raise MissingPathError(f"{file} does not exist", "a YAML file", near or "Check the path.")
    try:
        raw = read_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise ConfigFileError(f"not UTF-8 at byte {error.start}", "UTF-8 text", "", str(file)) from error
    if not isinstance(raw, dict):
        raise ConfigFileError(f"holds {type(raw).__name__}", "one YAML mapping", "", str(file))
    raw.setdefault("name", file.stem)
    for setting in sets or []:
        _set(raw, setting)
    return make_config(raw, str(file))


def _set(raw: dict[str, Any], setting: str) -> None:
    dotted, equals, value = setting.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {setting!r}", "a.b=value", "Example: --set train.rounds=50")
    *parents, last = dotted.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {}) if node.get(parent) is not None else _fresh(node, parent)
        if not isinstance(node, dict):
            raise ConfigError(f"--set {dotted}: {parent} is a value", "a section", "Shorten the key.")
    node[last] = read_yaml(value, f"--set {dotted}") if value else None


def _fresh(node: dict[str, Any], name: str) -> dict[str, Any]:
    child: dict[str, Any] = {}
    node[name] = child
    return child


def make_config(raw: Mapping[str, Any], where: str = "") -> RunConfig:
    """A checked `RunConfig`; what pydantic finds becomes one of fedray's named errors."""
    try:
        return validated(RunConfig, raw)
    except FedrayError as error:
        error.where = error.where or where
        raise


C = TypeVar("C", bound=Closed)


def validated(cls: type[C], raw: Any, prefix: str = "") -> C:
    """`raw` as a `cls`; the first finding is raised as a `ConfigError` that names the dotted key."""
    _refuse_booleans(cls, raw, prefix)
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        raise _named_error(error, cls, prefix) from error


def _refuse_booleans(cls: type[Closed], raw: Any, prefix: str) -> None:
    """`rounds: true` would be 1."""
    for name, value in raw.items() if isinstance(raw, Mapping) else ():
        kind = cls.model_fields[name].annotation if name in cls.model_fields else bool
        dotted = f"{prefix}.{name}" if prefix else str(name)
        given = value if isinstance(value, list) else [value]
        if isinstance(kind, type) and issubclass(kind, Closed):
            _refuse_booleans(kind, value, dotted)
        elif bool not in (kind, *get_args(kind)) and any(isinstance(v, bool) for v in given):
            raise WrongTypeError(f"{dotted} is {str(value).lower()}", "a number or a word, not true or false")


def _named_error(error: ValidationError, cls: type[Closed], prefix: str) -> ConfigError:
    first = error.errors()[0]
    path = [str(p) for p in first["loc"] if not _is_union_branch(p)]
    dotted = ".".join([prefix, *path] if prefix else path)
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(cls, path)
        mend = nearest_hint(path[-1], known) or f"The keys here are {', '.join(known)}."
        return UnknownKeyError(f"key {dotted!r} is not known{more}", "a known key", mend)
    if first["type"] == "missing":
        return MissingKeyError(
            f"key {dotted!r} is missing{more}", "a value", f"Write it in the file, or --set {dotted}=..."
        )
    expected = first["msg"][0].lower() + first["msg"][1:]
    wrong_type = first["type"].endswith(("_type", "_parsing", "int_from_float"))
    kind = WrongTypeError if wrong_type else OutOfRangeError
    return kind(f"{dotted} is {first['input']!r}{more}", expected.removeprefix("input should be "))


def _is_union_branch(part: object) -> bool:
    return isinstance(part, str) and ("literal[" in part or "constrained-" in part or part == "int")


def _known_keys(cls: type[Closed], path: list[str]) -> list[str]:
    owner = cls
    for step in path[:-1]:
        kind = owner.model_fields[step].annotation if step in owner.model_fields else None
        owner = kind if isinstance(kind, type) and issubclass(kind, Closed) else owner
    return sorted(owner.model_fields)


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> scalar, for MLflow params and for `show-config`."""

    def walk(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, Mapping):
            for name, child in node.items():
                yield from walk(f"{prefix}.{name}" if prefix else str(name), child)
        else:
            yield prefix, node

    return dict(walk("", config.model_dump(mode="json")))


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration: this text alone reproduces the run."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
