"""Every command that something in `cluster/` starts, read by fedray's own command line."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer._click.exceptions import UsageError

from fedray.cli import app
from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.search.sweep import load_sweep
from tests.cluster.files import CLUSTER, COMPOSE, ROOT, SBATCH, load, words

IN_IMAGE = "/opt/fedray/"
COMMANDS = typer.main.get_command(app).commands


def after_dashes(args: list[str]) -> list[str]:
    return args[args.index("--") + 1 :]


def of_script() -> list[str]:
    """The last command of the batch script, its variables filled in."""
    script = SBATCH.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, value in {"JOB": "jobs/quickstart.yaml", "RUN_ID": "night-1", "TRACKING": "sqlite:///x.db"}.items():
        script = script.replace(f'"${name}"', value)
    return after_dashes(shlex.split(script.splitlines()[-1].replace("$SHARED", "/shared")))


def of_readme() -> dict[str, list[str]]:
    """Commands of fedray in the page's code."""
    text = (CLUSTER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"-- (fedray .*|python \S*jobs/.*)", text)
    return {f"README.md-{n}": shlex.split(line, comments=True) for n, line in enumerate(found)}


ENTRYPOINTS = {
    "rayjob-train": shlex.split(load(CLUSTER / "kuberay" / "rayjob-train.yaml")["spec"]["entrypoint"]),
    "rayjob-tune": shlex.split(load(CLUSTER / "kuberay" / "rayjob-tune.yaml")["spec"]["entrypoint"]),
    "compose": after_dashes(words(load(COMPOSE)["services"]["train"]["command"])),
    "slurm": of_script(),
    **of_readme(),
}


def here(word: str) -> str:
    """A path in the image as one in the repository."""
    return str(ROOT / word.removeprefix(IN_IMAGE)) if word.startswith((IN_IMAGE, "jobs/", "tune_configs/")) else word


def check(entrypoint: list[str]) -> None:
    """The command exists, takes these options, and the job with these settings is valid."""
    first, *rest = entrypoint
    if first == "python":
        script, *rest = rest
        assert Path(here(script)).is_file()
        command = Path(script).stem
    else:
        assert first == "fedray"
        command, *rest = rest
    context = COMMANDS[command].make_context(command, [here(w) for w in rest])
    if command == "tune":
        assert load_sweep(context.params["sweep"], context.params["set_"])
    else:
        assert load_config(context.params["job"], context.params["set_"])


def without_resume(entrypoint: list[str]) -> list[str]:
    """Less what comes with checkpoints: `--resume-or-start --run-id X` and the place of checkpoints."""
    line = re.sub(r"--resume-or-start|--run-id \S+|--set runtime\.checkpoint\.path=\S+", "", shlex.join(entrypoint))
    return shlex.split(line)


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS.values(), ids=ENTRYPOINTS)
def test_the_command_line_takes_it(entrypoint: list[str]) -> None:
    check(entrypoint)


@pytest.mark.parametrize("name", ENTRYPOINTS)
def test_the_rest_of_it_is_valid(name: str) -> None:
    check(without_resume(ENTRYPOINTS[name]))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("--set tracking.uri=", "--sets tracking.uri="),
        ("encoding.store=", "encoding.stores="),
        ("fedray train", "fedray trains"),
        ("quickstart.yaml", "quickstarts.yaml"),
    ],
)
def test_faults_are_caught(text: str, fault: str) -> None:
    line = shlex.join(without_resume(ENTRYPOINTS["rayjob-train"]))
    assert text in line
    with pytest.raises((UsageError, ConfigError, KeyError)):
        check(shlex.split(line.replace(text, fault)))
