"""What a trial asks of the cluster: one process, or a process with client actors. The figures come from the plan that
creates the actors (`runtime.plan`), so that a trial can never wait for room that was not asked for."""

import math
from dataclasses import dataclass, replace
from typing import Any

from fedray.config import RunConfig
from fedray.errors import PlacementError
from fedray.federated.method import Method
from fedray.runtime import plan as planning
from fedray.runtime.plan import Plan, Resources
from fedray.search.sweep import TrialsConfig
from fedray.types import ClientData


@dataclass(frozen=True)
class Place:
    """A trial's plan, and its bundles: of its own process first, then one per client actor."""

    plan: Plan
    bundles: tuple[dict[str, float], ...]

    @property
    def packed(self) -> bool:
        """Whether a trial is one process."""
        return self.plan.executor == "serial"


def serial(config: RunConfig) -> RunConfig:
    """The same run in one process."""
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"executor": "serial"})})


def placed(config: RunConfig, asked: TrialsConfig, method: Method, data: ClientData, there: Resources) -> Place:
    """A trial's place on these resources. Raises `PlacementError` and `MemoryPlanError`, with figures."""
    one = packed(config, asked, method, data, there)
    fits = one.plan.total_bytes * slots(one, there) <= there.memory_bytes
    if asked.place == "packed" or (asked.place == "auto" and fits):
        return one
    plan = planning.make_plan(config, method, data, there)
    planning.check(plan, config, there)
    each = {"CPU": plan.cpus_per_actor, **({"GPU": plan.gpus_per_actor} if plan.gpus_per_actor else {})}
    return Place(plan, ({}, *(dict(each) for _ in range(plan.actors))))


def packed(config: RunConfig, asked: TrialsConfig, method: Method, data: ClientData, there: Resources) -> Place:
    """One process."""
    alone = serial(config)
    plan = planning.make_plan(alone, method, data, replace(there, cpus=min(asked.cpus, there.cpus), nodes=()))
    planning.check(plan, alone, there)
    return Place(plan, ({"CPU": asked.cpus, **({"GPU": plan.gpus_per_actor} if plan.gpus_per_actor else {})},))


def slots(place: Place, there: Resources) -> int:
    """Trials that have room at once; `PlacementError` where there is none for a single one."""
    cpus = sum(b.get("CPU", 0.0) for b in place.bundles)
    gpus = sum(b.get("GPU", 0.0) for b in place.bundles)
    nodes = there.nodes or (there.cpus,)
    biggest = max(b.get("CPU", 0.0) for b in place.bundles)
    at_once = sum(math.floor(n / cpus + 1e-9) for n in nodes) if place.packed else math.floor(sum(nodes) / cpus + 1e-9)
    at_once = min(at_once, math.floor(there.gpus / gpus + 1e-9)) if gpus else at_once
    if at_once < 1 or biggest > max(nodes):
        raise PlacementError(
            f"a trial asks for {len(place.bundles)} process(es) with {cpus:g} CPU and {gpus:g} GPU in all",
            f"at most what there is: {sum(nodes):g} CPU on {len(nodes)} node(s), {there.gpus:g} GPU",
            "Lower trials.cpus, or runtime.actors, or use trials.place: packed.",
        )
    return at_once


def concurrent(place: Place, asked: Any, there: Resources) -> int:
    """Trials at once: all that fit, or as asked (others wait for room)."""
    fit = slots(place, there)
    return fit if asked == "auto" else int(asked)
