"""Hand-written schemas of the kinds in `cluster/kuberay` and of compose: every key that our files may use, no other.

They are for every machine; where KubeRay's own definitions are at hand the files are held to those as well.
"""

from typing import Any

STRING = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}
NAMES = {"type": "object", "additionalProperties": STRING}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def many(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


def closed(**fields: Any) -> dict[str, Any]:
    """An object with these keys alone; a key that ends in `_` may be missing."""
    known = {name.removesuffix("_"): shape for name, shape in fields.items()}
    needed = [name for name in fields if not name.endswith("_")]
    return {"type": "object", "properties": known, "required": needed, "additionalProperties": False}


def only(*needed: str, **more: Any) -> dict[str, Any]:
    """`closed` with keys that are no names in Python: all of them texts."""
    inner = closed(**more)
    return {**inner, "properties": {**inner["properties"], **dict.fromkeys(needed, STRING)}}


METADATA = closed(name=STRING)
AMOUNTS = only("nvidia.com/gpu", cpu_=STRING, memory_=STRING, storage_=STRING)
RESOURCES = closed(requests=AMOUNTS, limits=AMOUNTS)
CONTAINER = closed(
    name=STRING,
    image=STRING,
    command_=many(STRING),
    args_=many(STRING),
    ports_=many(closed(containerPort=COUNT, name=STRING)),
    readinessProbe_=closed(httpGet=closed(path=STRING, port=COUNT), periodSeconds=COUNT),
    resources=RESOURCES,
    volumeMounts=many(closed(name=STRING, mountPath=STRING)),
)
POD = closed(
    containers=many(CONTAINER),
    volumes=many(closed(name=STRING, persistentVolumeClaim=closed(claimName=STRING))),
    securityContext=closed(fsGroup=COUNT),
    restartPolicy_=one_of("Never"),
    enableServiceLinks_=FLAG,
    tolerations_=many(closed(key=STRING, operator=one_of("Exists"), effect=one_of("NoSchedule"))),
)
TEMPLATE = closed(metadata=closed(labels=NAMES), spec=POD)
START = only("num-cpus", resources_=STRING)
CLUSTER_SPEC = closed(
    rayVersion=STRING,
    authOptions=closed(mode=one_of("token")),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(version=one_of("v2"), idleTimeoutSeconds=COUNT),
    headGroupSpec=closed(rayStartParams=START, template=TEMPLATE),
    workerGroupSpecs=many(
        closed(
            groupName=STRING,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            idleTimeoutSeconds_=COUNT,
            rayStartParams=START,
            template=TEMPLATE,
        )
    ),
)
JOB_SPEC = closed(
    backoffLimit=COUNT,
    entrypoint=STRING,
    entrypointResources=STRING,
    submissionMode=one_of("K8sJobMode"),
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
)
CLAIM_SPEC = closed(
    accessModes=many(one_of("ReadWriteMany", "ReadWriteOnce")),
    storageClassName_=STRING,
    resources=closed(requests=closed(storage=STRING)),
)
SERVICE_SPEC = closed(
    type=one_of("ClusterIP"), selector=NAMES, ports=many(closed(name=STRING, port=COUNT, targetPort=COUNT))
)
DEPLOYMENT_SPEC = closed(
    replicas=COUNT,
    strategy=closed(type=one_of("Recreate")),
    selector=closed(matchLabels=NAMES),
    template=TEMPLATE,
)
SELECTOR = closed(matchLabels_=NAMES, matchExpressions_=many(closed(key=STRING, operator=one_of("Exists"))))
POLICY_SPEC = closed(
    podSelector=SELECTOR,
    policyTypes=many(one_of("Ingress")),
    ingress=many(
        closed(
            **{"from": many({**closed(namespaceSelector_=SELECTOR, podSelector_=SELECTOR), "minProperties": 1})},
            ports_=many(closed(protocol=one_of("TCP"), port=COUNT)),
        )
    ),
)


def kind(version: str, spec: Any, name: str) -> dict[str, Any]:
    return closed(apiVersion=one_of(version), kind=one_of(name), metadata=METADATA, spec=spec)


KINDS = {
    "RayCluster": kind("ray.io/v1", CLUSTER_SPEC, "RayCluster"),
    "RayJob": kind("ray.io/v1", JOB_SPEC, "RayJob"),
    "PersistentVolumeClaim": kind("v1", CLAIM_SPEC, "PersistentVolumeClaim"),
    "Service": kind("v1", SERVICE_SPEC, "Service"),
    "Deployment": kind("apps/v1", DEPLOYMENT_SPEC, "Deployment"),
    "NetworkPolicy": kind("networking.k8s.io/v1", POLICY_SPEC, "NetworkPolicy"),
}
FREE = frozenset({"labels", "matchLabels", "selector", "requests", "limits"})
"""Keys whose inside has no fixed names, or none that must be there."""

COMMAND = {"anyOf": [STRING, many(STRING)]}
DEPENDS = {
    "type": "object",
    "additionalProperties": closed(condition=one_of("service_healthy", "service_completed_successfully")),
}
DEVICES = many(closed(driver=STRING, count=COUNT, capabilities=many(STRING)))
COMPOSE_SERVICE = closed(
    image=STRING,
    command_=COMMAND,
    environment_=NAMES,
    build_=closed(context=STRING, dockerfile=STRING, target=STRING),
    profiles_=many(STRING),
    init_=FLAG,
    restart_=one_of("unless-stopped"),
    cpus_=STRING,
    mem_limit_=STRING,
    shm_size_=STRING,
    ulimits_=closed(nofile=closed(soft=COUNT, hard=COUNT)),
    volumes_=many(STRING),
    ports_=many(STRING),
    deploy_=closed(replicas_=STRING, resources_=closed(reservations=closed(devices=DEVICES))),
    depends_on_=DEPENDS,
    healthcheck_=closed(
        test=many(STRING), interval=STRING, timeout=STRING, retries=COUNT, start_period_={"type": "string"}
    ),
)
COMPOSE = {
    **closed(
        name=STRING,
        services={"type": "object", "additionalProperties": COMPOSE_SERVICE},
        volumes={"type": "object", "additionalProperties": {"type": "null"}},
    ),
    "patternProperties": {"^x-": {}},
}
