"""Nodes, pods and metrics → the core's snapshot: what our segments may take, how busy others keep the nodes, how good the links are.

Memory that is spoken for is counted once: by the pods that are there, and by other resources' plans for what they have not made yet. Our
own segments' memory counts as free for us.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final

from splitinference.controller.cluster_state.figures.node_metrics import Judge, Measured
from splitinference.controller.cluster_state.figures.pressure import lost
from splitinference.controller.cluster_state.links import read_network
from splitinference.controller.cluster_state.node_capacity import Ground, Owner, Standing, holds, name_of, places_of, standing_of
from splitinference.controller.cluster_state.node_devices import with_devices
from splitinference.controller.cluster_state.pods import is_ours, node_of
from splitinference.controller.kube_values.device_images import resource_of
from splitinference.controller.manifests.gateway import GATEWAY
from splitinference.controller.ports import Manifest
from splitinference.core.values.cluster import Node, Snapshot
from splitinference.settings import Settings


@dataclass(frozen=True)
class Reading:
    """The snapshot, nodes that run out of memory and how that shows, and what was odd on the way."""

    snapshot: Snapshot
    pressured: Mapping[str, str]
    notes: tuple[str, ...]


Yielding = Mapping[str, frozenset[Owner]]
"""For each node the resources that give way there: what they hold counts as free."""
NOBODY_YIELDS: Yielding = MappingProxyType({})


def claims(resources: Sequence[Manifest], pods: Sequence[Manifest], namespace: str, name: str) -> Mapping[str, int]:
    """Bytes per node that other resources' plans hold and no pod on that node has yet."""
    return _held(resources, pods).by_others_than((namespace, name))


def device_claims(resources: Sequence[Manifest], pods: Sequence[Manifest], namespace: str, name: str) -> Mapping[str, Mapping[str, int]]:
    """The same of devices: how many per node and extended resource."""
    return _held(resources, pods).devices_of_others_than((namespace, name))


def _held(resources: Sequence[Manifest], pods: Sequence[Manifest]) -> "Held":
    return held_by(resources, {name_of(pod) for pod in pods if holds(pod)})


UNLOADED: Final = frozenset({"Unloaded", "Preempted"})
"""Reasons of the condition Ready of a resource that has given its segments away."""


def is_unloaded(resource: Manifest) -> bool:
    """Whether the resource has a plan and no segments, and wants none now."""
    conditions = (resource.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("reason") in UNLOADED for each in conditions)


@dataclass(frozen=True)
class Held:
    """Bytes per node that plans hold and no pod on that node has yet, by resource; and devices per node and extended resource."""

    by_owner: Mapping[tuple[str, str], Mapping[str, int]]
    devices: Mapping[tuple[str, str], Mapping[tuple[str, str], int]] = field(default_factory=dict)

    def by_others_than(self, owner: tuple[str, str], yielding: Yielding = NOBODY_YIELDS) -> Mapping[str, int]:
        """All but what the owner's own plan holds, and those who are yielding on a node hold there."""
        found: dict[str, int] = defaultdict(int)
        for other, nodes in self.by_owner.items():
            for name, held in nodes.items() if other != owner else ():
                found[name] += held if other not in yielding.get(name, ()) else 0
        return found

    def devices_of_others_than(self, owner: tuple[str, str], yielding: Yielding = NOBODY_YIELDS) -> Mapping[str, Mapping[str, int]]:
        """The same of devices."""
        found: dict[str, dict[str, int]] = {}
        for other, places in self.devices.items():
            for (name, resource), held in places.items() if other != owner else ():
                if other in yielding.get(name, ()):
                    continue
                node = found.setdefault(name, {})
                node[resource] = node.get(resource, 0) + held
        return found


def held_by(resources: Sequence[Manifest], there: Set[tuple[str, str]]) -> Held:
    """What the plans of these resources hold; `there`: names of the pods that are on nodes. Resources that hold nothing are left out: those
    that are unloaded, for one. When they are to serve again, they plan with what is there then."""
    held: dict[tuple[str, str], dict[str, int]] = {}
    devices: dict[tuple[str, str], dict[tuple[str, str], int]] = {}
    for resource in resources:
        metadata = resource["metadata"]
        owner = str(metadata.get("namespace", "")), str(metadata["name"])
        segments = ((resource.get("status") or {}).get("plan") or {}).get("segments") or []
        for segment in segments if not metadata.get("deletionTimestamp") and not is_unloaded(resource) else ():
            if (owner[0], str(segment.get("name"))) not in there:
                nodes = held.setdefault(owner, defaultdict(int))
                node, device = str(segment.get("node")), resource_of(str(segment.get("processor") or ""))
                # Weights on a device are in its own memory; its server is in the node's.
                nodes[node] += int(segment.get("nodeMemoryBytes" if device else "memoryBytes") or 0)
                if device:
                    devices.setdefault(owner, defaultdict(int))[node, device] += 1
    return Held(held, devices)


@dataclass(frozen=True)
class Sources:
    """What a snapshot is made from. `owner`: namespace and name of the resource that it is for; `held`: what `claims` gave; `held_devices`:
    what `device_claims` gave; `picture`: what `picture_of` made of the same nodes, pods and metrics, where there is one; `yielding`: whose
    segments count as the owner's own."""

    now: datetime
    nodes: Sequence[Manifest]
    pods: Sequence[Manifest]
    measured: Measured
    held: Mapping[str, int]
    owner: tuple[str, str]
    picture: "Picture | None" = None
    held_devices: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    yielding: Yielding = field(default_factory=dict)


def read_snapshot(sources: Sources, settings: Settings) -> Reading:
    """The picture for one resource."""
    picture = sources.picture or picture_of(standing_of(sources.nodes, sources.pods, settings), sources.measured, settings)
    standing = picture.standing
    judge = Judge(max_age_seconds=settings.metrics_max_age_seconds)
    ours = standing.ours.get(sources.owner, ())
    nodes = list(picture.snapshot.nodes)
    # Only where this resource has segments, or others' plans hold something, is a node another than for everybody.
    for name in dict.fromkeys([*places_of(ours), *sources.held, *sources.held_devices, *sources.yielding]):
        if (own := standing.ground_for(sources.owner, name, sources.yielding.get(name, frozenset()))) is not None:
            claim = _Claim(sources.held.get(name, 0), sources.held_devices.get(name, {}))
            nodes[standing.index[name]] = _seen(own, claim, sources.measured, judge, settings)
    ingress = next((node_of(pod) for pod in ours if is_ours(pod, GATEWAY) and node_of(pod) in standing.index), "")
    network = picture.snapshot.network.model_copy(update={"ingress": ingress})
    return Reading(
        # All of this was validated when the picture was made.
        snapshot=picture.snapshot.model_copy(update={"nodes": tuple(nodes), "network": network, "observed_at": sources.now}),
        pressured=standing.pressured,
        notes=tuple(dict.fromkeys([*sources.measured.notes, *picture.notes, *judge.notes])),
    )


@dataclass(frozen=True)
class Picture:
    """Nodes and links as one sees them who has nothing there: the same for all resources."""

    standing: Standing
    measured: Measured
    snapshot: Snapshot
    notes: tuple[str, ...]


def picture_of(standing: Standing, measured: Measured, settings: Settings) -> Picture:
    """What stands there, with what metrics say of it."""
    judge = Judge(max_age_seconds=settings.metrics_max_age_seconds)
    for ground in standing.grounds:
        judge.notes.extend(ground.notes)
    seen = tuple(_seen(ground, _Claim(), measured, judge, settings) for ground in standing.grounds)
    network = read_network([ground.read for ground in standing.grounds], measured, "", settings, judge)
    return Picture(standing, measured, Snapshot(nodes=seen, network=network), tuple(dict.fromkeys(judge.notes)))


def _not_there(used: float | None, waiting: float | None) -> float | None:
    """The share that is not there for us: what others use, or what is lost to waiting, if that is more. Each may be known alone; but that
    nothing is lost does not say that nobody uses the node."""
    if used is None:
        return waiting or None
    return max(used, waiting or 0.0)


@dataclass(frozen=True)
class _Claim:
    """What others' plans hold on a node and no pod there has yet: memory, and devices by resource."""

    held_bytes: int = 0
    devices: Mapping[str, int] = field(default_factory=dict)


def _seen(ground: Ground, claim: _Claim, measured: Measured, judge: Judge, settings: Settings) -> Node:
    """The node with what metrics say of it, and with what others' plans hold there."""
    free = ground.free_bytes - claim.held_bytes
    available = judge.value(measured.node_memory_available_bytes, ground.node.name, "available memory")
    if available is not None:
        free = min(free, int(available) + ground.own_bytes)
    name = ground.node.name
    if ground.gpu:
        utilization = judge.share(measured.node_gpu_used_by_others, name, "GPU use by others")
    else:
        utilization = judge.used_by_others(measured, name, ground.cores, ground.own)
    waiting = None if ground.gpu else lost(measured, name, ground.cores, ground.own, judge)
    # A copy, since all of it was validated: none can be outside of its range.
    update = {"memory_free_bytes": max(0, free), "utilization": _not_there(utilization, waiting), "waiting": waiting}
    if ground.node.idle_watts and measured.node_watts.by_name:
        used = judge.share(measured.node_gpu_used, name, "GPU use") if ground.gpu else judge.used(measured, name, ground.cores)
        busy = judge.busy_watts(measured, name, ground.node.idle_watts, used)
        update |= {} if busy is None else {"busy_watts": busy}
    return with_devices(ground.node.model_copy(update=update), ground.devices, claim.devices, settings)
