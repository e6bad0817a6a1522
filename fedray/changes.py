"""Settings that change between two rounds: `changes: {20: {backbone.lr: 0.3}}`, 0.3 from round 21 on.

What may change is what each round reads anew and what shapes nothing that is kept: no table, no state of an optimiser,
no schedule over the rounds that are done. So a run with changes can be broken off and gone on with as any other.
"""

from collections.abc import Mapping
from typing import Any

from fedray.errors import OutOfRangeError, UnknownKeyError, UnsupportedError
from fedray.yamls import laid

Changes = Mapping[int, Mapping[str, Any]]
MAY_CHANGE: Mapping[str, tuple[str, ...]] = {
    "train": (
        *("local_epochs", "batch_size", "negatives", "weight_decay", "private_weight_decay", "private_steps"),
        *("clients_per_round", "max_update_norm"),
    ),
    "backbone": (
        *("lr", "item_lr", "item_lr_scale", "user_lr_scale", "personal_lr_scale", "step_decay"),
        *("independence", "sparsity", "reg", "neighbours", "threshold"),
    ),
    "plugins": (
        *("lr", "dense_lr_scale", "item_lr_scale", "router_lr_scale", "operator_lr", "weight_decay", "scale", "clip"),
        *("weight", "ratio_decay", "fit_epochs", "fit_batch", "fit_lr", "fit_weight_decay"),
    ),
}
"""By section; of `plugins` the keys of any."""


def may_change(key: str) -> bool:
    """Whether a setting may be another one from some round on."""
    section, *rest = key.split(".")
    return len(rest) == 1 + (section == "plugins") and rest[-1] in MAY_CHANGE.get(section, ())


def check(changes: Changes, rounds: int, body: Mapping[str, Any]) -> None:
    """That the changes of a job can be made. body: the job without them. Whether the values are good is said
    where the job is `made`. Raises `OutOfRangeError`, `UnknownKeyError`, `UnsupportedError`."""
    for round_, settings in changes.items():
        if not 1 <= round_ < rounds:
            raise OutOfRangeError(f"changes has a round {round_}", f"1 to {rounds - 1}: a round before train.rounds")
        for key, value in settings.items():
            _check_one(f"changes.{round_}: {key}", key, value, body)


def _check_one(where: str, key: str, value: Any, body: Mapping[str, Any]) -> None:
    if not may_change(key):
        section = key.partition(".")[0]
        here = ", ".join(f"{section}.{k}" for k in MAY_CHANGE.get(section, ())) or f"a key of {', '.join(MAY_CHANGE)}"
        raise UnsupportedError(f"{where} stays as it is for a run", here.replace("plugins.", "plugins.<name>."))
    *parents, last = key.split(".")
    node: Any = body
    for parent in parents:
        node = node.get(parent, {})
    if last not in node:
        raise UnknownKeyError(f"{where} is not a setting of this job", "a setting that it has from the start")
    if isinstance(value, bool | str) or (value == 0) != (node[last] == 0):
        raise UnsupportedError(f"{where} is {value!r}, and {node[last]!r} before", "numbers; what is off (0) stays off")


def made(body: Mapping[str, Any], changes: Changes, round_: int) -> dict[str, Any]:
    """The job as it is after so many rounds; `body` stays as it is."""
    settings = {key: value for r in sorted(changes) if r <= round_ for key, value in changes[r].items()}
    return laid(body, settings)
