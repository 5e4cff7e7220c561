"""Places that can hold a segment: a node, or one processor of a node that has several; and what others leave of it.

Others lower the bandwidth that we reach as they lower the compute, by one share. Memory is read by whoever runs: a core has only so many
misses outstanding, and a GPU that is shared runs one tenant's kernels at a time. While others run, we read nothing.
"""

from dataclasses import dataclass

from splitinference.core.values.cluster import Node, Processor, Snapshot
from splitinference.core.values.efficiency import Efficiency

LEAST_SHARE = 0.02
"""Share of a node that counts as free however busy others keep it: requests guarantee a pod that much, and times stay finite."""


@dataclass(frozen=True)
class Site:
    """A place for a segment: what it can do now. `flops_per_s` and `bandwidth_bytes_per_s` are nominal times what others leave;
    `efficiency` is what is reached of them."""

    node: Node
    processor: str
    flops_per_s: float
    bandwidth_bytes_per_s: float
    memory_bytes: int
    efficiency: Efficiency
    free_share: float
    """Share of the place's time that others leave, 0..1; an unknown utilization counts as none."""
    calibration: float = 1.0
    prefill_calibration: float = 1.0

    @property
    def label(self) -> str:
        """`node` or `node/processor`."""
        return f"{self.node.name}/{self.processor}" if self.processor else self.node.name


def free_share(node: Node) -> float:
    """Share of the node's time that others leave: 1 - utilization, at least LEAST_SHARE; 1 when unknown."""
    return _left(node.utilization)


def _left(utilization: float | None) -> float:
    return 1.0 if utilization is None else max(LEAST_SHARE, 1.0 - utilization)


def sites(node: Node) -> tuple[Site, ...]:
    """The places of one node: itself, or each of its processors."""

    def site(name: str, whole: Node | Processor) -> Site:
        share = _left(node.utilization if whole.utilization is None else whole.utilization)
        flops, bandwidth = whole.flops_per_s * share, whole.memory_bandwidth_bytes_per_s * share
        decode = node.calibration if whole.calibration is None else whole.calibration
        prefill = node.prefill_calibration if whole.prefill_calibration is None else whole.prefill_calibration
        return Site(node, name, flops, bandwidth, whole.memory_free_bytes, whole.efficiency, share, decode, prefill)

    return tuple(site(processor.name, processor) for processor in node.processors) or (site("", node),)


def site_of(snapshot: Snapshot, node: str, processor: str) -> Site | None:
    """The named place, or None if the snapshot does not have it."""
    for candidate in snapshot.nodes:
        if candidate.name == node:
            return next((site for site in sites(candidate) if site.processor == processor), None)
    return None
