"""Nodes and pods as far as metrics do not change them: worked out once, and of a node anew only when it, or what runs on it, is another.

There may be tens of thousands of pods and a thousand nodes, and metrics come every few seconds.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from splitinference.controller.cluster_state.node_figures import capacity_of
from splitinference.controller.cluster_state.node_metrics import CPU, GPU, PREFIX, PROCESSOR, positive_number, processor_of
from splitinference.controller.cluster_state.pods import is_ours, is_over, labels_of, node_of, requested_bytes, requested_cores
from splitinference.controller.kube_values.machine import foreign, leaving
from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.manifests.gateway import GATEWAY
from splitinference.controller.manifests.pod_parts import COMPONENT, INSTANCE, MANAGED_BY, OURS
from splitinference.controller.manifests.segment import SEGMENT
from splitinference.controller.ports import Manifest
from splitinference.core.values.cluster import Node, Taint
from splitinference.settings import Settings

_SAID_ELSEWHERE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "node.kubernetes.io/memory-pressure")
NOBODY = ("", "no resource has such a name")
ZONE = "topology.kubernetes.io/zone"


@dataclass(frozen=True)
class Ground:
    """A node as `owner` sees it without metrics. `free_bytes`: allocatable less what others request, below zero where that is more;
    `own`: its segments there, as namespace/name, and `own_bytes` what they request; `gpu`: its compute is that of GPUs;
    `notes`: labels that make no sense."""

    read: Manifest
    pods: Sequence[Manifest]
    node: Node
    cores: float
    free_bytes: int
    own: Sequence[str]
    own_bytes: int
    gpu: bool
    notes: tuple[str, ...]


def ground_of(node: Manifest, pods: Sequence[Manifest], owner: tuple[str, str], settings: Settings) -> Ground:
    """One node; `pods` are those that hold memory there."""
    metadata, status, name = node["metadata"], node.get("status") or {}, str(node["metadata"]["name"])
    labels, annotations = labels_of(node), metadata.get("annotations") or {}
    allocatable = status.get("allocatable") or {}
    processors = quantity(allocatable.get("cpu", 0)) or Decimal(0)
    cores = float(processors)
    own = [pod for pod in pods if is_ours(pod, SEGMENT, *owner)]
    of_others = [pod for pod in pods if not is_ours(pod, SEGMENT, *owner)]
    requested = sum((requested_cores(pod) for pod in of_others), Decimal(0))
    free = int(quantity(allocatable.get("memory", 0)) or 0) - sum(requested_bytes(pod) for pod in of_others)
    notes: list[str] = []

    def number(key: str) -> float | None:
        return positive_number(labels, annotations, PREFIX + key, notes, f"node {name}")

    processor = processor_of(node)
    if processor not in (CPU, GPU):
        notes.append(f"{PROCESSOR} of node {name} is {processor!r}, neither {CPU} nor {GPU}: {CPU} is taken")
    capacity = capacity_of(node, number("compute-gflops"), number("memory-bandwidth-gbps"), cores, settings)
    notes.extend(capacity.notes)
    found = Node(
        name=name,
        ready=is_ready(node),
        labels=dict(labels),
        taints=tuple(_taints(node)),
        excluded=foreign(labels, settings)
        or leaving(node, settings)
        or ("" if own else _full(processors, requested, settings) or _crowded(allocatable, pods)),
        zone=labels.get(ZONE, ""),
        memory_free_bytes=max(0, free),
        millicores_free=max(0, int(1000 * (processors - requested))) if cores > 0 else None,
        cores=cores if cores > 0 else None,
        flops_per_s=capacity.gflops * 1e9,
        memory_bandwidth_bytes_per_s=capacity.gbps * 1e9,
        figures=capacity.basis,
        flops_by_dtype=capacity.by_dtype,
        idle_watts=number("idle-watts") or 0.0,
        busy_watts=number("busy-watts") or 0.0,
        cost_per_hour=number("cost-per-hour") or 0.0,
    )
    return Ground(
        read=node,
        pods=pods,
        node=found,
        cores=cores,
        free_bytes=free,
        own=[f"{pod['metadata'].get('namespace')}/{pod['metadata']['name']}" for pod in own],
        own_bytes=sum(requested_bytes(pod) for pod in own),
        gpu=processor == GPU,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Standing:
    """All nodes, by name, as one sees them who has nothing there. `index`: where each is; `ours`: pods of our resources, by owner; `there`:
    names of our pods that hold memory; `usable`: nodes that are ready; `pressured`: those that run out of memory, and how that shows."""

    nodes_read: Sequence[Manifest]
    pods_read: Sequence[Manifest]
    grounds: tuple[Ground, ...]
    index: Mapping[str, int]
    ours: Mapping[tuple[str, str], Sequence[Manifest]]
    there: frozenset[tuple[str, str]]
    usable: frozenset[str]
    pressured: Mapping[str, str]
    _own: dict[tuple[tuple[str, str], str], Ground] = field(default_factory=dict)

    def ground_for(self, owner: tuple[str, str], name: str, settings: Settings) -> Ground | None:
        """This node as `owner` sees it, worked out once; None where there is no such node."""
        if (index := self.index.get(name)) is None:
            return None
        ground, known = self.grounds[index], self._own.get((owner, name))
        if known is None or not _stands_on(known, ground):
            known = self._own[owner, name] = ground_of(ground.read, ground.pods, owner, settings)
        return known

    def own_grounds(self) -> Mapping[tuple[tuple[str, str], str], Ground]:
        """What `ground_for` has worked out so far."""
        return dict(self._own)


def standing_of(nodes: Sequence[Manifest], pods: Sequence[Manifest], settings: Settings, before: Standing | None = None) -> Standing:
    """Look at everything once. What was worked out `before`, from the very same objects, is taken over."""
    by_node: dict[str, list[Manifest]] = defaultdict(list)
    ours: dict[tuple[str, str], list[Manifest]] = defaultdict(list)
    there = set()
    for pod in pods:
        if holds(pod):
            by_node[pod["spec"]["nodeName"]].append(pod)
            if (labels := labels_of(pod)).get(MANAGED_BY) == OURS:
                there.add(name_of(pod))
                if labels.get(COMPONENT) in (SEGMENT, GATEWAY):
                    ours[str(pod["metadata"].get("namespace", "")), labels.get(INSTANCE, "")].append(pod)
    known = {ground.node.name: ground for ground in before.grounds} if before else {}

    def ground(node: Manifest) -> Ground:
        name = str(node["metadata"]["name"])
        found, there_now = known.get(name), by_node.get(name, ())
        if found is not None and found.read is node and _same(found.pods, there_now):
            return found
        return ground_of(node, there_now, NOBODY, settings)

    grounds = tuple(ground(node) for node in sorted(nodes, key=lambda node: str(node["metadata"]["name"])))
    by_name = {found.node.name: found for found in grounds}
    own = before.own_grounds() if before else {}
    return Standing(
        nodes_read=nodes,
        pods_read=pods,
        grounds=grounds,
        index={found.node.name: index for index, found in enumerate(grounds)},
        ours=ours,
        there=frozenset(there),
        usable=frozenset(found.node.name for found in grounds if found.node.ready),
        pressured={found.node.name: why for found in grounds if (why := _pressure(found.read))},
        _own={key: known for key, known in own.items() if key[1] in by_name and _stands_on(known, by_name[key[1]])},
    )


def _stands_on(own: Ground, ground: Ground) -> bool:
    """Whether a resource's own view of a node was made from what is there now."""
    return own.read is ground.read and own.pods is ground.pods


def _same(one: Sequence[Manifest], other: Sequence[Manifest]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def holds(pod: Manifest) -> bool:
    """Whether the pod is on a node and holds memory there."""
    return bool((pod.get("spec") or {}).get("nodeName")) and not is_over(pod)


def name_of(pod: Manifest) -> tuple[str, str]:
    """Namespace and name."""
    return str(pod["metadata"].get("namespace", "")), str(pod["metadata"]["name"])


def places_of(pods: Iterable[Manifest]) -> Iterable[str]:
    """The nodes where segments among these pods are."""
    return (node_of(pod) for pod in pods if is_ours(pod, SEGMENT))


def _full(cores: Decimal, requested: Decimal, settings: Settings) -> str:
    """So many cores are requested that the scheduler would take no segment, however idle the node is."""
    if requested + (quantity(settings.segment_cpu_request) or Decimal(0)) <= cores:
        return ""
    asked = settings.segment_cpu_request
    return f"{float(requested):g} of its {float(cores):g} cores are requested, and a segment requests {asked}"


def _crowded(allocatable: Mapping[str, Any], pods: Sequence[Manifest]) -> str:
    """A kubelet runs so many pods and no more, whatever they request."""
    most = quantity(allocatable.get("pods", ""))
    return f"it has {len(pods)} pods, and its limit is {most:f}" if most is not None and len(pods) >= most else ""


def is_ready(node: Manifest) -> bool:
    """Whether the node says that it is ready and is not being deleted."""
    return not node["metadata"].get("deletionTimestamp") and _condition(node, "Ready") == "True"


def _condition(node: Manifest, kind: str) -> str:
    return next((str(c.get("status")) for c in (node.get("status") or {}).get("conditions") or () if c.get("type") == kind), "")


def _pressure(node: Manifest) -> str:
    return "the node runs out of memory (its condition MemoryPressure is True)" if _condition(node, "MemoryPressure") == "True" else ""


def _taints(node: Manifest) -> Iterable[Taint]:
    spec = node.get("spec") or {}
    found = [
        Taint(key=t.get("key", ""), value=t.get("value") or "", effect=t.get("effect", "NoSchedule")) for t in spec.get("taints") or []
    ]
    # Readiness and memory have checks of their own, which say more.
    yield from (t for t in found if t.key not in _SAID_ELSEWHERE)
    if spec.get("unschedulable") and not any(t.key == "node.kubernetes.io/unschedulable" for t in found):
        yield Taint(key="node.kubernetes.io/unschedulable")
