"""What pods say about themselves: whose they are, where they run, what they request."""

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.manifests.pod_parts import COMPONENT, INSTANCE, MANAGED_BY, OURS
from splitinference.controller.ports import Manifest


def labels_of(thing: Manifest) -> Mapping[str, str]:
    """Labels of any object."""
    found: Mapping[str, str] = (thing.get("metadata") or {}).get("labels") or {}
    return found


def is_ours(pod: Manifest, component: str, namespace: str = "", instance: str = "") -> bool:
    """Whether the pod is of this component of some SplitInference, or of this one."""
    found = labels_of(pod)
    if found.get(MANAGED_BY) != OURS or found.get(COMPONENT) != component:
        return False
    return not instance or (found.get(INSTANCE) == instance and pod["metadata"].get("namespace") == namespace)


def is_over(pod: Manifest) -> bool:
    """Whether the pod has ended: it holds no memory any more."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def node_of(pod: Manifest) -> str:
    """The node that the pod is bound to, else the one that its affinity names; empty if neither."""
    spec = pod.get("spec") or {}
    if spec.get("nodeName"):
        return str(spec["nodeName"])
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or []:
        for field in term.get("matchFields") or []:
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def requested_bytes(pod: Manifest) -> int:
    """Memory that the scheduler reserves for the pod, rounded up."""
    return int(requested(pod, "memory").to_integral_value(ROUND_CEILING))


def requested_cores(pod: Manifest) -> Decimal:
    """The same of processors, in cores."""
    return requested(pod, "cpu")


def requested_millicores(pod: Manifest) -> int:
    """The same in thousandths of a core, rounded up, as the scheduler counts."""
    return int((1000 * requested_cores(pod)).to_integral_value(ROUND_CEILING))


def requested(pod: Manifest, what: str) -> Decimal:
    """What the pod requests of a resource, as the scheduler counts: what the pod asks for as a whole, else the most that its containers
    ask for at any time; and its overhead.

    Init containers run one after another, each beside the sidecars that were started before it.
    """
    spec = pod.get("spec") or {}
    overhead = quantity((spec.get("overhead") or {}).get(what, 0)) or Decimal(0)
    whole = ((spec.get("resources") or {}).get("requests") or {}).get(what)
    if whole is not None and (asked := quantity(whole)) is not None:
        return asked + overhead
    sidecars = starting = Decimal(0)
    for container in spec.get("initContainers") or []:
        asked = _asked(pod, container, what)
        if container.get("restartPolicy") == "Always":
            sidecars += asked
            starting = max(starting, sidecars)
        else:
            starting = max(starting, sidecars + asked)
    running = sum((_asked(pod, container, what) for container in spec.get("containers") or []), sidecars)
    return max(running, starting) + overhead


def _asked(pod: Manifest, container: Mapping[str, Any], what: str) -> Decimal:
    return quantity(actual_requests(pod, container).get(what, 0)) or Decimal(0)


def actual_requests(pod: Manifest, container: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a container holds: what it asks for, or what it was given, if that is more. The two differ while a container is resized in
    place: until the kubelet has done it the scheduler counts the larger, and for good where the node has no room for it."""
    wanted: Mapping[str, Any] = (container.get("resources") or {}).get("requests") or {}
    status = pod.get("status") or {}
    statuses = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    own = next((found for found in statuses if found.get("name") == container.get("name") and "name" in found), None)
    given = [] if own is None else [(own.get("resources") or {}).get("requests") or {}, own.get("allocatedResources") or {}]
    if not any(given):
        return wanted
    counted = given if _cannot_be_resized(pod) else [wanted, *given]
    found: dict[str, Any] = {}
    for requests in counted:
        for what, asked in requests.items():
            if what not in found or (quantity(asked) or 0) > (quantity(found[what]) or 0):
                found[what] = asked
    return found


def _cannot_be_resized(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "PodResizePending" and c.get("status") == "True" and c.get("reason") == "Infeasible" for c in conditions)
