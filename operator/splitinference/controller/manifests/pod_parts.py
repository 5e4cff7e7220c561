"""What all objects made for a SplitInference have in common: names, labels, owner, and pods that Pod Security "restricted" admits."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from splitinference.controller.api.group import API_VERSION, KIND
from splitinference.controller.api.spec import Resource
from splitinference.controller.kube_values.machine import ARCH, LINUX, OS
from splitinference.settings import Settings

MANAGED_BY = "app.kubernetes.io/managed-by"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
MODEL_LABEL = "splitinference.dev/model"
LAYERS_LABEL = "splitinference.dev/layers"
DEVICE = "splitinference.dev/device"
"""Annotation of a segment's pod: the place of the device that it holds."""
OURS = "splitinference"
MODEL_FOLDER = "/model"
CACHE_FOLDER = "/cache"

ObjectBody = dict[str, Any]
"""An object while it is built. What is read or sent is a `Manifest` of the ports."""


def labels(instance: str, component: str) -> dict[str, str]:
    """The labels of every object of one resource."""
    return {"app.kubernetes.io/name": OURS, MANAGED_BY: OURS, INSTANCE: instance, COMPONENT: component}


class Named(Protocol):
    """A SplitInference, as far as its objects name it as their owner."""

    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def uid(self) -> str: ...


def metadata(resource: Named, name: str, component: str, extra: Mapping[str, str] | None = None) -> ObjectBody:
    """Metadata with labels and the owner: with the resource go all its objects, without a finalizer."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": resource.name,
        "uid": resource.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name,
        "namespace": resource.namespace,
        "labels": {**labels(resource.name, component), **(extra or {})},
        "ownerReferences": [owner],
    }


def scraped(port: int) -> dict[str, str]:
    """Annotations by which the usual Prometheus configuration finds a pod."""
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}


def environment(variables: Mapping[str, str]) -> list[ObjectBody]:
    """Variables as a container has them."""
    return [{"name": name, "value": value} for name, value in variables.items()]


def container(name: str, image: str, settings: Settings, **fields: Any) -> ObjectBody:
    """A container that Pod Security "restricted" admits."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **fields,
    }


def pod_spec(resource: Resource, settings: Settings, containers: Sequence[ObjectBody], **fields: Any) -> ObjectBody:
    """What all pods have: no root, no token of the API server unless given, the resource's tolerations."""
    spec: ObjectBody = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # Names are written out, so that they are found with one question to DNS instead of four.
        "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
        "securityContext": {
            "runAsNonRoot": True,
            # Clusters that give each namespace a range of users, as OpenShift does, choose one where none is set.
            **({} if settings.pod_user is None else {"runAsUser": settings.pod_user, "runAsGroup": settings.pod_user}),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": list(containers),
        **fields,
    }
    if tolerations := [_toleration(t.key, t.operator, t.value, t.effect) for t in resource.spec.placement.tolerations]:
        spec["tolerations"] = tolerations
    if settings.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    return spec


def _toleration(key: str, operator: str, value: str, effect: str) -> ObjectBody:
    given = {"key": key, "operator": operator, "value": value, "effect": effect}
    return {name: text for name, text in given.items() if text}


def on_node(node: str) -> ObjectBody:
    """Affinity to one node. Not `nodeName`: so the scheduler still checks resources and taints, and says why not."""
    return _node_affinity([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}])


def on_one_of(nodes: Collection[str]) -> ObjectBody:
    """Affinity to one of these nodes, whichever has room."""
    return _node_affinity([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]} for node in sorted(nodes)])


def on_nodes_with(all_labels: Sequence[Mapping[str, str]], architectures: Sequence[str]) -> ObjectBody:
    """Affinity to nodes that carry all of these labels and run Linux on one of these architectures."""
    pairs = sorted({pair for some in all_labels for pair in some.items()})
    asked: list[tuple[str, list[str]]] = [(key, [value]) for key, value in pairs]
    asked += [(OS, [LINUX]), *([(ARCH, list(architectures))] if architectures else [])]
    return _node_affinity([{"matchExpressions": [{"key": key, "operator": "In", "values": values} for key, values in asked]}])


def labels_asked(spec: Mapping[str, Any]) -> dict[str, str]:
    """The labels that a pod's affinity, made by `on_nodes_with`, asks of its node."""
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or []
    asked = [each for term in terms for each in term.get("matchExpressions") or [] if each.get("operator") == "In"]
    asked = [each for each in asked if each["key"] not in (OS, ARCH)]  # a node does not change these
    return {str(each["key"]): str(each["values"][0]) for each in asked}


def _node_affinity(terms: list[ObjectBody]) -> ObjectBody:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
