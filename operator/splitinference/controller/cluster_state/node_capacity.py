"""Nodes and pods as far as metrics do not change them: worked out once, and of a node anew only when it, or what runs on it, is another.

There may be tens of thousands of pods and a thousand nodes, and metrics come every few seconds.
"""

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from splitinference.controller.cluster_state.figures.node_figures import capacity_of
from splitinference.controller.cluster_state.figures.node_metrics import CPU, GPU, PREFIX, PROCESSOR, positive_number, processor_of
from splitinference.controller.cluster_state.node_devices import NO_DEVICES, Devices, devices_of
from splitinference.controller.cluster_state.pods import is_ours, is_over, labels_of, node_of, requested_bytes, requested_cores
from splitinference.controller.kube_values.machine import foreign, leaving, taints_of
from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.manifests.gateway import GATEWAY
from splitinference.controller.manifests.pod_parts import COMPONENT, INSTANCE, MANAGED_BY, OURS
from splitinference.controller.manifests.segment import SEGMENT
from splitinference.controller.ports import Generation, Manifest
from splitinference.core.values.cluster import Node
from splitinference.settings import Settings

NOBODY = ("", "no resource has such a name")
Owner = tuple[str, str]
"""Namespace and name of a resource."""
Read = tuple[Generation, Generation]
"""Generations of the nodes and pods that were read."""
ZONE = "topology.kubernetes.io/zone"


@dataclass(frozen=True)
class Ground:
    """A node as `owner` sees it without metrics. `free_bytes`: allocatable less what others request, below zero where that is more;
    `own`: its segments there, as namespace/name, and `own_bytes` what they request; `gpu`: its compute is that of GPUs;
    `notes`: labels that make no sense; `devices`: its devices, some of which may be used beside its CPU."""

    read: Manifest
    pods: tuple[Manifest, ...]
    node: Node
    cores: float
    free_bytes: int
    own: Sequence[str]
    own_bytes: int
    gpu: bool
    notes: tuple[str, ...]
    devices: Devices = NO_DEVICES


def ground_of(
    node: Manifest, pods: tuple[Manifest, ...], owner: Owner, settings: Settings, yielding: frozenset[Owner] = frozenset()
) -> Ground:
    """One node; `pods` are those that hold memory there. Segments of resources that are `yielding` count like the owner's own."""
    metadata, status, name = node["metadata"], node.get("status") or {}, str(node["metadata"]["name"])
    labels, annotations = labels_of(node), metadata.get("annotations") or {}
    allocatable = status.get("allocatable") or {}
    processors = quantity(allocatable.get("cpu", 0)) or Decimal(0)
    cores = float(processors)
    owners = {owner, *yielding}
    own = [pod for pod in pods if any(is_ours(pod, SEGMENT, *each) for each in owners)]
    of_others = [pod for pod in pods if pod not in own]
    requested = sum((requested_cores(pod) for pod in of_others), Decimal(0))
    free = int(quantity(allocatable.get("memory", 0)) or 0) - sum(requested_bytes(pod) for pod in of_others)
    notes: list[str] = []

    def number(key: str) -> float | None:
        return positive_number(labels, annotations, PREFIX + key, notes, f"node {name}")

    processor = processor_of(node)
    if processor not in (CPU, GPU):
        notes.append(f"{PROCESSOR} of node {name} is {processor!r}, neither {CPU} nor {GPU}: {CPU} is taken")
    price = number("cost-per-hour")
    devices = devices_of(node, own, of_others, settings)
    notes.extend(devices.notes)
    figures = number("compute-gflops"), number("memory-bandwidth-gbps")
    if devices.offers and processor == GPU:
        notes.append(f"{PROCESSOR} of node {name} is {GPU}, and its devices are places of their own: the label counts no more")
        processor, figures = CPU, (None, None)
    capacity = capacity_of(node, *figures, cores, settings, launch_ms=number("layer-launch-ms"), gpu=processor == GPU)
    notes.extend(capacity.notes)
    found = Node(
        name=name,
        ready=is_ready(node),
        labels=dict(labels),
        taints=taints_of(node),
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
        efficiency=capacity.efficiency,
        idle_watts=number("idle-watts") or 0.0,
        busy_watts=number("busy-watts") or 0.0,
        cost_per_hour=price or 0.0,
        price_known=price is not None,
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
        devices=devices,
    )


class OwnGrounds:
    """Nodes as their owners see them, each worked out once for as long as node and pods stay the same. Used by many threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._known: dict[tuple[Owner, str], Ground] = {}

    def of(self, owner: Owner, ground: Ground, yielding: frozenset[Owner] = frozenset()) -> Ground:
        """This node as `owner` sees it. What is `yielding` is rare and soon over, so that view is not kept."""
        if yielding:
            return ground_of(ground.read, ground.pods, owner, self._settings, yielding)
        key = owner, ground.node.name
        with self._lock:
            known = self._known.get(key)
        if known is None or not _stands_on(known, ground):
            known = ground_of(ground.read, ground.pods, owner, self._settings)
            with self._lock:
                self._known[key] = known
        return known

    def forget_others(self, grounds: Mapping[str, Ground]) -> None:
        """Of nodes that are gone or others now, nothing is kept."""
        with self._lock:
            known = self._known.items()
            self._known = {key: own for key, own in known if key[1] in grounds and _stands_on(own, grounds[key[1]])}


@dataclass(frozen=True)
class Standing:
    """All nodes, by name, as one sees them who has nothing there. `read`: the generations of nodes and pods that it was made from; `index`:
    where each is; `ours`: pods of our resources, by owner; `there`: names of our pods that hold memory; `usable`: nodes that are ready;
    `pressured`: those that run out of memory, and how that shows; `own`: the nodes as owners see them."""

    read: Read
    grounds: tuple[Ground, ...]
    index: Mapping[str, int]
    ours: Mapping[tuple[str, str], Sequence[Manifest]]
    there: frozenset[tuple[str, str]]
    usable: frozenset[str]
    pressured: Mapping[str, str]
    own: OwnGrounds

    def ground_for(self, owner: Owner, name: str, yielding: frozenset[Owner] = frozenset()) -> Ground | None:
        """This node as `owner` sees it, with segments of resources that are `yielding` as its own; None where there is no such node."""
        index = self.index.get(name)
        return None if index is None else self.own.of(owner, self.grounds[index], yielding)

    def nodes_of(self, owner: Owner) -> frozenset[str]:
        """Nodes where this resource has segments that hold memory."""
        return frozenset(places_of(self.ours.get(owner, ())))


def standing_of(
    nodes: Sequence[Manifest], pods: Sequence[Manifest], settings: Settings, before: Standing | None = None, read: Read = ((), ())
) -> Standing:
    """Look at everything once. What was worked out `before`, from objects that are the same, is taken over. `read`: the generations of
    nodes and pods."""
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
        found, there_now = known.get(name), tuple(by_node.get(name, ()))
        # The store hands out the same objects while they stay the same, so that this looks into few of them.
        if found is not None and (found.read, found.pods) == (node, there_now):
            return found
        return ground_of(node, there_now, NOBODY, settings)

    grounds = tuple(ground(node) for node in sorted(nodes, key=lambda node: str(node["metadata"]["name"])))
    by_name = {found.node.name: found for found in grounds}
    own = before.own if before else OwnGrounds(settings)
    own.forget_others(by_name)
    return Standing(
        read=read,
        grounds=grounds,
        index={found.node.name: index for index, found in enumerate(grounds)},
        ours=ours,
        there=frozenset(there),
        usable=frozenset(found.node.name for found in grounds if found.node.ready),
        pressured={found.node.name: why for found in grounds if (why := _pressure(found.read))},
        own=own,
    )


def _stands_on(own: Ground, ground: Ground) -> bool:
    """Whether a resource's own view of a node was made from what is there now."""
    return (own.read, own.pods) == (ground.read, ground.pods)


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
