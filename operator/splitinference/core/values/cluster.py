"""A frozen picture of nodes and links: what is there, what is free, how busy, as of when."""

from collections import Counter
from collections.abc import Container, Mapping
from datetime import datetime
from typing import Self

from pydantic import Field, model_validator

from splitinference.core.values.efficiency import Efficiency
from splitinference.core.values.value import Value


class LayerTime(Value):
    """Measured time of one layer on one otherwise idle node: for one token of decode and for one token of a prefill.

    Several for one layer and processor are points, told apart by `batch` and `context`; between them times are interpolated.
    """

    layer: int = Field(ge=0)
    processor: str = Field(default="", description="the processor it was measured on; empty: a node without processors")
    prefill_ms_per_token: float = Field(gt=0)
    decode_ms_per_token: float = Field(gt=0, description="a decode step over the sequences in it")
    batch: int = Field(default=1, ge=1, description="sequences of the decode steps that were measured")
    context: int | None = Field(
        default=None, ge=1, description="tokens attended to by these steps, and length of the prompt that was measured; null: any"
    )


CPU = "cpu"
"""The class of a node's own processors."""


class Processor(Value):
    """One place inside a node that can hold a segment: a GPU, a NUMA node, the CPU.

    Where a node has processors, they are its whole capacity: every segment on it names one, and takes memory from it. One of them may have
    no name: the node's own CPU, so that a plan for a node without devices also fits the same node with devices.
    """

    name: str
    kind: str = CPU
    resource: str = Field(default="", description="the extended resource that it is one of; empty: it is not requested")
    flops_per_s: float = Field(gt=0)
    memory_bandwidth_bytes_per_s: float = Field(gt=0)
    memory_free_bytes: int = Field(ge=0)
    efficiency: Efficiency = Efficiency()
    figures: str = Field(default="", description="where its figures come from; empty: as the node's")
    flops_by_dtype: Mapping[str, float] = Field(default_factory=dict, description="compute for each data type that differs")
    utilization: float | None = Field(default=None, ge=0, le=1, description="what others use of it; null: as of the node")
    calibration: float | None = Field(default=None, gt=0, description="measured over predicted decode time; null: that of the node")
    prefill_calibration: float | None = Field(default=None, gt=0, description="the same of prefill time; null: that of the node")

    def for_dtype(self, dtype: str) -> "Processor":
        """With its compute for this data type, where it is known."""
        known = self.flops_by_dtype.get(dtype)
        return self if known is None else self.model_copy(update={"flops_per_s": known})


class Taint(Value):
    """A node's taint, as Kubernetes has it."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


class Node(Value):
    """One node. Capacities are nominal; `utilization` is the share of its time, 0..1, that is not there for us, None when unknown."""

    name: str
    ready: bool = True
    labels: Mapping[str, str] = Field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    excluded: str = Field(default="", description="why no segment can run here whatever is tolerated, in words; empty: none is kept away")
    zone: str = ""
    memory_free_bytes: int = Field(ge=0, description="what our segments may take: allocatable minus what others requested")
    millicores_free: int | None = Field(
        default=None, ge=0, description="what our segments may request of its CPU: allocatable minus what others requested; null: any"
    )
    cores: float | None = Field(
        default=None, gt=0, description="cores that it has for pods; null: not known, for the start of a segment one is counted on"
    )
    flops_per_s: float = Field(gt=0, description="nominal compute of the whole node, when idle")
    memory_bandwidth_bytes_per_s: float = Field(gt=0)
    figures: str = Field(default="", description="where the two come from: measured, labelled or assumed; empty: not said")
    flops_by_dtype: Mapping[str, float] = Field(default_factory=dict, description="measured compute for each data type that differs")
    utilization: float | None = Field(
        default=None, ge=0, le=1, description="what others use, or what is lost to waiting for a processor, if that is more"
    )
    waiting: float | None = Field(default=None, ge=0, le=1, description="share that is lost to waiting for a processor; null: not known")
    efficiency: Efficiency = Field(default=Efficiency(), description="of a node without processors")
    calibration: float = Field(default=1.0, gt=0, description="measured over predicted decode time; 1.0 until measured")
    prefill_calibration: float = Field(default=1.0, gt=0, description="measured over predicted prefill time; 1.0 until measured")
    calibration_spread: float | None = Field(
        default=None, ge=0, description="spread of decode times measured here, as `spread` of an efficiency; null: that of the efficiency"
    )
    prefill_calibration_spread: float | None = Field(default=None, ge=0, description="the same of prefill times")
    stage_overhead_ms: float = Field(default=1.0, ge=0, description="server overhead of one step of one stage")
    processors: tuple[Processor, ...] = ()
    device_host_bytes: int = Field(default=0, ge=0, description="memory of the node that a segment on one of its devices takes besides")
    devices_gone: tuple[Processor, ...] = Field(default=(), description="devices that its segments hold and it does not offer now")
    devices_out: Mapping[str, str] = Field(default_factory=dict, description="devices that no segment can use: why, by resource")
    layer_times: tuple[LayerTime, ...] = ()
    idle_watts: float = Field(default=0.0, ge=0)
    busy_watts: float = Field(default=0.0, ge=0)
    cost_per_hour: float = Field(default=0.0, ge=0)
    price_known: bool = Field(default=True, description="whether cost_per_hour says it; else a goal or budget of cost excludes it")

    @property
    def devices(self) -> Mapping[str, int]:
        """How many of its processors are devices of each extended resource."""
        return dict(Counter(place.resource for place in self.processors if place.resource))

    def for_dtype(self, dtype: str) -> "Node":
        """With the compute of the node and of its processors for this data type, where it is known."""
        known = self.flops_by_dtype.get(dtype)
        update: dict[str, object] = {} if known is None else {"flops_per_s": known}
        processors = tuple(processor.for_dtype(dtype) for processor in self.processors)
        if any(a is not b for a, b in zip(processors, self.processors, strict=True)):
            update["processors"] = processors
        return self.model_copy(update=update) if update else self


def load_in_words(node: Node) -> str:
    """Its utilization in words."""
    if node.utilization is None:
        return "utilization unknown"
    if node.waiting and node.waiting >= node.utilization:
        return f"{node.utilization:.0%} lost to waiting for a processor"
    return f"{node.utilization:.0%} used by others"


class LinkQuality(Value):
    """One direction of a link."""

    bandwidth_bytes_per_s: float = Field(gt=0)
    rtt_ms: float = Field(ge=0)


class Link(Value):
    """A link between two nodes, or between two zones; the more particular one wins."""

    source: str
    target: str
    quality: LinkQuality


class Way(Value):
    """From one node, or one zone, to another: in this direction alone."""

    source: str
    target: str


class SharedLink(Value):
    """A link that several nodes share on their way to all others: the uplink of a site, the NIC of a host. Both directions have all of it.

    Its members are nodes by name, and all nodes of the named zones.
    """

    name: str = Field(min_length=1)
    nodes: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    bandwidth_bytes_per_s: float = Field(gt=0)

    @model_validator(mode="after")
    def _has_members(self) -> Self:
        if not self.nodes and not self.zones:
            raise ValueError(f"shared link {self.name!r} has neither nodes nor zones, expected at least one")
        return self

    def holds(self, node: str, zone: str) -> bool:
        """Whether a node of this name and zone is behind the link."""
        return node in self.nodes or zone in self.zones


class Network(Value):
    """Links, most particular first: node to node, then zone to zone, then the default. Inside a node: `local`.

    What is closed is most particular, too: a closed way from node to node wins over a link, one from zone to zone over a zone's link.
    """

    default: LinkQuality = LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=0.5)
    local: LinkQuality = LinkQuality(bandwidth_bytes_per_s=2e9, rtt_ms=0.2)
    zones: tuple[Link, ...] = ()
    links: tuple[Link, ...] = ()
    closed: tuple[Way, ...] = Field(
        default=(), description="from node to node: no hop goes this way; a link with one way closed is one-way"
    )
    closed_zones: tuple[Way, ...] = Field(default=(), description="from zone to zone: likewise")
    only_listed: bool = Field(default=False, description="no hop goes where neither `links` nor `zones` lists a link: the default is none")
    shared: tuple[SharedLink, ...] = Field(default=(), description="links that several nodes share on their way to all others")
    ingress: str = Field(default="", description="node where requests enter (the gateway's); empty: reached by `default`")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        names = Counter(link.name for link in self.shared)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"shared link {twice[0]!r} occurs twice")
        for way in self.closed:
            if way.source == way.target:
                raise ValueError(f"closed: {way.source!r} to itself is no link")
        return self


class Snapshot(Value):
    """Nodes and links at one moment."""

    nodes: tuple[Node, ...]
    network: Network = Network()
    observed_at: datetime | None = None

    def named(self, names: Container[str]) -> dict[str, Node]:
        """The nodes with these names. A plan has few nodes, and a cluster thousands."""
        return {node.name: node for node in self.nodes if node.name in names}

    def for_dtype(self, dtype: str) -> "Snapshot":
        """With the compute of each node for this data type, where it was measured."""
        if not [node for node in self.nodes if node.processors or (node.flops_by_dtype and dtype in node.flops_by_dtype)]:
            return self
        nodes = tuple(node.for_dtype(dtype) for node in self.nodes)
        return self if all(a is b for a, b in zip(nodes, self.nodes, strict=True)) else self.model_copy(update={"nodes": nodes})

    @model_validator(mode="after")
    def _measured_once(self) -> Self:
        for node in self.nodes:
            points: dict[tuple[int, str], set[tuple[int, int | None]]] = {}
            for number, time in enumerate(node.layer_times):
                known = points.setdefault((time.layer, time.processor), set())
                where = f"layer_times[{number}] of node {node.name!r} (layer {time.layer}"
                if (time.batch, time.context) in known:
                    raise ValueError(f"{where}, batch {time.batch}, context {time.context or 'any'}) occurs twice")
                if any((context is None) != (time.context is None) for _, context in known):
                    raise ValueError(f"{where}): either all times of a layer name a context, or none does")
                known.add((time.batch, time.context))
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        if len({node.name for node in self.nodes}) != len(self.nodes):
            twice = next(name for name, count in Counter(node.name for node in self.nodes).items() if count > 1)
            raise ValueError(f"node {twice!r} occurs twice")
        for node in self.nodes:
            if not node.processors:
                continue
            names = [processor.name for processor in node.processors]
            if len(set(names)) != len(names):
                raise ValueError(f"processors of node {node.name!r} need names of their own")
        return self
