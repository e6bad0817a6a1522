"""What a run will need, before anything starts: actors, memory, traffic, time. Refused with figures if it cannot fit.

Memory and time are estimates from measured constants (named below); traffic is exact up to the negatives drawn, the
factors that weight decay adds and, where clients are sent tables of their own, who was in the cohort the round before.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from fedray.config import RunConfig
from fedray.errors import MemoryPlanError, PlacementError, UnsupportedError
from fedray.federated.cohort import cohort_size
from fedray.federated.local_training import compiled
from fedray.federated.method import Method
from fedray.federated.scoring import GROUP
from fedray.types import ClientData

PROCESS_BYTES = 230e6
"""One worker with torch and numba imported, proportional set size, measured."""
RAY_BYTES = 450e6
"""Ray's own processes on a local node without dashboard, measured."""
MOST_BYTES = 1 << 30
"""That the driver may keep of what it sent since the last checkpoint, to do the rounds again; above, it makes one."""
NS_PER_SAMPLE = {"compiled": 2.0, "vmap": 40.0}
"""Nanoseconds per sample, dimension and local epoch, one core; a guess good to a factor of three."""


@dataclass(frozen=True)
class Resources:
    """What there is; `nodes` are the CPUs of each node (empty: one node with all)."""

    cpus: float
    gpus: float
    memory_bytes: float
    nodes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run asks for."""

    actors: int
    clients: int
    cpus_per_actor: float
    gpus_per_actor: float
    device: str
    path: str
    actor_bytes: float
    total_bytes: float
    up_bytes: float
    down_bytes: float
    round_seconds: float
    executor: str
    server_bytes: float = 0.0


def make_plan(config: RunConfig, method: Method, data: ClientData, there: Resources) -> Plan:
    """The plan for this run on these resources. Raises `PlacementError` for a GPU that is not there."""
    device = pick_device(config, method, there)
    actors = count_actors(config, len(data), there, device)
    cohort = cohort_size(len(data), config.train.clients_per_round, config.train.over_select)
    share = cohort / max(len(data), 1)
    rows = touched_rows(config, data)
    size = sizes(config, method)
    path = "compiled" if compiled(method, config.train, device) else "vmap"
    kept = client_bytes(config, method, data, rows, size)
    actor_bytes = PROCESS_BYTES + kept / actors + _sum_bytes(data, size)
    serial = config.runtime.executor == "serial"
    labels = 0 if method.guide is None else 1
    server = server_bytes(method, cohort, data.n_items, size, copies=2 if serial else 4)
    others = (
        (actors - 1) * actor_bytes + RAY_BYTES + 2 * PROCESS_BYTES + kept_rounds(config, data.n_items, cohort, size)
    )
    around = server + (0.0 if serial else others)
    return Plan(
        actors=actors,
        clients=len(data),
        cpus_per_actor=_cpus(actors, there, device),
        gpus_per_actor=config.runtime.gpu_share if device == "cuda" else 0.0,
        device=device,
        path=path,
        actor_bytes=actor_bytes,
        total_bytes=actor_bytes + around,
        up_bytes=_up_bytes(method, rows, share, data.n_items, size),
        down_bytes=cohort * (4.0 * data.n_items * (size.shared + labels + share * size.collected) + 4.0 * size.dense),
        round_seconds=_seconds(config, data, share, path) / min(actors, max(there.cpus, 1)),
        executor=config.runtime.executor,
        server_bytes=server,
    )


@dataclass(frozen=True)
class Sizes:
    """Numbers per item row (of shared, tuned, private and collected tables), in dense tensors, and per client."""

    shared: int
    tuned: int
    own: int
    collected: int
    dense: int
    private: int


def sizes(config: RunConfig, method: Method) -> Sizes:
    """Widths of a method's parameters, from their starts."""
    server, own = method.down(method.init_server(config.seed)), method.init_private_rows(config.seed)

    def width(names: Iterable[str]) -> int:
        return sum({**server, **own}[k][0].size for k in names)

    one = method.init_clients(config.seed, np.array([0]))
    return Sizes(
        shared=width(method.shared_rows),
        tuned=width(method.tuned),
        own=width(method.private_rows),
        collected=width(method.collects),
        dense=sum(server[k].size for k in method.shared_dense),
        private=sum(v.size for v in one.values()),
    )


def server_bytes(method: Method, cohort: int, n_items: int, size: Sizes, copies: int = 4) -> float:
    """What a method that collects whole tables needs at the driver: uploads as they come, joined, the clients' targets
    and one working copy, each cohort x items x d; and a few matrices cohort x cohort. In the clients' own process two
    copies: uploads and targets are arrays that clients hold anyway."""
    if not method.collects:
        return 0.0
    return copies * 4.0 * cohort * n_items * size.collected + 4 * 4.0 * cohort**2


def kept_rounds(config: RunConfig, n_items: int, cohort: int, size: Sizes) -> float:
    """What is kept of rounds until the next checkpoint, at most: what went down, with the clients' targets."""
    again = config.runtime.recovery != "none" and config.runtime.checkpoint.every
    each = 4.0 * (n_items * (size.shared + cohort * size.collected) + size.dense)
    between = config.train.rounds if again == "auto" else int(again or 1)
    return min(between * each, float(MOST_BYTES))


def _up_bytes(method: Method, rows: np.ndarray, share: float, n_items: int, size: Sizes) -> float:
    """Under noise, and where tables are collected, every row travels."""
    whole = size.shared if method.noise and method.noise.scale else size.collected
    sparse = size.shared - whole
    each = 4 * (n_items * whole + size.dense) * len(rows)
    return share * (each + (4 * rows.sum() * (1 + sparse) if sparse else 0.0))


def pick_device(config: RunConfig, method: Method, there: Resources) -> str:
    """auto: the CPU where the compiled kernel does the work, else a GPU if there is one."""
    wanted = config.runtime.device
    if wanted == "cuda" and there.gpus <= 0:
        raise PlacementError("runtime.device is cuda and there is no GPU", "a GPU", "Use runtime.device=auto or cpu.")
    if wanted == "cuda" and config.train.path == "compiled":
        raise UnsupportedError("train.path: compiled on cuda", "the CPU", "Use train.path=auto.")
    if wanted == "auto":
        return "cuda" if there.gpus > 0 and not compiled(method, config.train, "cpu") else "cpu"
    return wanted


def count_actors(config: RunConfig, n_clients: int, there: Resources, device: str) -> int:
    """clients_per_actor wins over actors; auto is one actor per CPU, or per GPU share."""
    if config.runtime.executor == "serial":
        return 1
    if config.runtime.clients_per_actor != "auto":
        return -(-n_clients // config.runtime.clients_per_actor)
    if config.runtime.actors != "auto":
        return min(config.runtime.actors, n_clients)
    slots = there.gpus / config.runtime.gpu_share if device == "cuda" else there.cpus
    return max(1, min(int(slots), n_clients))


def touched_rows(config: RunConfig, data: ClientData) -> Float[np.ndarray, " clients"]:
    """Expected distinct items per client and round: its positives and the distinct negatives."""
    positives = data.train.lengths().astype(np.float64)
    pool = np.maximum(data.n_items - positives, 1.0)
    return positives + pool * -np.expm1(-config.train.negatives * positives / pool)


def client_bytes(config: RunConfig, method: Method, data: ClientData, rows: np.ndarray, size: Sizes) -> float:
    """All clients' data and samples; trained rows (start and end), tuned rows, private tables and parameters, and
    tables kept whole (now, best, and the round in hand)."""
    samples = float(data.train.lengths().sum()) * (1 + config.train.negatives)
    per_sample = 8 + 8 + 4 * config.train.local_epochs
    trained = float(rows.sum()) * 4 * (2 * (size.shared + size.own) + 3 * size.tuned)
    ever = data.n_items * -np.expm1(-config.train.rounds * rows / data.n_items)
    own = 3 * float(ever.sum()) * 4 * (size.own + 1) if size.own else 0.0
    whole = 4 * 4.0 * len(data) * data.n_items * size.collected
    private = len(data) * 4.0 * (size.private + size.dense) * 3
    return samples * per_sample + trained + own + whole + private + 24.0 * len(data.train.values)


def _sum_bytes(data: ClientData, size: Sizes) -> float:
    """An actor's partial sum and its score buffer."""
    return 8.0 * data.n_items * size.shared * 3 + 3 * 4.0 * min(GROUP, len(data)) * data.n_items


def _cpus(actors: int, there: Resources, device: str) -> float:
    """CPUs to ask for per actor: at most one, and so little that all fit, node by node; in Ray's steps of 0.0001."""
    nodes = there.nodes or (there.cpus,)
    ask = min(1.0, sum(nodes) / actors) if device == "cpu" else 0.5 * min(1.0, sum(nodes) / actors)
    while sum(math.floor(n / ask + 1e-9) for n in nodes) < actors:
        ask *= 0.9
    return max(0.0001, math.floor(ask * 1e4) / 1e4)


def _seconds(config: RunConfig, data: ClientData, share: float, path: str) -> float:
    samples = float(data.train.lengths().sum()) * (1 + config.train.negatives) * share
    train = samples * config.backbone.dim * config.train.local_epochs * NS_PER_SAMPLE[path] * 1e-9
    score = 2e-10 * len(data) * data.n_items * config.backbone.dim
    return train + score + samples * 6e-8


def check(plan: Plan, config: RunConfig, there: Resources) -> None:
    """Refuse a plan that cannot be placed or cannot fit, with the figures and what would."""
    if plan.gpus_per_actor * plan.actors > there.gpus + 1e-9:
        raise PlacementError(
            f"{plan.actors} actors ask for {plan.gpus_per_actor:g} GPU each",
            f"at most the {there.gpus:g} GPUs there are",
            "Use runtime.actors=auto, or a smaller runtime.gpu_share.",
        )
    limit = config.runtime.memory_limit_gb * 1e9 or there.memory_bytes
    if plan.total_bytes <= limit:
        return
    alone = plan.total_bytes - (plan.actors - 1) * PROCESS_BYTES
    shell = 0.0 if plan.executor == "serial" else RAY_BYTES + 2 * PROCESS_BYTES + plan.server_bytes / 2
    raise MemoryPlanError(
        f"{plan.actors} actors of {_gb(plan.actor_bytes)} need {_gb(plan.total_bytes)} in all"
        + (f", of which {_gb(plan.server_bytes)} for tables and a graph at the driver" if plan.server_bytes else ""),
        f"at most {_gb(limit)} ({'runtime.memory_limit_gb' if config.runtime.memory_limit_gb else 'free memory'})",
        f"With runtime.actors=1 it would be about {_gb(alone)}, with runtime.executor=serial "
        f"{_gb(alone - shell)}; a smaller backbone.dim needs less, more nodes have more.",
    )


def shards(data: ClientData, actors: int) -> list[Int[np.ndarray, " k"]]:
    """Positions of each actor's clients: by size, dealt back and forth, so that loads are even."""
    order = np.argsort(-data.train.lengths(), kind="stable")
    lane = np.arange(len(order)) % (2 * actors)
    owner = np.where(lane < actors, lane, 2 * actors - 1 - lane)
    return [np.sort(order[owner == a]) for a in range(actors)]


def even_shards(data: ClientData, per_actor: int) -> list[Int[np.ndarray, " k"]]:
    """Positions of each actor's clients, exactly `per_actor` on each but the last."""
    return [np.arange(i, min(i + per_actor, len(data))) for i in range(0, len(data), per_actor)]


def render(plan: Plan, config: RunConfig) -> str:
    """The plan as text."""
    place = f"{plan.cpus_per_actor:g} CPU" + (f", {plan.gpus_per_actor:g} GPU" if plan.gpus_per_actor else "")
    graph = f", {_gb(plan.server_bytes)} for the clients' tables and graph at the driver" if plan.server_bytes else ""
    where = "in this process" if plan.executor == "serial" else f"{plan.actors} client actors ({place} each), 1 driver"
    return "\n".join(
        [
            f"method    {config.method_name()}, {plan.path} path on {plan.device}",
            f"clients   {plan.clients:,} on {where}",
            f"memory    about {_gb(plan.total_bytes)} ({_gb(plan.actor_bytes)} an actor{graph})",
            f"traffic   {_mb(plan.down_bytes)} down, {_mb(plan.up_bytes)} up a round (all clients together)",
            f"time      about {plan.round_seconds:.2g} s a round (a guess), {config.train.rounds} rounds",
        ]
    )


def _gb(n: float) -> str:
    return f"{n / 1e9:.2f} GB"


def _mb(n: float) -> str:
    return f"{n / 1e6:,.1f} MB"
