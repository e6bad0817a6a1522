"""The files for `ray up`, against the schema and the checks that Ray itself makes; nothing is started."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.files import GONE, IMAGE, RAY_UP, REGISTRY, keys, load, misspelt, planted

SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
FILES = {file.stem: load(file) for file in RAY_UP}
FREE = frozenset({"provider", "resources", "node_config", "available_node_types", "file_mounts"})
"""Keys whose inside Ray's schema leaves open."""


def test_both_kinds_are_there() -> None:
    assert FILES.keys() == {"local", "aws"}


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_it(name: str) -> None:
    jsonschema.validate(FILES[name], SCHEMA)
    validate_config(prepare_config(FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_a_typo_in_any_key_is_found(name: str) -> None:
    for path in keys(FILES[name], FREE):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(misspelt(FILES[name], path), SCHEMA)


def test_a_typo_in_a_node_type_is_found() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(misspelt(FILES["aws"], "available_node_types/clients/max_workers"), SCHEMA)


def test_more_nodes_than_the_cluster_may_have_are_found() -> None:
    with pytest.raises(ValueError):
        validate_config(prepare_config(planted(FILES["aws"], "max_workers", 1)))


def check(config: Any) -> None:
    """Token on every node, dashboard on loopback, our image, shared storage, no clients on the head."""
    docker = config["docker"]
    assert docker["image"] == REGISTRY + IMAGE
    assert {"--env=RAY_AUTH_MODE=token", "--volume=/shared:/shared"} <= set(docker["run_options"])
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    [start] = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert "--num-cpus=0" in start or config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    workers = " ".join(config["worker_start_ray_commands"])
    assert "entrypoint" in workers or "entrypoint" in config["available_node_types"]["clients"]["resources"]


FAULTS = {
    "docker/image": "rayproject/ray:latest",
    "docker/run_options": ["--volume=/shared:/shared"],
    "file_mounts": {},
    "head_start_ray_commands/1": "ray start --head --num-cpus=0 --dashboard-host=0.0.0.0",
}


@pytest.mark.parametrize("name", FILES)
def test_it_keeps_the_rules(name: str) -> None:
    check(FILES[name])


@pytest.mark.parametrize("path", FAULTS)
@pytest.mark.parametrize("name", FILES)
def test_the_rules_catch_faults(name: str, path: str) -> None:
    with pytest.raises(AssertionError):
        check(planted(FILES[name], path, FAULTS[path]))


def check_types(types: Any) -> None:
    """GPUs for encoders alone, and none while nobody needs any."""
    assert types["encoders"]["min_workers"] == 0 < types["encoders"]["max_workers"]
    assert types["encoders"]["resources"]["GPU"] > 0
    assert "GPU" not in types["clients"]["resources"] and types["clients"]["min_workers"] > 0


def test_gpu_nodes_come_and_go() -> None:
    types = FILES["aws"]["available_node_types"]
    check_types(types)
    for path, value in {"encoders/min_workers": 1, "encoders/resources/GPU": GONE, "clients/min_workers": 0}.items():
        with pytest.raises((AssertionError, KeyError)):
            check_types(planted(types, path, value))
