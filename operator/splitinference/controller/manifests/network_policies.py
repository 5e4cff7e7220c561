"""NetworkPolicies of one resource: who may open a connection to its segments and its gateway.

They are a second line: peers know each other by certificate. Egress is left open. What pods need outside (DNS, the hub, the API server, a
collector of traces) differs from cluster to cluster, and a policy that is wrong there stops a model that serves.
"""

from collections.abc import Sequence

from splitinference.controller.api.spec import Resource
from splitinference.controller.manifests.pod_parts import COMPONENT, ObjectBody, labels, metadata
from splitinference.settings import Settings

GATEWAY = "gateway"
SEGMENT = "segment"
VERIFIER = "verifier"
LOADER = "loader"
CLIENT_PORT = 8080
KSERVE_PORT = 8001
INTERNAL_PORT = 8444
GATEWAY_METRICS_PORT = 9090
WIRE_PORT = 8003
SEGMENT_METRICS_PORT = 8002

_OPERATOR = {"app.kubernetes.io/name": "splitinference", COMPONENT: "operator"}


def verifiers_policy(resource_name: str) -> str:
    """Name of the policy for verifiers."""
    return f"{resource_name}-verifiers"


def policies_of(resource: Resource, settings: Settings) -> Sequence[ObjectBody]:
    """One for the segments, whom loaders of adapters ask, too; one for the gateway; one for verifiers, whom the gateway alone asks, where
    the resource wants them."""
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.operator_namespace}},
        "podSelector": {"matchLabels": _OPERATOR},
    }
    monitoring = {"namespaceSelector": settings.monitoring_namespace_selector.as_json()}
    peers = [{"podSelector": {"matchLabels": labels(resource.name, component)}} for component in (GATEWAY, SEGMENT, LOADER)]
    segments = [_from([*peers, operator], WIRE_PORT), _from([monitoring], SEGMENT_METRICS_PORT)]
    gateway = [
        {"ports": _ports(CLIENT_PORT, KSERVE_PORT)},
        _from([operator], INTERNAL_PORT),
        _from([monitoring], GATEWAY_METRICS_PORT),
    ]
    made = [
        _policy(resource, f"{resource.name}-segments", SEGMENT, segments),
        _policy(resource, f"{resource.name}-gateway", GATEWAY, gateway),
    ]
    if resource.spec.verification is not None:
        verifiers = [_from(peers[:1], WIRE_PORT), _from([monitoring], SEGMENT_METRICS_PORT)]
        made.append(_policy(resource, verifiers_policy(resource.name), VERIFIER, verifiers))
    return made


def _policy(resource: Resource, name: str, component: str, ingress: Sequence[ObjectBody]) -> ObjectBody:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(resource, name, component),
        "spec": {"podSelector": {"matchLabels": labels(resource.name, component)}, "policyTypes": ["Ingress"], "ingress": list(ingress)},
    }


def _from(who: Sequence[ObjectBody], *numbers: int) -> ObjectBody:
    return {"from": list(who), "ports": _ports(*numbers)}


def _ports(*numbers: int) -> list[ObjectBody]:
    return [{"protocol": "TCP", "port": number} for number in numbers]
