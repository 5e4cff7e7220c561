"""A plan laid over a problem: every stage with its places and times, every hop, what each place and link is taken for."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from splitinference.core.cost.link import Hop, Links, hop
from splitinference.core.cost.site import Site, sites
from splitinference.core.cost.stage import StageCost, memory_bytes, sequences_on, stage_cost
from splitinference.core.values.cluster import LinkQuality, Node
from splitinference.core.values.plan import Plan, Segment
from splitinference.core.values.problem import Goal, Problem
from splitinference.core.values.profile import LinkEncoding


class UnknownPlaceError(Exception):
    """A plan names a node or processor that the snapshot does not have."""


@dataclass(frozen=True)
class EvaluatedStage:
    """One segment with its places, and the hop to the next stage (None for the last)."""

    segment: Segment
    sites: tuple[Site, ...]
    costs: tuple[StageCost, ...]
    to_next: Hop | None

    @property
    def prefill_ms(self) -> float:
        """Of several nodes that hold the stage, the slowest one's."""
        return max(cost.prefill_ms for cost in self.costs)

    @property
    def decode_ms(self) -> float:
        """Of several nodes that hold the stage, the slowest one's."""
        return max(cost.decode_ms for cost in self.costs)


@dataclass(frozen=True)
class EvaluatedChain:
    """One pipeline laid over the problem; `share` of all requests take it."""

    stages: tuple[EvaluatedStage, ...]
    ingress: Hop
    share: float

    @property
    def time_to_first_token_ms(self) -> float:
        """The prompt through all stages and hops, and the token back."""
        hops = [stage.to_next.prefill_ms for stage in self.stages if stage.to_next]
        return math.fsum([self.ingress.prefill_ms, *hops, *(stage.prefill_ms for stage in self.stages)])

    @property
    def time_per_output_token_ms(self) -> float:
        """One decode step through all stages and hops, and the token back."""
        hops = [stage.to_next.decode_ms for stage in self.stages if stage.to_next]
        return math.fsum([self.ingress.decode_ms, *hops, *(stage.decode_ms for stage in self.stages)])


@dataclass
class Load:
    """What the plan lays on places: occupancy of each place and link in ms per step of every pipeline, work per request, memory."""

    place_ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    link_ms: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    busy_ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    memory: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))


@dataclass(frozen=True)
class Evaluation:
    """A plan with all its times and loads, and the nodes that it uses; made by `evaluate`."""

    chains: tuple[EvaluatedChain, ...]
    load: Load
    nodes: dict[str, Node]

    @property
    def stages(self) -> tuple[EvaluatedStage, ...]:
        """All stages, chain by chain."""
        return tuple(stage for chain in self.chains for stage in chain.stages)


def evaluate(plan: Plan, problem: Problem) -> Evaluation:
    """Lay the plan over the problem. Raises UnknownPlaceError if the snapshot lacks one of its nodes or processors."""
    snapshot = problem.snapshot
    nodes = snapshot.named(_names(plan))
    places = {(node.name, site.processor): site for node in nodes.values() for site in sites(node)}
    links = Links(snapshot.network, snapshot.nodes)
    total = math.fsum(pipeline.share for pipeline in plan.pipelines)
    chains = []
    for pipeline in plan.pipelines:
        groups = [_sites_of(segment, places) for segment in pipeline.segments]
        ingress = _slowest_hop(problem, links, 0, None, groups[0])
        stages = []
        for number, (segment, group) in enumerate(zip(pipeline.segments, groups, strict=True)):
            costs = tuple(stage_cost(problem, site, segment.start, segment.end) for site in group)
            following = groups[number + 1] if number + 1 < len(groups) else None
            to_next = _slowest_hop(problem, links, segment.end, group, following, encoding=segment.link_encoding) if following else None
            stages.append(EvaluatedStage(segment, group, costs, to_next))
        chains.append(EvaluatedChain(tuple(stages), ingress, pipeline.share / total))
    return Evaluation(tuple(chains), _load(chains, problem, links), nodes)


def _names(plan: Plan) -> set[str]:
    return {name for segment in plan.segments for name in segment.nodes}


def _sites_of(segment: Segment, places: dict[tuple[str, str], Site]) -> tuple[Site, ...]:
    try:
        return tuple(places[name, segment.processor] for name in segment.nodes)
    except KeyError as missing:
        node, processor = missing.args[0]
        raise UnknownPlaceError(f"the snapshot has no node {node!r}" + (f" with processor {processor!r}" if processor else "")) from None


def _slowest_hop(
    problem: Problem, links: Links, boundary: int, source: tuple[Site, ...] | None, target: tuple[Site, ...],
    *, encoding: LinkEncoding | None = None,
) -> Hop:  # fmt: skip
    names = [problem.snapshot.network.ingress] if source is None else [site.node.name for site in source]
    hops = [_hop(problem, links, boundary, (a, b.node.name), encoding) for a in names for b in target]
    return Hop(max(h.prefill_ms for h in hops), max(h.decode_ms for h in hops), max(h.occupancy_ms for h in hops))


def _hop(problem: Problem, links: Links, boundary: int, way: tuple[str, str], encoding: LinkEncoding | None) -> Hop:
    source, target = way
    return hop(problem, boundary, links.quality(source, target), links.quality(target, source), encoding)


def _load(chains: list[EvaluatedChain], problem: Problem, links: Links) -> Load:
    """Occupancies count one step of each chain, weighted so that evenly spread chains weigh 1 each."""
    load, held = Load(), set()
    outside = problem.snapshot.network.ingress
    for chain in chains:
        weight = chain.share * len(chains)
        previous: list[tuple[str, str]] = [("gateway", outside)]
        encoding: LinkEncoding | None = None
        for stage in chain.stages:
            even = weight / len(stage.sites)
            for site, cost in zip(stage.sites, stage.costs, strict=True):
                load.place_ms[site.label] += even * cost.occupancy_ms
                load.busy_ms[site.node.name] += chain.share / len(stage.sites) * cost.busy_ms_per_request
                key = (site.label, stage.segment.held)
                if problem.objective.goal is not Goal.THROUGHPUT or key not in held:
                    held.add(key)
                    load.memory[site.node.name, site.processor] += memory_bytes(
                        problem, *stage.segment.held, sequences_on(problem, site, *stage.segment.held)
                    )
                for label, name in previous:
                    step = _hop(problem, links, stage.segment.start, (name, site.node.name), encoding).occupancy_ms
                    load.link_ms[label, site.label] += even / len(previous) * step
                    for shared, way in links.shared(name, site.node.name):
                        whole = LinkQuality(bandwidth_bytes_per_s=shared.bandwidth_bytes_per_s, rtt_ms=0.0)
                        taken = hop(problem, stage.segment.start, whole, whole, encoding).occupancy_ms
                        load.link_ms[f"shared link {shared.name}", way] += even / len(previous) * taken
            previous, encoding = [(site.label, site.node.name) for site in stage.sites], stage.segment.link_encoding
    return load
