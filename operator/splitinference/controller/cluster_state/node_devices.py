"""A node's devices: from its extended resources, the labels of its vendors' tools and the catalogue to places that can hold a segment.

What cannot be used is said with the reason, and never counts as zero. A device's place is named `<resource>/<number>`. The kubelet chooses
which of the equal devices a pod gets, so the number only counts them.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from splitinference.controller.cluster_state.figures.device_figures import Figures, Unusable, figures_of
from splitinference.controller.cluster_state.pods import labels_of, requested
from splitinference.controller.kube_values.device_images import no_image
from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.manifests.pod_parts import DEVICE
from splitinference.controller.ports import Manifest
from splitinference.core.values.cluster import Node, Processor, Snapshot
from splitinference.settings import Settings
from splitinference.settings.devices import VENDORS, DeviceRule, rule_for

MIB = 2**20
MOST_DEVICES = 64
"""More devices of one resource on one node are not counted: plans would not use them, and each one is a place to search."""


@dataclass(frozen=True)
class Offer:
    """Devices of one resource that the owner of a view may use: first those that its segments hold. `own`: how many these are; `gone`:
    those that its segments hold and the node does not offer now, although it has them."""

    resource: str
    places: tuple[Processor, ...]
    own: int
    gone: tuple[Processor, ...] = ()

    def without(self, claimed: int) -> tuple[Processor, ...]:
        """Without those that others' plans hold and no pod requests yet."""
        return self.places[: max(self.own, len(self.places) - claimed)]


@dataclass(frozen=True)
class Devices:
    """`offers`: what may be used; `unusable`: by resource why not, in words; `notes`: labels that make no sense; `gone`: as of an offer."""

    offers: tuple[Offer, ...] = ()
    gone: tuple[Processor, ...] = ()
    unusable: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


NO_DEVICES = Devices()


def devices_of(node: Manifest, own: Sequence[Manifest], others: Sequence[Manifest], settings: Settings) -> Devices:
    """The devices of a node. `own`: segments of the resource that looks; `others`: all other pods there, of whatever tenant."""
    status = node.get("status") or {}
    allocatable, capacity = status.get("allocatable") or {}, status.get("capacity") or {}
    offers: list[Offer] = []
    unusable: dict[str, str] = {}
    gone: list[Processor] = []
    notes = list(_absent(node, {**capacity, **allocatable}, settings))
    for resource, text in sorted(allocatable.items()):
        rule = rule_for(resource, settings.device_rules)
        if rule is None:
            if resource.partition("/")[0] in VENDORS and (quantity(text) or 0) > 0:
                unusable[resource] = "no rule says what it is; add one to the chart's `devices.rules`"
            continue
        if rule.ignore:
            continue
        count, why = _whole(text)
        healthy, whole = count, max(count, _whole(capacity.get(resource, text))[0])
        if whole == 0 and not why:
            continue
        why = why or no_image(rule.kind, settings)
        found = Unusable(why) if why else figures_of(node, resource, rule, whole, settings)
        if isinstance(found, Unusable):
            unusable[resource] = found.why
            continue
        notes.extend(found.notes)
        offer = _offer(resource, rule, found, (healthy, whole), own=own, others=others)
        gone.extend(offer.gone)
        if offer.places:
            offers.append(offer)
        else:
            unusable[resource] = _none_free(healthy, whole)
    return Devices(tuple(offers), tuple(gone), unusable, tuple(notes))


def _none_free(healthy: int, whole: int) -> str:
    if healthy == 0:
        return f"its device plugin says that none of {whole} is healthy"
    return f"other pods hold all {healthy}"


def _offer(
    resource: str, rule: DeviceRule, found: Figures, counts: tuple[int, int], *, own: Sequence[Manifest], others: Sequence[Manifest]
) -> Offer:
    """`counts`: how many the node offers now, and how many it has."""
    taken = int(-(-sum((requested(pod, resource) for pod in others), Decimal(0)) // 1))
    free, whole = (max(0, min(count, MOST_DEVICES) - taken) for count in counts)
    held = sorted({number for pod in own if (number := _number(pod, resource)) is not None})
    kept, gone = held[:free], held[free:whole]
    more = (number for number in range(2 * MOST_DEVICES) if number not in held)
    numbers = [*kept, *(next(more) for _ in range(free - len(kept)))]

    def place(number: int) -> Processor:
        return Processor(
            name=f"{resource}/{number}",
            kind=rule.kind,
            resource=resource,
            flops_per_s=found.flops_per_s,
            memory_bandwidth_bytes_per_s=found.bytes_per_s,
            memory_free_bytes=found.memory_bytes,
            efficiency=found.efficiency,
            flops_by_dtype=found.by_dtype,
            figures=found.basis,
            # Whoever requests a device has it alone, and a shared one counts as its share.
            utilization=0.0,
            # Factors are learned of CPUs and devices apart.
            calibration=1.0,
            prefill_calibration=1.0,
        )

    return Offer(resource, tuple(map(place, numbers)), len(kept), tuple(map(place, gone)))


def device_of(pod: Manifest) -> str:
    """The place of a segment's pod that holds a device; empty for one on a CPU."""
    return str(((pod.get("metadata") or {}).get("annotations") or {}).get(DEVICE, ""))


def _number(pod: Manifest, resource: str) -> int | None:
    """Which device of the resource this pod of ours holds; None for one that holds none."""
    of, _, number = device_of(pod).rpartition("/")
    return int(number) if of == resource and number.isdecimal() and requested(pod, resource) > 0 else None


def _whole(text: object) -> tuple[int, str]:
    """A number of devices, and what is wrong with it in words."""
    count = quantity(text)
    if count is None or count < 0 or count != int(count):
        return 0, f"the node says that it has {text} of them, and devices are whole"
    return int(count), ""


def _absent(node: Manifest, offered: Mapping[str, object], settings: Settings) -> Iterator[str]:
    """Labels that speak of devices which no device plugin offers: nothing can be requested there."""
    labels, name = labels_of(node), node["metadata"]["name"]
    product = labels.get("nvidia.com/gpu.product")
    if product and not any(resource.startswith("nvidia.com/") for resource in offered):
        yield f"a label says that node {name} has {product}, but it offers no resource nvidia.com/gpu: does its device plugin run?"


def with_devices(node: Node, devices: Devices, claimed: Mapping[str, int], settings: Settings) -> Node:
    """The node with its devices as places beside its CPU. Each device that may be used has room for its server set aside in the node's
    memory; where that is not enough for all, fewer may be used. `claimed`: by resource, how many others' plans hold that no pod
    requests yet."""
    node = node.model_copy(update={"devices_gone": devices.gone}) if devices.gone else node
    if not devices.offers:
        return node.model_copy(update={"devices_out": devices.unusable}) if devices.unusable else node
    each, out = settings.segment_device_host_mib * MIB, dict(devices.unusable)
    room = node.memory_free_bytes // each
    places: list[Processor] = []
    for offer in devices.offers:
        free = offer.without(claimed.get(offer.resource, 0))
        fits = free[: max(offer.own, room - len(places))]  # the memory of one's own segments is requested already
        if not free:
            out[offer.resource] = "others' plans hold all that are free"
        elif len(fits) < len(free):
            has = f"the node has {node.memory_free_bytes // MIB} MiB free, and the server of each segment takes {each // MIB} MiB of it"
            out[offer.resource] = f"{len(free) - len(fits)} of {len(free)}: {has}"
        places.extend(fits)
    told = node.model_copy(update={"devices_out": out})
    return _with_places(told, places, each) if places else told


def _with_places(node: Node, places: Sequence[Processor], each: int) -> Node:
    """The node with its CPU and these devices as places; `each`: memory of the node for the server of one."""
    cpu = Processor(
        name="",
        flops_per_s=node.flops_per_s,
        memory_bandwidth_bytes_per_s=node.memory_bandwidth_bytes_per_s,
        memory_free_bytes=max(0, node.memory_free_bytes - each * len(places)),
        efficiency=node.efficiency,
        flops_by_dtype=node.flops_by_dtype,
        figures=node.figures,
    )
    return node.model_copy(update={"processors": (cpu, *places), "device_host_bytes": each})


def gone_devices(snapshot: Snapshot) -> frozenset[str]:
    """Devices, as `<node>/<place>`, that segments of the snapshot's owner hold and that their nodes do not offer now."""
    return frozenset(f"{node.name}/{place.name}" for node in snapshot.nodes for place in node.devices_gone)


def waiting_for(snapshot: Snapshot, devices: Container[str], settings: Settings) -> Snapshot:
    """The snapshot in which these devices, as `gone_devices` names them, are still there: they may come back in a moment."""
    each = settings.segment_device_host_mib * MIB

    def one(node: Node) -> Node:
        back = [place for place in node.devices_gone if f"{node.name}/{place.name}" in devices]
        return _with_places(node, [*(place for place in node.processors if place.resource), *back], each) if back else node

    nodes = tuple(one(node) for node in snapshot.nodes)
    return snapshot if all(a is b for a, b in zip(nodes, snapshot.nodes, strict=True)) else snapshot.model_copy(update={"nodes": nodes})
