"""The compose file: its shape, what it opens to whom, what it keeps to itself; each rule is seen to catch a fault."""

import json
import os
import re
import shutil
import subprocess
from typing import Any

import jsonschema
import pytest

from tests.cluster import shapes
from tests.cluster.files import COMPOSE, GONE, IMAGE, MLFLOW_IMAGE, keys, load, misspelt, planted, words

FILE = load(COMPOSE)
SERVICES = FILE["services"]
EXAMPLE = COMPOSE.parent / ".env.example"
FREE = frozenset({"environment", "x-ray", "x-worker-health", "depends_on", "volumes"})
SECRETS = {"RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}


def check_shape(document: Any) -> None:
    jsonschema.Draft202012Validator(shapes.COMPOSE).validate(document)


def test_it_has_its_shape() -> None:
    check_shape(FILE)


def test_a_typo_in_any_key_is_found() -> None:
    named = re.compile(r"(services/[^/]+|x-.*)")
    for path in keys(FILE, FREE):
        if named.fullmatch(path):
            continue
        with pytest.raises(jsonschema.ValidationError):
            check_shape(misspelt(FILE, path))


def variables(text: str) -> set[str]:
    """Names in `${NAME...}`."""
    return set(re.findall(r"\$\{(\w+)", text))


def check(services: Any) -> None:
    """The rules that hold for all services together."""
    for service in services.values():
        check_image(service["image"])
        assert all(re.match(r"127\.0\.0\.1:\d+:\d+$", port) for port in service.get("ports", []))
        assert "healthcheck" in service or "restart" not in service, "a service without a sign of life"
        assert set(service.get("depends_on", {})) <= services.keys()
    for name in ("ray-head", "ray-worker", "ray-encoder", "train"):
        check_ray(services[name], job=name == "train")
    check_mlflow(services["mlflow"])


def check_image(image: str) -> None:
    """Ours by their versions here, others by a full version."""
    name, _, tag = image.partition(":")
    if name.startswith("fedray"):
        assert image in (IMAGE, MLFLOW_IMAGE)
    assert re.fullmatch(r"v?\d+\.\d+.*", tag)


def check_ray(service: Any, job: bool) -> None:
    """Token everywhere; room for the object store and the shared storage on every node."""
    assert service["environment"]["RAY_AUTH_MODE"] == "token"
    assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    if not job:
        assert "shm_size" in service and "shared:/shared" in service["volumes"]


def check_mlflow(service: Any) -> None:
    """It answers to the name that jobs use, and keeps its runs in PostgreSQL and its files in the store."""
    options = dict(w.split("=", 1) for w in words(service["command"]) if "=" in w)
    hosts = options["--allowed-hosts"].split(",")
    assert "mlflow:5000" in hosts and "*" not in hosts
    assert options["--artifacts-destination"].startswith("s3://")
    assert service["environment"]["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql://")


FAULTS = {
    "ray-head/ports/0": "8265:8265",
    "mlflow/ports/0": "0.0.0.0:5000:5000",
    "ray-head/image": "fedray:latest",
    "postgres/image": "postgres:latest",
    "s3/image": "versity/versitygw",
    "mlflow/image": "fedray-mlflow:3.0.0",
    "s3/healthcheck": GONE,
    "ray-worker/environment": {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "${RAY_AUTH_TOKEN:?}"},
    "train/environment": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef"},
    "ray-encoder/shm_size": GONE,
    "ray-worker/volumes": ["other:/shared"],
    "mlflow/command": "mlflow server --artifacts-destination=s3://mlflow --allowed-hosts=localhost:*",
    "mlflow/depends_on": {"postgresql": {"condition": "service_healthy"}},
}


def test_it_keeps_the_rules() -> None:
    check(SERVICES)


@pytest.mark.parametrize("path", FAULTS)
def test_the_rules_catch_faults(path: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check(planted(SERVICES, path, FAULTS[path]))


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    for name in SECRETS:
        uses = re.findall(rf"\$\{{{name}\b[^}}]*\}}", text)
        assert uses and all(":?" in use for use in uses)
    for service in SERVICES.values():
        environment = service.get("environment", {}).items()
        assert not [k for k, v in environment if re.search("TOKEN|PASSWORD|KEY", k) and not v.startswith("${")]


def test_the_example_names_every_variable_and_no_secret() -> None:
    example = dict(line.split("=") for line in EXAMPLE.read_text().splitlines() if line and line[0] != "#")
    assert example.keys() == variables(COMPOSE.read_text(encoding="utf-8"))
    assert {name for name, value in example.items() if not value} == SECRETS


def test_the_workers_offer_what_the_job_asks_for() -> None:
    """Quotes survive: the values are JSON after compose has split the command."""
    [offered] = [w for w in words(SERVICES["ray-worker"]["command"]) if w.startswith("--resources=")]
    [asked] = [w for w in words(SERVICES["train"]["command"]) if w.startswith("--entrypoint-resources=")]
    assert json.loads(asked.partition("=")[2]).items() <= json.loads(offered.partition("=")[2]).items()
    assert "--num-cpus=0" in words(SERVICES["ray-head"]["command"])


@pytest.fixture
def docker() -> None:
    asked = ["docker", "compose", "version"]
    if shutil.which("docker") is None or subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not here")


@pytest.mark.usefixtures("docker")
def test_compose_itself_reads_it() -> None:
    command = [
        "docker",
        "compose",
        "--file",
        str(COMPOSE),
        "--profile",
        "gpu",
        "--profile",
        "train",
        "config",
        "--quiet",
    ]
    secrets = dict.fromkeys(SECRETS, "test")
    done = subprocess.run(
        command, env={**os.environ, **secrets}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
