"""Schemas of the KubeRay operator's resources (API ray.io/v1, operator 1.5.1), as far as files of cluster/ use them.

The operator is written in Go and has no Python package. Each object lists the fields that the API has at that place;
the API server refuses others. Of the pods' templates only the outer fields are listed.
"""

from typing import Any

RESOURCES = ("RayCluster", "RayJob")

_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_FLAG = {"type": "boolean"}
_TEXTS = {"type": "object", "additionalProperties": _STRING}


def _object(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


_QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
_CONTAINER = _object(
    ("name", "image"),
    name=_STRING,
    image=_STRING,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    workingDir=_STRING,
    command={"type": "array", "items": _STRING},
    args={"type": "array", "items": _STRING},
    env={"type": "array", "items": _object(("name",), name=_STRING, value=_STRING, valueFrom={"type": "object"})},
    resources=_object(requests=_QUANTITIES, limits=_QUANTITIES),
    volumeMounts={
        "type": "array",
        "items": _object(("name", "mountPath"), name=_STRING, mountPath=_STRING, subPath=_STRING, readOnly=_FLAG),
    },
)
_VOLUME = _object(
    ("name",),
    name=_STRING,
    persistentVolumeClaim=_object(("claimName",), claimName=_STRING, readOnly=_FLAG),
    emptyDir=_object(medium={"enum": ["", "Memory"]}, sizeLimit=_STRING),
    hostPath=_object(("path",), path=_STRING, type=_STRING),
    nfs=_object(("server", "path"), server=_STRING, path=_STRING, readOnly=_FLAG),
    secret={"type": "object"},
    configMap={"type": "object"},
)
_POD = _object(
    ("containers",),
    containers={"type": "array", "items": _CONTAINER, "minItems": 1},
    volumes={"type": "array", "items": _VOLUME},
    nodeSelector=_TEXTS,
    tolerations={"type": "array", "items": {"type": "object"}},
    affinity={"type": "object"},
    serviceAccountName=_STRING,
    imagePullSecrets={"type": "array", "items": _object(("name",), name=_STRING)},
)
_TEMPLATE = _object(("spec",), metadata={"type": "object"}, spec=_POD)
_HEAD = _object(
    ("template",),
    rayStartParams=_TEXTS,
    template=_TEMPLATE,
    serviceType=_STRING,
    headService={"type": "object"},
    enableIngress=_FLAG,
)
_WORKERS = _object(
    ("groupName", "template", "minReplicas", "maxReplicas"),
    groupName=_STRING,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    idleTimeoutSeconds=_COUNT,
    suspend=_FLAG,
    rayStartParams=_TEXTS,
    template=_TEMPLATE,
    scaleStrategy={"type": "object"},
)
_CLUSTER = _object(
    ("headGroupSpec",),
    rayVersion=_STRING,
    authOptions=_object(mode={"enum": ["disabled", "token"]}, secretName=_STRING),
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions={"type": "object"},
    headServiceAnnotations=_TEXTS,
    gcsFaultToleranceOptions={"type": "object"},
    suspend=_FLAG,
    managedBy=_STRING,
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
_JOB = _object(
    ("entrypoint",),
    entrypoint=_STRING,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=_STRING,
    runtimeEnvYAML=_STRING,
    jobId=_STRING,
    metadata=_TEXTS,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterConfig=_object(backoffLimit=_COUNT),
    submitterPodTemplate=_TEMPLATE,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=_COUNT,
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    suspend=_FLAG,
    managedBy=_STRING,
    deletionStrategy={"type": "object"},
    clusterSelector=_TEXTS,
    rayClusterSpec=_CLUSTER,
)
_SPECS = {"RayCluster": _CLUSTER, "RayJob": _JOB}


def schema_of(kind: str) -> dict[str, Any]:
    """Return the schema of a resource file of one of the kinds `RESOURCES`."""
    metadata = _object(("name",), name=_STRING, namespace=_STRING, labels=_TEXTS, annotations=_TEXTS)
    return _object(
        ("apiVersion", "kind", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=metadata,
        spec=_SPECS[kind],
    )
