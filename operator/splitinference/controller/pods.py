"""What pods say about themselves: whose they are, where they run, what they request."""

from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

from splitinference.controller.objects import COMPONENT, INSTANCE, MANAGED_BY, OURS
from splitinference.controller.ports import Manifest
from splitinference.controller.quantity import quantity


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
    """Memory that the scheduler reserves for the pod: containers, or an init container if that asks for more; rounded up."""
    return int(_requested(pod, "memory").to_integral_value(ROUND_CEILING))


def requested_cores(pod: Manifest) -> Decimal:
    """The same of processors, in cores."""
    return _requested(pod, "cpu")


def requested_millicores(pod: Manifest) -> int:
    """The same in thousandths of a core, rounded up, as the scheduler counts."""
    return int((1000 * requested_cores(pod)).to_integral_value(ROUND_CEILING))


def _requested(pod: Manifest, what: str) -> Decimal:
    spec = pod.get("spec") or {}
    inits = spec.get("initContainers") or []
    sidecars = [c for c in inits if c.get("restartPolicy") == "Always"]
    running = _sum([*(spec.get("containers") or []), *sidecars], what)
    starting = max((_asked(c, what) + _sum(sidecars, what) for c in inits if c.get("restartPolicy") != "Always"), default=Decimal(0))
    return max(running, starting) + (quantity((spec.get("overhead") or {}).get(what, 0)) or Decimal(0))


def _sum(containers: Iterable[Mapping[str, Any]], what: str) -> Decimal:
    return sum((_asked(container, what) for container in containers), Decimal(0))


def _asked(container: Mapping[str, Any], what: str) -> Decimal:
    requests = (container.get("resources") or {}).get("requests") or {}
    return quantity(requests.get(what, 0)) or Decimal(0)
