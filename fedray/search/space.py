"""A search space: dotted keys of a job, and what each of them may be. Pure functions; no Ray in here.

An axis is `{loguniform: [low, high]}`, `uniform`, `randint` (both ends included), `choice` (a list; entries may be
whole sections) or `grid` (a list of which each is tried). It may say `when: {other.key: value or list}`, and is left
alone where that does not hold; settings of a plug-in or an encoder that a trial does not have are left alone, too.
"""

import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np

from fedray import seeding
from fedray.config import flatten, make_config, names_in, nearest_hint
from fedray.errors import (
    FedrayError,
    MissingKeyError,
    OutOfRangeError,
    UnknownKeyError,
    UnsupportedError,
    WrongTypeError,
)
from fedray.yamls import laid

Kind = Literal["uniform", "loguniform", "randint", "choice", "grid"]
Settings = dict[str, Any]
"""Dotted key -> value, of one trial."""
KINDS: tuple[str, ...] = get_args(Kind)
NEVER = {
    "name": "a trial is named by its number",
    "seed": "the best of several seeds is luck: use refit.seeds",
    "data": "scores on other data, or on fewer users and items, cannot be compared",
    "evaluation": "scores under other rules cannot be compared",
    "runtime": "where things run changes no result",
    "encoding": "how items are encoded changes no result",
    "tracking": "where runs are recorded changes no result",
}
REPEATS = 1000
"""Draws in a row that were all there before: then a space is used up."""


@dataclass(frozen=True)
class Axis:
    """One key, and (low, high) of it, or the values it may have."""

    key: str
    kind: Kind
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether its values can be gone through."""
        return self.kind in ("choice", "grid", "randint")

    @property
    def listed(self) -> tuple[Any, ...]:
        """All of a finite axis."""
        low, high = (self.values[0], self.values[-1]) if self.kind == "randint" else (0, 0)
        return tuple(range(low, high + 1)) if self.kind == "randint" else self.values


def read_space(raw: Any) -> tuple[Axis, ...]:
    """The axes, those first that others depend on. Raises the family of `ConfigError`."""
    if not isinstance(raw, Mapping) or not raw:
        raise WrongTypeError("space is " + ("empty" if not raw else repr(raw)), "a mapping of keys to what they may be")
    return _in_order([_axis(str(key), body) for key, body in raw.items()])


def _axis(key: str, body: Any) -> Axis:
    section = key.partition(".")[0]
    if section in NEVER:
        raise UnsupportedError(f"space.{key}", "settings of the method, of its training or of encoders", NEVER[section])
    if not isinstance(body, Mapping):
        raise WrongTypeError(f"space.{key} is {body!r}", f"one of {', '.join(KINDS)}", "E.g. {choice: [1, 2]}.")
    unknown = [str(k) for k in body if k not in (*KINDS, "when")]
    if unknown:
        hint = nearest_hint(unknown[0], [*KINDS, "when"])
        raise UnknownKeyError(f"space.{key} has {unknown[0]!r}", f"one of {', '.join(KINDS)}, and when", hint)
    kinds = [k for k in body if k in KINDS]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise MissingKeyError(f"space.{key} has {found} of {', '.join(KINDS)}", "exactly one")
    kind = cast(Kind, kinds[0])
    return Axis(key, kind, _values(f"space.{key}.{kind}", kind, body[kind]), _when(key, body.get("when", {})))


def _values(where: str, kind: Kind, found: Any) -> tuple[Any, ...]:
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise WrongTypeError(f"{where} is {found!r}", "a list")
    if kind in ("choice", "grid"):
        spelled = [spell(v) for v in found]
        if not found or len(set(spelled)) < len(spelled):
            raise OutOfRangeError(f"{where} is {list(found)!r}", "at least one value, each once")
        return tuple(found)
    numbers = [v for v in found if isinstance(v, int if kind == "randint" else int | float) and not isinstance(v, bool)]
    if len(found) != 2 or len(numbers) != 2:
        raise WrongTypeError(f"{where} is {list(found)!r}", "[low, high]" + (" in whole numbers" * (kind == "randint")))
    low, high = numbers
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (kind == "loguniform" and low <= 0):
        raise OutOfRangeError(f"{where} is {list(found)!r}", "low < high" + ", both above 0" * (kind == "loguniform"))
    return low, high


def _when(key: str, found: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(found, Mapping):
        raise WrongTypeError(
            f"space.{key}.when is {found!r}", "a mapping", "E.g. when: {backbone.name: [fcf, fedrap]}."
        )
    return {str(k): tuple(v) if isinstance(v, list) else (v,) for k, v in found.items()}


def _in_order(axes: list[Axis]) -> tuple[Axis, ...]:
    """Sections before keys in them, and conditions before what they are about; else as written."""
    done: list[Axis] = []
    while rest := [a for a in axes if a not in done]:
        ready = [a for a in rest if not any(_before(other, a) for other in rest if other is not a)]
        if not ready:
            raise UnsupportedError(
                f"space: {' and '.join(a.key for a in rest)} wait for each other", "no circles in when"
            )
        done.append(ready[0])
    return tuple(done)


def _before(first: Axis, then: Axis) -> bool:
    return any(key == first.key or key.startswith(f"{first.key}.") for key in (then.key, *then.when))


def current(settings: Settings) -> Settings:
    """A trial's settings after its last change."""
    now = {k: v for k, v in settings.items() if k != "changes"}
    for _, changed in sorted(settings.get("changes", {}).items()):
        now |= changed
    return now


def applies(axis: Axis, raw: Mapping[str, Any]) -> bool:
    """Whether a job with these settings has a use for the axis."""
    section, name, *rest = [*axis.key.split("."), "", ""]
    if section in ("plugins", "encoders") and rest[0] and not isinstance(_raw_at(raw, f"{section}.{name}"), Mapping):
        return False
    return all(_at(raw, key) in values for key, values in axis.when.items())


def _raw_at(raw: Mapping[str, Any], key: str) -> Any:
    node: Any = raw
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _at(raw: Mapping[str, Any], key: str) -> Any:
    """The value, or the default where the job does not say."""
    found = _raw_at(raw, key)
    return flatten(make_config(raw)).get(key) if found is None else found


def settled(space: Sequence[Axis], raw: Mapping[str, Any], pick: Callable[[Axis], Any]) -> Settings:
    """One trial's settings, each axis picked that applies."""
    chosen: Settings = {}
    for axis in space:
        if applies(axis, laid(raw, chosen)):
            chosen[axis.key] = pick(axis)
    return chosen


def grid(space: Sequence[Axis], raw: Mapping[str, Any]) -> Iterator[Settings]:
    """Every point of finite axes, the last axis fastest. `UnsupportedError` where one is not finite."""
    if endless := [a.key for a in space if not a.finite]:
        raise UnsupportedError(
            f"search.name is grid and {endless[0]} is a range", "choice, grid or randint on all axes"
        )
    return _points(space, raw, {}, lambda axis: axis.listed)


def draws(space: Sequence[Axis], raw: Mapping[str, Any], seed: int) -> Iterator[Settings]:
    """Random settings without end, or until a finite space is used up; every draw with each point of its grid axes. A
    draw depends on the seed and its place alone. No settings come twice."""
    seen: set[str] = set()
    quiet = 0
    for n in itertools.count():

        def values(axis: Axis, n: int = n) -> tuple[Any, ...]:
            return axis.values if axis.kind == "grid" else (drawn(axis, seed, n),)

        for found in _points(space, raw, {}, values):
            quiet = 0 if (text := spell(found)) not in seen else quiet + 1
            if not quiet:
                seen.add(text)
                yield found
        if quiet >= REPEATS:
            return


def _points(
    space: Sequence[Axis], raw: Mapping[str, Any], chosen: Settings, values: Callable[[Axis], tuple[Any, ...]]
) -> Iterator[Settings]:
    if not space:
        yield chosen
        return
    axis, rest = space[0], space[1:]
    if not applies(axis, laid(raw, chosen)):
        yield from _points(rest, raw, chosen, values)
        return
    for value in values(axis):
        yield from _points(rest, raw, {**chosen, axis.key: value}, values)


def drawn(axis: Axis, seed: int, n: int) -> Any:
    """The n-th random value of an axis."""
    rng = seeding.generator(seeding.key(seed, "search", n, zlib.crc32(axis.key.encode())))
    if axis.kind in ("choice", "grid"):
        return axis.values[int(rng.integers(len(axis.values)))]
    low, high = axis.values
    if axis.kind == "randint":
        return int(rng.integers(low, high + 1))
    if axis.kind == "uniform":
        return float(rng.uniform(low, high))
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def points_of(space: Sequence[Axis], raw: Mapping[str, Any], wanted: Sequence[Axis]) -> Iterator[Settings]:
    """All that the wanted axes, and those they depend on, can be together; of ranges the ends."""
    kept = set(a.key for a in wanted)
    for axis in reversed(space):
        kept |= {axis.key} if any(a.key in kept and _before(axis, a) for a in space) else set()
    return _points([a for a in space if a.key in kept], raw, {}, lambda a: a.listed if a.finite else a.values)


def check(space: Sequence[Axis], raw: Mapping[str, Any]) -> None:
    """Every end and every choice of every axis makes a valid job, as far as one axis alone can tell. Raises the family
    of `ConfigError`, and says which axis."""
    for axis in space:
        under = _where_it_applies(space, axis, raw)
        for value in axis.values:
            try:
                make_config(laid(raw, {**under, axis.key: value}))
            except FedrayError as error:
                error.where = f"space.{axis.key}, value {value!r}"
                raise


def _where_it_applies(space: Sequence[Axis], axis: Axis, raw: Mapping[str, Any]) -> Settings:
    """Settings of other axes under which this one counts; `UnsupportedError` where there are none."""
    for chosen in points_of(space, raw, [a for a in space if _before(a, axis) and a is not axis]):
        if applies(axis, laid(raw, chosen)):
            return chosen
    raise UnsupportedError(
        f"space.{axis.key} never applies",
        "a plug-in or encoder that a trial can have, and a `when` that can hold",
        f"Plug-ins are {', '.join(names_in('methods.plugins'))}.",
    )


def spell(value: Any) -> str:
    """Any value of a YAML as text that is the same for the same value."""
    return json.dumps(value, sort_keys=True)
