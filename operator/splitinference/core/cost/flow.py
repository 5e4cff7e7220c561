"""Tokens per second of runs of layers over nodes: the maximum flow from the gateway through runs that follow each other.

Every node that holds a run has the capacity of its stage, every link that of its bandwidth. A request may go on from a run that
ends at e to any run that starts at e; with partial runs, to any run that holds layer e and ends later (it then uses a part of that
run, and takes the node as long as the whole run does: a bound on the safe side).
"""

from collections import deque
from collections.abc import Iterable

from splitinference.core.cost.evaluate import UnknownPlaceError
from splitinference.core.cost.link import Links, hop
from splitinference.core.cost.site import Site, sites
from splitinference.core.cost.stage import stage_cost
from splitinference.core.values.cluster import LinkQuality
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem

_ENOUGH = 1e-12


class Flow:
    """A network with capacities; blocking flows over levels (Dinic 1970)."""

    def __init__(self, count: int) -> None:
        self._edges: list[list[int]] = [[] for _ in range(count)]
        self._target: list[int] = []
        self._left: list[float] = []

    def add(self, source: int, target: int, capacity: float) -> int:
        """An edge; the answer is its index, for `used`."""
        index = len(self._target)
        for a, b, room in ((source, target, capacity), (target, source, 0.0)):
            self._edges[a].append(len(self._target))
            self._target.append(b)
            self._left.append(room)
        return index

    def used(self, index: int) -> float:
        """Flow over an edge."""
        return self._left[index + 1]

    def maximum(self, source: int, sink: int) -> float:
        """The largest flow from source to sink."""
        total = 0.0
        while (levels := self._levels(source, sink)) is not None:
            total += self._blocking(source, sink, levels)
        return total

    def _levels(self, source: int, sink: int) -> list[int] | None:
        """How many edges with room lead from the source to each point, -1 where none do; None if the sink is not reached."""
        levels = [-1] * len(self._edges)
        levels[source] = 0
        queue = deque([source])
        while queue:
            here = queue.popleft()
            for edge in self._edges[here]:
                there = self._target[edge]
                if levels[there] < 0 and self._left[edge] > _ENOUGH:
                    levels[there] = levels[here] + 1
                    queue.append(there)
        return levels if levels[sink] >= 0 else None

    def _blocking(self, source: int, sink: int, levels: list[int]) -> float:
        """Send along paths that go one level on with each edge, until none is left. An edge that is done with is not looked at again."""
        total, trail, here = 0.0, list[int](), source
        tried = [0] * len(self._edges)
        while True:
            if here == sink:
                room = min(self._left[edge] for edge in trail)
                total += room
                for edge in trail:
                    self._left[edge] -= room
                    self._left[edge ^ 1] += room
                # Back to before the first edge that is full.
                first = next(n for n, edge in enumerate(trail) if self._left[edge] <= _ENOUGH)
                here = self._target[trail[first] ^ 1]
                del trail[first:]
                continue
            edges = self._edges[here]
            while tried[here] < len(edges):
                edge = edges[tried[here]]
                if levels[self._target[edge]] == levels[here] + 1 and self._left[edge] > _ENOUGH:
                    break
                tried[here] += 1
            if tried[here] < len(edges):
                trail.append(edges[tried[here]])
                here = self._target[trail[-1]]
            elif here == source:
                return total
            else:
                here = self._target[trail.pop() ^ 1]
                tried[here] += 1


Run = tuple[Site, int, int]
"""A place and the layers [start, end) that it holds."""


def follows(end: int, run: Run, partial: bool) -> bool:
    """Whether a request that has passed `end` layers may go on with `run`."""
    return run[1] == end or (partial and run[1] < end < run[2])


def flow_over(runs: Iterable[Run], problem: Problem) -> tuple[float, list[tuple[int, int, float]]]:
    """Tokens per second through `runs`, and over which pairs they go: (from, to, tokens/s), -1 is the gateway."""
    held = list(runs)
    layers, partial = len(problem.profile.layers), problem.constraints.partial_runs
    network, batch = problem.snapshot.network, problem.workload.batch
    links = Links(network, problem.snapshot.nodes)
    least = problem.constraints.min_bandwidth_bytes_per_s or 0.0
    source, sink = 2 * len(held), 2 * len(held) + 1
    graph = Flow(2 * len(held) + 2)
    edges: list[tuple[int, int, int]] = []

    def tokens(occupancy_ms: float) -> float:
        return 1e3 * batch / occupancy_ms

    starting: dict[int, list[int]] = {}
    for number, (_, start, _) in enumerate(held):
        starting.setdefault(start, []).append(number)

    for number, (site, start, end) in enumerate(held):
        graph.add(2 * number, 2 * number + 1, tokens(stage_cost(problem, site, start, end).occupancy_ms))
        if start == 0 and links.is_open(network.ingress, site.node.name):
            there, back = links.quality(network.ingress, site.node.name), links.quality(site.node.name, network.ingress)
            edges.append((-1, number, graph.add(source, 2 * number, tokens(hop(problem, 0, there, back).occupancy_ms))))
        if end == layers:
            graph.add(2 * number + 1, sink, float("inf"))
            continue
        for other in range(len(held)) if partial else starting.get(end, ()):
            run = held[other]
            if other == number or not follows(end, run, partial):
                continue
            there, back = links.quality(site.node.name, run[0].node.name), links.quality(run[0].node.name, site.node.name)
            if min(there.bandwidth_bytes_per_s, back.bandwidth_bytes_per_s) < least:
                continue
            if not links.is_open(site.node.name, run[0].node.name):
                continue
            room = tokens(hop(problem, end, there, back).occupancy_ms)
            edges.append((number, other, graph.add(2 * number + 1, 2 * other, room)))
    total = graph.maximum(source, sink)
    flows = [(a, b, graph.used(edge)) for a, b, edge in edges if graph.used(edge) > _ENOUGH]
    part = _that_shared_links_pass(flows, held, links, problem)
    return part * total, [(a, b, part * flow) for a, b, flow in flows]


def _that_shared_links_pass(flows: list[tuple[int, int, float]], held: list[Run], links: Links, problem: Problem) -> float:
    """The share of a flow that the links pass which several hops share: all of it is throttled as the fullest of them.

    That is what this flow can do; another one that goes over them less may do more.
    """
    if not problem.snapshot.network.shared:
        return 1.0
    taken: dict[tuple[str, str], float] = {}
    for a, b, flow in flows:
        source = problem.snapshot.network.ingress if a < 0 else held[a][0].node.name
        for link, way in links.shared(source, held[b][0].node.name):
            whole = LinkQuality(bandwidth_bytes_per_s=link.bandwidth_bytes_per_s, rtt_ms=0.0)
            step = hop(problem, 0 if a < 0 else held[a][2], whole, whole).occupancy_ms
            taken[link.name, way] = taken.get((link.name, way), 0.0) + flow * step / (1e3 * problem.workload.batch)
    return 1.0 / max(1.0, *taken.values(), 1.0)


def runs_of(plan: Plan, problem: Problem) -> list[Run]:
    """The runs that a plan's nodes hold, each place once, by name. Raises UnknownPlaceError for a place that the snapshot lacks."""
    found: dict[tuple[str, str], Run] = {}
    places = {(node.name, site.processor): site for node in problem.snapshot.nodes for site in sites(node)}
    for segment in plan.segments:
        for name in segment.nodes:
            site = places.get((name, segment.processor))
            if site is None:
                raise UnknownPlaceError(f"the snapshot has no place {name}/{segment.processor}")
            found[name, segment.processor] = (site, *segment.held)
    return [found[key] for key in sorted(found)]


def tokens_per_s(plan: Plan, problem: Problem) -> float:
    """Tokens per second of the runs that a plan holds, over the best paths; its shares say how they are reached."""
    total, _ = flow_over(runs_of(plan, problem), problem)
    return total
