"""The manifests against KubeRay's own definitions, where those are at hand: they are not part of this repository.

`FEDRAY_KUBERAY_CRD_DIR`, else ../shared/schemas/kuberay, holds ray.io_rayclusters.yaml and ray.io_rayjobs.yaml as
KubeRay ships them (ray-operator/config/crd/bases).
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.cluster.files import CLUSTER, ROOT, keys, load, misspelt, planted

DEFINITIONS = Path(os.environ.get("FEDRAY_KUBERAY_CRD_DIR") or ROOT.parent / "shared" / "schemas" / "kuberay")
CLUSTERS, JOBS = "ray.io_rayclusters.yaml", "ray.io_rayjobs.yaml"
FILES = {"raycluster": CLUSTERS, "rayjob-train": JOBS, "rayjob-tune": JOBS}
FREE = frozenset({"labels", "rayStartParams", "requests", "limits", "metadata"})
"""What may hold any key."""

pytestmark = pytest.mark.skipif(
    not all((DEFINITIONS / f).is_file() for f in FILES.values()),
    reason="KubeRay's definitions are not here; set FEDRAY_KUBERAY_CRD_DIR",
)


@cache
def validator(file: str) -> jsonschema.Draft202012Validator:
    """Of version v1 of a definition, closed."""
    versions = load(DEFINITIONS / file)["spec"]["versions"]
    [schema] = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    return jsonschema.Draft202012Validator(closed(schema))


def closed(schema: Any) -> Any:
    """A definition as a JSON schema that refuses unknown keys, which Kubernetes itself would drop in silence."""
    if isinstance(schema, list):
        return [closed(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {k: closed(v) for k, v in schema.items() if k != "properties"}
    if "properties" in schema:
        made["properties"] = {name: closed(s) for name, s in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("name", FILES)
def test_kuberay_knows_every_key(name: str) -> None:
    validator(FILES[name]).validate(load(CLUSTER / "kuberay" / f"{name}.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_a_typo_is_found(name: str) -> None:
    document = load(CLUSTER / "kuberay" / f"{name}.yaml")
    for path in keys(document["spec"], FREE):
        with pytest.raises(jsonschema.ValidationError):
            validator(FILES[name]).validate(misspelt(document, f"spec/{path}"))


@pytest.mark.parametrize(
    ("path", "value"),
    [("spec/workerGroupSpecs/1/minReplicas", "0"), ("spec/authOptions/mode", "tokens"), ("spec/rayVersion", 2.6)],
)
def test_a_value_of_the_wrong_kind_is_found(path: str, value: Any) -> None:
    document = planted(load(CLUSTER / "kuberay" / "raycluster.yaml"), path, value)
    with pytest.raises(jsonschema.ValidationError):
        validator(FILES["raycluster"]).validate(document)
