"""How long segments take to start: what passes on any node, and work of one core that a small or busy node stretches.

A server's start is mostly imports, and weights are read and converted by one thread. So a start uses one core at most, and of a node on
which others leave less it gets what they leave; but not less than a segment requests, which the scheduler set aside for it.
"""

from dataclasses import dataclass

from splitinference.core.cost.site import free_share
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem

REQUESTED_CORES = 0.1
"""Cores that a segment requests unless the operator's settings say otherwise: it gets them however busy others keep the node."""


@dataclass(frozen=True)
class Start:
    """What starting costs. `clock_s`: seconds on any node (scheduling, volumes, probes, the proof); `work_s`: seconds of one core for the
    server without weights; `load_bytes_per_s`: weights that one core loads in a second."""

    clock_s: float
    work_s: float
    load_bytes_per_s: float

    def server_s(self, node: Node) -> float:
        """Seconds until a server without weights would answer."""
        return self.clock_s + self.work_s / usable_cores(node)

    def load_s(self, node: Node, weight_bytes: int) -> float:
        """Seconds for its weights, from the node's own disk."""
        return weight_bytes / self.load_bytes_per_s / usable_cores(node)


def usable_cores(node: Node) -> float:
    """Cores that a starting segment gets on the node, at most 1. A node that does not say how many it has counts as one core."""
    cores = 1.0 if node.cores is None else node.cores
    return min(1.0, cores, max(cores * free_share(node), REQUESTED_CORES))


def to_load(plan: Plan, problem: Problem) -> tuple[tuple[str, int], ...]:
    """Node and weight bytes of each segment that does not serve now: one whose layers and node are unchanged loads nothing."""
    serving = set(problem.serving)
    wanted = {(*segment.held, node, segment.processor) for segment in plan.segments for node in segment.nodes}
    missing = sorted((start, end, node) for start, end, node, _ in wanted if (start, end, node) not in serving)
    return tuple((node, problem.profile.weight_bytes(start, end)) for start, end, node in missing)


def starting_seconds(plan: Plan, problem: Problem, start: Start) -> tuple[float, str]:
    """Seconds until all of the plan's segments serve, and the node that takes longest; 0 and no node where none is to be started.

    Servers start at the same time; weights are counted one after the other, as nodes may share the disk or the link that they come by.
    """
    nodes = {node.name: node for node in problem.snapshot.nodes}
    missing = [(nodes[name], size) for name, size in to_load(plan, problem)]
    if not missing:
        return 0.0, ""
    seconds = max(start.server_s(node) for node, _ in missing) + sum(start.load_s(node, size) for node, size in missing)
    return seconds, max(missing, key=lambda found: start.server_s(found[0]) + start.load_s(*found))[0].name
