"""PodDisruptionBudgets: what drains a node may not stop what serves. The operator moves it first, and then nothing is in the drain's way.

A drain begins with a cordon, which makes the operator plan without the node; the replacement serves, the route is cut over, and the
budget names the new segments. Only then does the old one's eviction succeed.
"""

from collections.abc import Iterable

from splitinference.controller.api.spec import Resource
from splitinference.controller.manifests.pod_parts import COMPONENT, INSTANCE, MANAGED_BY, OURS, ObjectBody, metadata

SEGMENT_LABEL = "splitinference.dev/segment"
BUDGET = "PodDisruptionBudget"


def budget_name(instance: str) -> str:
    """Of the segments' budget."""
    return f"{instance}-segments"


def segments_budget(resource: Resource, serving: Iterable[str]) -> ObjectBody:
    """All segments of the serving route must stay. One that is not ready may be evicted: it serves nobody."""
    names = sorted(serving)
    selector = {
        "matchLabels": {MANAGED_BY: OURS, INSTANCE: resource.name, COMPONENT: "segment"},
        "matchExpressions": [{"key": SEGMENT_LABEL, "operator": "In", "values": names}],
    }
    return _budget(resource, budget_name(resource.name), "segment", selector, len(names))


def gateway_budget(resource: Resource, name: str, selector: ObjectBody) -> ObjectBody:
    """All replicas of the gateway must stay: its Deployment makes another before one goes."""
    return _budget(resource, name, "gateway", {"matchLabels": selector}, resource.spec.gateway.replicas)


def _budget(resource: Resource, name: str, component: str, selector: ObjectBody, least: int) -> ObjectBody:
    return {
        "apiVersion": "policy/v1",
        "kind": BUDGET,
        "metadata": metadata(resource, name, component),
        # Whole numbers of pods: by the scale subresource Kubernetes counts pipelines, not pods.
        "spec": {"selector": selector, "minAvailable": least, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }
