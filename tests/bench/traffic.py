"""What FedVLR sends and keeps, as a round counts it: beside its authors' code and its paper's reading.

    python -m tests.bench.traffic [--write]

Each backbone with the paper's three views, d 64 and a router of 64, goes through two rounds of the paper's schedule
(5 local epochs, one negative); the second one's bytes, by clients, are the table's. Numbers are of 4 bytes; ids of rows
count as numbers. `--write` puts the table into the README.
"""

import sys
from typing import NamedTuple

import numpy as np

from fedray.config import RunConfig, make_config
from fedray.data.dataset import client_data, load
from fedray.data.protocols import rules_of
from fedray.federated import rounds
from fedray.federated.clients import make_host
from fedray.federated.executor import SerialExecutor
from fedray.federated.method import Method
from fedray.methods import build
from fedray.types import ClientData, ItemFeatures
from tests.bench.measure import source
from tests.bench.results import ROOT, rewrite

D, CONTENT, ROUTER, FUSION = 64, 512, 12_547, 168_835
"""FUSION: the authors' projections, operators and router (of their first release; the second adds 640 norms)."""
TOWER = {"hidden": [64, 32, 16]}
BACKBONES = {
    "fcf": {"name": "fcf"},
    "fedavg": {"name": "fedavg"},
    "pfedrec": {"name": "fcf"},
    "fedncf": {"name": "fedncf", **TOWER},
    "fedrap": {"name": "fedrap"},
    "gpfedrec": {"name": "gpfedrec", **TOWER},
}
OUTER = {"pfedrec": {"dualper": {"item_lr_scale": 1}}}
VIEWS = {"views": ["sum", "mlp", "gate"], "router_dim": 64}
PAPER = {"local_epochs": 5, "batch_size": 2048, "negatives": 1}
KU = {"source": "folder", "name": "ku", "split": "given"}
TITLES = {"ku": "KU", "ml-100k": "ML-100K"}
USERS_OWN = ("head_weight", "head_bias", "user_embedding")
PUBLISHED = {"ku": {"fcf": 120, "fedavg": 120, "pfedrec": 120, "fedncf": 564, "fedrap": 155}}
"""Thousands of parameters on a client; the paper has neither GPFedRec nor ML-100K."""


class Sent(NamedTuple):
    """Numbers down and up for a client and round, and the numbers that it keeps."""

    down: float
    up: float
    kept: int


def config_of(backbone: str, data: dict, train: dict | None = None, dim: int = D, **settings) -> RunConfig:
    """A backbone with FedVLR; it is not evaluated, and its learning rate changes no byte."""
    plugins = {**OUTER.get(backbone, {}), "fedvlr": {**VIEWS, **settings}}
    body = {"backbone": {**BACKBONES[backbone], "dim": dim, "lr": 0.001}, "plugins": plugins, "data": data}
    schedule = {**PAPER, **(train or {}), "rounds": 3}
    return make_config({**body, "train": schedule, "evaluation": {"every": 3, "local_only": False}})


def counted(config: RunConfig, data: ClientData, features: ItemFeatures) -> Sent:
    """The second round's bytes, by clients: in the first nobody has a target of its own yet (GPFedRec)."""
    method = build(config, data.n_items, features)
    executor, run = SerialExecutor([make_host(config, method, data)]), rounds.start(config, method)
    for _ in range(2):
        run, report = rounds.step(run, executor)
    return Sent(*(b / 4 / report.clients_ok for b in (report.bytes_down, report.bytes_up)), parameters(method))


def parameters(method: Method) -> int:
    """On a client: item tables, router and layers. The user's own vector, or head, is left out, as the paper does."""
    down, own = method.down(method.init_server(0)), method.init_clients(0, np.array([0]))
    mine = [v[0] for k, v in own.items() if k not in USERS_OWN] + list(method.init_private_rows(0).values())
    return sum(v.size for v in (*down.values(), *mine))


def loaded(name: str) -> tuple[dict, ClientData, ItemFeatures]:
    """A set and its features; random ones of the paper's width where it has none."""
    where = {**source(name), **(KU if name == "ku" else {})}
    config = make_config({"data": where})
    dataset = load(config.data, rules_of(config.evaluation))
    data = client_data(dataset)
    return where, data, dataset.features or random_features(data.n_items)


def random_features(n_items: int, width: int = CONTENT) -> ItemFeatures:
    """What is sent does not depend on what they are."""
    rng, names = np.random.default_rng(0), ("image", "text")
    tables = {m: rng.standard_normal((n_items, width), dtype=np.float32) for m in names}
    return ItemFeatures(tables, {m: np.ones(n_items, bool) for m in names}, f"random-{n_items}")


def authors(n_items: int) -> int:
    """Each way, in their code: a wide ID table and the whole fusion network."""
    return n_items * CONTENT + FUSION


def papers(n_items: int) -> tuple[int, int]:
    """Down and up as the paper reads: the views; gradients of the ID table and of all but the router."""
    return 3 * n_items * D, n_items * D + FUSION - ROUTER


def rows(name: str) -> list[str]:
    """The table's rows of one set."""
    where, data, features = loaded(name)
    out = []
    for backbone in BACKBONES:
        sent = counted(config_of(backbone, where), data, features)
        out.append(line(name, backbone, data.n_items, sent))
        print(out[-1], flush=True)
    return out


def line(data: str, backbone: str, n_items: int, sent: Sent) -> str:
    """One row; the authors have no GPFedRec."""
    code, (down, up) = authors(n_items), papers(n_items)
    there = backbone != "gpfedrec"
    published = PUBLISHED.get(data, {}).get(backbone)
    cells = [
        f"{TITLES[data]}, `{backbone}`",
        f"{sent.down:,.0f} ({4 * sent.down / 1e3:,.0f} kB)",
        f"{sent.up:,.0f} ({4 * sent.up / 1e3:,.0f} kB)",
        f"{code:,}" if there else "",
        f"{code / sent.down:.1f} / {code / sent.up:.1f}" if there else "",
        f"{down:,} / {up:,}" if there else "",
        f"{down / sent.down:.2f} / {up / sent.up:.2f}" if there else "",
        f"{sent.kept / 1e3:,.1f}",
        f"{published}" if published else "",
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Both sets."""
    head = [
        *("data, backbone", "down", "up", "authors' code, each way", "its ratio to ours, down / up"),
        *("paper's reading, down / up", "ratio", "kept by a client, thousands", "published"),
    ]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(r for n in TITLES for r in rows(n))])


def main(args: list[str]) -> None:
    """Count, print, write."""
    text = table()
    if "--write" in args:
        readme = ROOT / "README.md"
        readme.write_text(rewrite(readme.read_text(), "traffic", text))


if __name__ == "__main__":
    main(sys.argv[1:])
