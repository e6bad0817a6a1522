"""The manifests for KubeRay: held to hand-written schemas and rules, and every one of them is seen to catch a fault."""

import json
from typing import Any

import jsonschema
import pytest

from tests.cluster import shapes
from tests.cluster.files import (
    CLUSTER,
    GONE,
    IMAGE,
    KUBERAY,
    MLFLOW_IMAGE,
    PINS,
    REGISTRY,
    documents,
    keys,
    load,
    misspelt,
    planted,
)

ALL = [pytest.param(document, id=f"{f.stem}-{n}") for f in KUBERAY for n, document in enumerate(documents(f))]
CLAIM = load(CLUSTER / "kuberay" / "storage.yaml")
RAY_CLUSTER = load(CLUSTER / "kuberay" / "raycluster.yaml")
JOBS = {name: load(CLUSTER / "kuberay" / f"rayjob-{name}.yaml") for name in ("train", "tune")}


def check_shape(document: Any) -> None:
    """Raises `jsonschema.ValidationError` for a key that is unknown or missing, or a value of the wrong kind."""
    jsonschema.Draft202012Validator(shapes.KINDS[document["kind"]]).validate(document)


@pytest.mark.parametrize("document", ALL)
def test_each_document_has_its_shape(document: Any) -> None:
    check_shape(document)


@pytest.mark.parametrize("document", ALL)
def test_a_typo_in_any_key_is_found(document: Any) -> None:
    for path in keys(document, shapes.FREE):
        if path == "kind":
            continue
        with pytest.raises(jsonschema.ValidationError):
            check_shape(misspelt(document, path))


def pods(spec: Any) -> dict[str, Any]:
    """The pod template of the head and of each group."""
    workers = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"], **workers}


def check_cluster(spec: Any) -> None:
    """What a `spec` of a RayCluster must be, beyond its shape."""
    assert spec["rayVersion"] == PINS["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for role, pod in pods(spec).items():
        check_pod(pod, role)
    check_groups(*spec["workerGroupSpecs"])


def check_pod(pod: Any, role: str) -> None:
    """Our image, our label, and the storage that all share."""
    assert pod["metadata"]["labels"] == {"fedray/role": role}
    [container] = pod["spec"]["containers"]
    assert container["image"] == REGISTRY + IMAGE
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"]}
    assert claims["shared"] == CLAIM["metadata"]["name"]


def check_groups(clients: Any, encoders: Any) -> None:
    """Clients on CPUs, and the jobs' processes; encoders on GPUs, none of them while nobody needs any."""
    assert (clients["groupName"], encoders["groupName"]) == ("clients", "encoders")
    assert "nvidia.com/gpu" not in amounts(clients)
    assert json.loads(json.loads(clients["rayStartParams"]["resources"])) == {"entrypoint": 1}
    assert int(amounts(encoders)["nvidia.com/gpu"]) > 0
    assert encoders["minReplicas"] == 0 < encoders["maxReplicas"]
    for group in (clients, encoders):
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def amounts(group: Any) -> dict[str, str]:
    found: dict[str, str] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return found


CLUSTER_FAULTS = {
    "rayVersion": "2.59.0",
    "authOptions/mode": "disabled",
    "headGroupSpec/rayStartParams/num-cpus": "4",
    "headGroupSpec/template/metadata/labels": {"fedray/role": "clients"},
    "headGroupSpec/template/spec/containers/0/image": "rayproject/ray:latest",
    "headGroupSpec/template/spec/containers/0/volumeMounts": [],
    "workerGroupSpecs/0/groupName": "workers",
    "workerGroupSpecs/0/replicas": 1,
    "workerGroupSpecs/0/template/spec/containers/0/image": REGISTRY + "fedray:0.1.0-ray2.59.0",
    "workerGroupSpecs/0/rayStartParams/resources": '"{}"',
    "workerGroupSpecs/0/template/spec/volumes/0/persistentVolumeClaim/claimName": "other",
    "workerGroupSpecs/1/minReplicas": 1,
    "workerGroupSpecs/1/template/spec/containers/0/volumeMounts/0/mountPath": "/data",
    "workerGroupSpecs/1/template/spec/containers/0/resources/limits": {"cpu": "4", "memory": "16Gi"},
}


def test_the_cluster_keeps_the_rules() -> None:
    check_cluster(RAY_CLUSTER["spec"])


@pytest.mark.parametrize("path", CLUSTER_FAULTS)
def test_the_rules_of_a_cluster_catch_faults(path: str) -> None:
    with pytest.raises(AssertionError):
        check_cluster(planted(RAY_CLUSTER["spec"], path, CLUSTER_FAULTS[path]))


def check_job(document: Any) -> None:
    """Tried again after a failure, its process on a worker, its cluster given back, and that cluster is ours."""
    spec = document["spec"]
    assert spec["backoffLimit"] > 0
    assert "--resume-or-start" in spec["entrypoint"] and "--run-id" in spec["entrypoint"]
    offered = json.loads(json.loads(spec["rayClusterSpec"]["workerGroupSpecs"][0]["rayStartParams"]["resources"]))
    assert json.loads(spec["entrypointResources"]).items() <= offered.items()
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"] == RAY_CLUSTER["spec"]


JOB_FAULTS = {
    "spec/backoffLimit": 0,
    "spec/entrypoint": "fedray train jobs/quickstart.yaml --run-id 1",
    "spec/entrypointResources": '{"entrypoints": 1}',
    "spec/shutdownAfterJobFinishes": False,
    "spec/rayClusterSpec/authOptions": GONE,
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_jobs_keep_the_rules(job: Any) -> None:
    check_job(job)


@pytest.mark.parametrize("path", JOB_FAULTS)
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_rules_of_a_job_catch_faults(job: Any, path: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check_job(planted(job, path, JOB_FAULTS[path]))


def test_the_shared_storage_can_be_mounted_by_many_nodes() -> None:
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


def check_policies(inside: Any, submit: Any) -> None:
    """fedray's pods take connections from each other, and the dashboard from KubeRay; nobody else is named."""
    ours = {"matchExpressions": [{"key": "fedray/role", "operator": "Exists"}]}
    assert inside["spec"]["podSelector"] == ours
    assert inside["spec"]["ingress"] == [{"from": [{"podSelector": ours}]}]
    assert submit["spec"]["podSelector"] == {"matchLabels": {"fedray/role": "head"}}
    [rule] = submit["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert all(peer["podSelector"]["matchLabels"] for peer in rule["from"])


def test_policies_let_in_fedray_and_kuberay_alone() -> None:
    inside, submit = documents(CLUSTER / "kuberay" / "network-policy.yaml")
    check_policies(inside, submit)
    for path, value in {"spec/ingress": [{}], "spec/podSelector": {}}.items():
        with pytest.raises((AssertionError, KeyError)):
            check_policies(planted(inside, path, value), submit)
        with pytest.raises((AssertionError, KeyError)):
            check_policies(inside, planted(submit, path, value))


def check_mlflow(service: Any, deployment: Any) -> None:
    """Jobs find it as mlflow:5000, it answers to that name, and it is one of fedray's pods."""
    template = deployment["spec"]["template"]
    [container] = template["spec"]["containers"]
    labels = template["metadata"]["labels"]
    assert labels == service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert labels == {"fedray/role": "mlflow"}
    assert (service["metadata"]["name"], service["spec"]["ports"][0]["port"]) == ("mlflow", 5000)
    assert container["image"] == REGISTRY + MLFLOW_IMAGE
    [hosts] = [a.partition("=")[2].split(",") for a in container["args"] if a.startswith("--allowed-hosts=")]
    assert "mlflow:5000" in hosts and "*" not in hosts
    assert template["spec"]["enableServiceLinks"] is False


MLFLOW_FAULTS = {
    "spec/template/metadata/labels": {"app": "mlflow"},
    "spec/template/spec/containers/0/image": REGISTRY + "fedray-mlflow:latest",
    "spec/template/spec/containers/0/args/6": "--allowed-hosts=*",
    "spec/template/spec/enableServiceLinks": GONE,
}


def test_mlflow_answers_to_the_name_that_jobs_use() -> None:
    _, service, deployment = documents(CLUSTER / "kuberay" / "mlflow.yaml")
    check_mlflow(service, deployment)
    for path, value in MLFLOW_FAULTS.items():
        with pytest.raises((AssertionError, KeyError)):
            check_mlflow(service, planted(deployment, path, value))
