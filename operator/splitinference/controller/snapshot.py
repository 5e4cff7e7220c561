"""Nodes, pods and metrics → the core's snapshot: what our segments may take, how busy others keep the nodes, how good the links are.

Memory that is spoken for is counted once: by the pods that are there, and by other resources' plans for what they have not made yet. Our
own segments' memory counts as free for us.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from splitinference.controller.gateway import GATEWAY
from splitinference.controller.manifests import SEGMENT
from splitinference.controller.network import read_network
from splitinference.controller.objects import INSTANCE
from splitinference.controller.pods import is_ours, is_over, labels_of, node_of, requested_bytes, requested_cores
from splitinference.controller.ports import Manifest
from splitinference.controller.quantity import quantity
from splitinference.controller.readings import PREFIX, Judge, Measured, positive_number
from splitinference.core.cluster import Node, Snapshot, Taint
from splitinference.settings import Settings

_SAID_ELSEWHERE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "node.kubernetes.io/memory-pressure")
_NOBODY = ("", "no resource has such a name")
ZONE = "topology.kubernetes.io/zone"


@dataclass(frozen=True)
class Reading:
    """The snapshot, nodes that run out of memory and how that shows, and what was odd on the way."""

    snapshot: Snapshot
    pressured: Mapping[str, str]
    notes: tuple[str, ...]


def claims(resources: Sequence[Manifest], pods: Sequence[Manifest], namespace: str, name: str) -> Mapping[str, int]:
    """Bytes per node that other resources' plans hold and no pod on that node has yet."""
    return held_for(resources, {_name(pod) for pod in pods if _holds(pod)}, namespace, name)


def held_for(resources: Sequence[Manifest], there: Set[tuple[str, str]], namespace: str, name: str) -> Mapping[str, int]:
    """As `claims`, with the names of the pods that are on nodes."""
    held: dict[str, int] = defaultdict(int)
    for resource in resources:
        metadata = resource["metadata"]
        if (metadata.get("namespace"), metadata["name"]) == (namespace, name) or metadata.get("deletionTimestamp"):
            continue
        for segment in ((resource.get("status") or {}).get("plan") or {}).get("segments") or []:
            if (str(metadata.get("namespace", "")), str(segment.get("name"))) not in there:
                held[str(segment.get("node"))] += int(segment.get("memoryBytes") or 0)
    return held


@dataclass(frozen=True)
class Sources:
    """What a snapshot is made from. `owner`: namespace and name of the resource that it is for; `held`: what `claims` gave; `picture`: what
    `picture_of` made of the same nodes, pods and metrics, where there is one."""

    now: datetime
    nodes: Sequence[Manifest]
    pods: Sequence[Manifest]
    measured: Measured
    held: Mapping[str, int]
    owner: tuple[str, str]
    picture: "Picture | None" = None


def read_snapshot(sources: Sources, settings: Settings) -> Reading:
    """The picture for one resource."""
    picture = sources.picture or picture_of(sources.nodes, sources.pods, sources.measured, settings)
    judge = Judge(max_age_seconds=settings.metrics_max_age_seconds)
    ours = picture.ours.get(sources.owner, ())
    nodes = list(picture.snapshot.nodes)
    # Only where this resource has segments, or others' plans hold something, is a node another than for everybody.
    for name in dict.fromkeys([*(node_of(pod) for pod in ours if is_ours(pod, SEGMENT)), *sources.held]):
        if (index := picture.index.get(name)) is not None:
            nodes[index] = _node(picture.ordered[index], picture.by_node.get(name, ()), sources, settings, judge)
    ingress = next((node_of(pod) for pod in ours if is_ours(pod, GATEWAY) and node_of(pod) in picture.index), "")
    network = picture.snapshot.network.model_copy(update={"ingress": ingress})
    return Reading(
        # All of this was validated when the picture was made.
        snapshot=picture.snapshot.model_copy(update={"nodes": tuple(nodes), "network": network, "observed_at": sources.now}),
        pressured=picture.pressured,
        notes=tuple(dict.fromkeys([*sources.measured.notes, *picture.notes, *judge.notes])),
    )


@dataclass(frozen=True)
class Picture:
    """Nodes and links as one sees them who has nothing there: the same for all resources. `ordered`: the nodes by name, `index` where each
    is; `by_node`: pods that hold memory; `ours`: those of our resources, by owner; `there`: their names; `usable`: nodes that are ready."""

    nodes_read: Sequence[Manifest]
    pods_read: Sequence[Manifest]
    measured: Measured
    ordered: Sequence[Manifest]
    index: Mapping[str, int]
    by_node: Mapping[str, Sequence[Manifest]]
    ours: Mapping[tuple[str, str], Sequence[Manifest]]
    there: frozenset[tuple[str, str]]
    usable: frozenset[str]
    snapshot: Snapshot
    pressured: Mapping[str, str]
    notes: tuple[str, ...]


def picture_of(nodes: Sequence[Manifest], pods: Sequence[Manifest], measured: Measured, settings: Settings) -> Picture:
    """Look at everything once."""
    judge = Judge(max_age_seconds=settings.metrics_max_age_seconds)
    by_node: dict[str, list[Manifest]] = defaultdict(list)
    ours: dict[tuple[str, str], list[Manifest]] = defaultdict(list)
    there = set()
    for pod in pods:
        if _holds(pod):
            by_node[pod["spec"]["nodeName"]].append(pod)
            there.add(_name(pod))
            if is_ours(pod, SEGMENT) or is_ours(pod, GATEWAY):
                ours[str(pod["metadata"].get("namespace", "")), labels_of(pod).get(INSTANCE, "")].append(pod)
    ordered = sorted(nodes, key=lambda node: str(node["metadata"]["name"]))
    nobody = Sources(now=datetime.min.replace(tzinfo=UTC), nodes=nodes, pods=pods, measured=measured, held={}, owner=_NOBODY)
    seen = tuple(_node(node, by_node.get(node["metadata"]["name"], ()), nobody, settings, judge) for node in ordered)
    return Picture(
        nodes_read=nodes,
        pods_read=pods,
        measured=measured,
        ordered=ordered,
        index={node.name: index for index, node in enumerate(seen)},
        by_node=by_node,
        ours=ours,
        there=frozenset(there),
        usable=frozenset(str(node["metadata"]["name"]) for node in ordered if is_ready(node)),
        snapshot=Snapshot(nodes=seen, network=read_network(ordered, measured, "", settings, judge)),
        pressured={node["metadata"]["name"]: why for node in ordered if (why := _pressure(node))},
        notes=tuple(dict.fromkeys(judge.notes)),
    )


def _holds(pod: Manifest) -> bool:
    """Whether the pod is on a node and holds memory there."""
    return bool((pod.get("spec") or {}).get("nodeName")) and not is_over(pod)


def _name(pod: Manifest) -> tuple[str, str]:
    return str(pod["metadata"].get("namespace", "")), str(pod["metadata"]["name"])


def _node(node: Manifest, pods: Sequence[Manifest], sources: Sources, settings: Settings, judge: Judge) -> Node:
    metadata, status, name = node["metadata"], node.get("status") or {}, str(node["metadata"]["name"])
    labels, annotations = labels_of(node), metadata.get("annotations") or {}
    allocatable = status.get("allocatable") or {}
    processors = quantity(allocatable.get("cpu", 0)) or Decimal(0)
    cores = float(processors)
    own = [pod for pod in pods if is_ours(pod, SEGMENT, *sources.owner)]
    of_others = [pod for pod in pods if not is_ours(pod, SEGMENT, *sources.owner)]
    others = sum(requested_bytes(pod) for pod in of_others)
    requested = sum((requested_cores(pod) for pod in of_others), Decimal(0))
    free = int(quantity(allocatable.get("memory", 0)) or 0) - others - sources.held.get(name, 0)
    available = judge.value(sources.measured.node_memory_available_bytes, name, "available memory")
    if available is not None:
        free = min(free, int(available) + sum(requested_bytes(pod) for pod in own))

    def number(key: str) -> float | None:
        return positive_number(labels, annotations, PREFIX + key, judge.notes, f"node {name}")

    gflops = number("compute-gflops") or max(cores, 0.001) * settings.core_gflops
    bandwidth = number("memory-bandwidth-gbps") or max(cores, 0.001) * settings.core_memory_bandwidth_gbps
    running = [f"{pod['metadata'].get('namespace')}/{pod['metadata']['name']}" for pod in own]
    return Node(
        name=name,
        ready=is_ready(node),
        labels=dict(labels),
        taints=(*_taints(node), *(() if own else _full(processors, requested, settings))),
        zone=labels.get(ZONE, ""),
        memory_free_bytes=max(0, free),
        millicores_free=max(0, int(1000 * (processors - requested))) if cores > 0 else None,
        cores=cores if cores > 0 else None,
        flops_per_s=gflops * 1e9,
        memory_bandwidth_bytes_per_s=bandwidth * 1e9,
        utilization=judge.used_by_others(sources.measured, name, cores, running),
        idle_watts=number("idle-watts") or 0.0,
        busy_watts=number("busy-watts") or 0.0,
        cost_per_hour=number("cost-per-hour") or 0.0,
    )


def _full(cores: Decimal, requested: Decimal, settings: Settings) -> Iterable[Taint]:
    """As a taint: so many cores are requested that the scheduler would take no segment, however idle the node is."""
    if requested + (quantity(settings.segment_cpu_request) or Decimal(0)) > cores:
        yield Taint(key=PREFIX + "cores-requested", value=f"{float(requested):g} of {float(cores):g}")


def is_ready(node: Manifest) -> bool:
    """Whether the node says that it is ready and is not being deleted."""
    return not node["metadata"].get("deletionTimestamp") and _condition(node, "Ready") == "True"


def _condition(node: Manifest, kind: str) -> str:
    found = [c for c in (node.get("status") or {}).get("conditions") or [] if c.get("type") == kind]
    return str(found[0].get("status")) if found else ""


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
