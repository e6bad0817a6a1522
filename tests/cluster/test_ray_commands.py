"""Ray's own commands in `cluster/`, read by Ray's own command line; and what else holds for all files there."""

import shlex
import warnings
from functools import cache

import click
import pytest

from tests.cluster.files import CLUSTER, COMPOSE, KUBERAY, RAY_UP, load, words


@cache
def ray_commands() -> dict[str, click.Command]:
    """By what follows `ray`. Their import warns, of Ray Serve's own settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.dashboard.modules.job.cli import submit
        from ray.scripts.scripts import start
    return {"start": start, "job submit": submit}


def of_ray_up() -> list[str]:
    """Head and workers, for each file."""
    configs = [load(f) for f in RAY_UP]
    return [c for f in configs for k in ("head", "worker") for c in f[f"{k}_start_ray_commands"] if "ray start" in c]


def of_kuberay() -> list[str]:
    """What the operator makes of `rayStartParams`."""
    spec = load(CLUSTER / "kuberay" / "raycluster.yaml")["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return ["ray start " + " ".join(f"--{k}={v}" for k, v in g["rayStartParams"].items()) for g in groups]


def of_compose() -> list[str]:
    services = load(COMPOSE)["services"].values()
    return [shlex.join(words(s["command"])) for s in services if words(s.get("command", "-"))[0] == "ray"]


def check(command: str) -> None:
    """Raises `click.UsageError` for an option that Ray does not have."""
    name = next(n for n in ray_commands() if command.startswith(f"ray {n}"))
    filled = command.replace("$RAY_HEAD_IP", "192.0.2.1").replace("${WORKER_CPUS:-2}", "2")
    ray_commands()[name].make_context(name, shlex.split(filled.removeprefix(f"ray {name}")))


COMMANDS = [*of_ray_up(), *of_kuberay(), *of_compose()]


@pytest.mark.parametrize("command", COMMANDS)
def test_ray_takes_it(command: str) -> None:
    check(command)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--" in c])
def test_a_typo_is_found(command: str) -> None:
    option = command[command.index("--") :].split()[0].partition("=")[0]
    with pytest.raises(click.UsageError):
        check(command.replace(option, f"{option}-x", 1))


def test_every_yaml_is_checked_somewhere() -> None:
    assert set(CLUSTER.rglob("*.y*ml")) == {*KUBERAY, *RAY_UP, COMPOSE}


def test_the_readme_says_how_to_start_each_kind() -> None:
    page = (CLUSTER / "README.md").read_text(encoding="utf-8")
    assert not [f.name for f in (*KUBERAY, *RAY_UP) if f.name not in page]
    assert "sbatch --nodes" in page and "docker compose up" in page
