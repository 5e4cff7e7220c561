"""Places and links as queues, first come first served; times by the cost model, for the true state of the node at that moment."""

from dataclasses import dataclass, field
from itertools import pairwise

from splitinference.core.cost.link import MESSAGE_BYTES, bytes_per_token
from splitinference.core.cost.predict import added_watts
from splitinference.core.cost.site import Site, site_of
from splitinference.core.cost.stage import StageCost, stage_cost
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Segment
from splitinference.core.values.problem import Problem
from splitinference.simulation.system.stepping import RecentSteps, Steps
from splitinference.simulation.system.world import World
from splitinference.simulation.traces.trace import Trace

TOKENS_ROUNDED_TO = 16
"""Lengths are rounded up to so many tokens, so that a few times are computed and not one for each length."""


@dataclass
class Place:
    """One node, or one processor of it: it does one thing at a time."""

    node: str
    free_at: float = 0.0
    busy_s: float = 0.0
    joules: float = 0.0


@dataclass
class Wire:
    """One direction of a link: it carries one message at a time."""

    free_at: float = 0.0


@dataclass
class _Known:
    node: Node
    site: Site
    costs: dict[tuple[int, int, int, int], StageCost] = field(default_factory=dict)


class Places:
    """All places and links."""

    def __init__(self, trace: Trace, world: World) -> None:
        self._problem: Problem = trace.problem
        self._world = world
        self._known: dict[tuple[str, str], _Known] = {}
        self._loads: dict[tuple[int, int], Problem] = {}
        self.places: dict[tuple[str, str], Place] = {}
        self.wires: dict[tuple[str, str], Wire] = {}
        self._hops: dict[tuple[str, str], tuple[float, float, float]] = {}
        self._hops_of = -1
        self.steps: dict[tuple[str, str, int, int], RecentSteps] = {}
        world.on_up.append(self._lost)

    def place(self, segment: Segment) -> Place:
        """The queue of the place where this segment is."""
        return self.places.setdefault((segment.node, segment.processor), Place(segment.node))

    def wire(self, source: str, target: str) -> Wire:
        """The queue of the link in this direction."""
        return self.wires.setdefault((source, target), Wire())

    def take(self, segment: Segment, now: float, prompt: int, output: int, *, prefill: bool) -> float:
        """Queue one step at the segment's place from `now` on; the time at which it is done, seconds.

        Of a batch, each step takes the place for its share and has its answer when the whole batch is done.
        """
        known, cost = self._cost(segment, prompt, output)
        place = self.place(segment)
        service = (cost.prefill_ms if prefill else cost.decode_ms) / 1e3
        taken = service if prefill else service / cost.batch
        begin = max(now, place.free_at)
        place.free_at = begin + taken
        place.busy_s += taken
        place.joules += taken * added_watts(known.site)
        if not prefill:
            self._seen(segment, known, cost, Steps(begin, begin + service, 1))
        return begin + service

    def account(self, segment: Segment, prompt: int, output: int, steps: Steps) -> None:
        """Count the work of decode steps that met no queue."""
        known, cost = self._cost(segment, prompt, output)
        place, seconds = self.place(segment), steps.count * cost.decode_ms / 1e3 / cost.batch
        place.busy_s += seconds
        place.joules += seconds * added_watts(known.site)
        if steps.count:
            self._seen(segment, known, cost, steps)

    def _seen(self, segment: Segment, known: _Known, cost: StageCost, steps: Steps) -> None:
        key = (segment.node, segment.processor, segment.start, segment.end)
        self.steps.setdefault(key, RecentSteps()).add(steps, cost.decode_ms - known.site.node.stage_overhead_ms)

    def send(self, source: str, target: str, boundary: int, tokens: int, ready_at: float) -> float:
        """Queue a message with so many tokens' activations on the link; the time at which it is there, seconds."""
        half_rtt, per_byte, _ = self.hop(source, target)
        wire = self.wire(source, target)
        size = bytes_per_token(self._problem, boundary) * tokens + MESSAGE_BYTES
        wire.free_at = max(ready_at, wire.free_at) + size * per_byte
        return wire.free_at + half_rtt

    def enter(self, target: str, tokens: int) -> float:
        """Seconds from the gateway to the first stage."""
        half_rtt, per_byte, _ = self.hop(self._problem.snapshot.network.ingress, target)
        return half_rtt + (bytes_per_token(self._problem, 0) * tokens + MESSAGE_BYTES) * per_byte

    def answer(self, nodes: tuple[str, ...]) -> float:
        """Seconds for the token's way back along the chain to the gateway."""
        chain = (self._problem.snapshot.network.ingress, *nodes)
        total = 0.0
        for before, after in pairwise(chain):
            half_rtt, per_byte, _ = self.hop(after, before)
            total += half_rtt + MESSAGE_BYTES * per_byte
        return total

    def hop(self, source: str, target: str) -> tuple[float, float, float]:
        """Half a round trip in s, s per byte, and bytes per s of the link now."""
        if self._hops_of != self._world.link_version:
            self._hops.clear()
            self._hops_of = self._world.link_version
        found = self._hops.get((source, target))
        if found is None:
            quality = self._world.links.quality(source, target)
            found = (quality.rtt_ms / 2e3, 1.0 / quality.bandwidth_bytes_per_s, quality.bandwidth_bytes_per_s)
            self._hops[source, target] = found
        return found

    def _cost(self, segment: Segment, prompt: int, output: int) -> tuple[_Known, StageCost]:
        known = self._site(segment)
        key = (segment.start, segment.end, prompt, output)
        cost = known.costs.get(key)
        if cost is None:
            cost = known.costs[key] = stage_cost(self._load(prompt, output), known.site, segment.start, segment.end)
        return known, cost

    def _site(self, segment: Segment) -> _Known:
        key, node = (segment.node, segment.processor), self._world.nodes[segment.node]
        known = self._known.get(key)
        if known is None or known.node is not node:
            site = site_of(self._problem.snapshot.model_copy(update={"nodes": (node,)}), *key)
            if site is None:
                raise ValueError(f"node {segment.node!r} has no place {segment.processor!r}")
            known = self._known[key] = _Known(node, site)
        return known

    def _load(self, prompt: int, output: int) -> Problem:
        found = self._loads.get((prompt, output))
        if found is None:
            workload = self._problem.workload.model_copy(update={"prompt_tokens": prompt, "output_tokens": output})
            found = self._loads[prompt, output] = self._problem.model_copy(update={"workload": workload})
        return found

    def _lost(self, node: str, up: bool) -> None:
        """What waited on a node that died is gone."""
        if not up:
            for place in self.places.values():
                if place.node == node:
                    place.free_at = 0.0


def rounded(tokens: int) -> int:
    """A length as times are computed for it."""
    return -(-tokens // TOKENS_ROUNDED_TO) * TOKENS_ROUNDED_TO
