"""A bound for clusters that are far apart: each that a chain visits costs at least one long hop.

The dynamic programme forgets which places are taken, and prices only make it use each place once on average. So it mixes chains that
each stay in one cluster, and never pays for the way between clusters. This bound puts those hops back. With clusters of places, D the
least hop from one cluster to another, and tau the least hop of all, a chain's cost is

    cost with every long hop lowered by D - tau  +  the sum of D - tau over its long hops.

For a chain that visits the clusters S, the first part is at least the priced relaxation over the places of S, and the second at least
the shortest path through S under the shortest distances of D - tau. The least over all S is a bound for every chain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from splitinference.core.planner.chain.bounds.dual import price
from splitinference.core.planner.chain.bounds.relaxed import Step
from splitinference.core.planner.chain.tables import Floats, Ints
from splitinference.core.planner.chain.task import SLACK, Task

MOST_REGIONS = 8
"""All subsets are looked at: so many clusters at most."""
APART = 3.0
"""Clusters count as far apart if the least hop between them is so many times the longest hop needed to connect one inside."""


@dataclass(frozen=True)
class Region:
    """What is known of the chains that visit exactly these clusters."""

    members: tuple[int, ...]
    way: float
    inside: float

    @property
    def bound(self) -> float:
        """A bound for those chains."""
        return self.inside + self.way


@dataclass(frozen=True)
class RegionBound:
    """The bound, and the cheapest valid chain met on the way, by the task's classes."""

    bound: float
    steps: tuple[Step, ...] | None
    value: float


def region_bound(task: Task, value: float, bound: float, rounds: int, expired: Callable[[], bool]) -> RegionBound | None:
    """A bound for chains better than `value`; `bound` is one that is known.

    None where it does not apply: a goal that is no sum, limits on sums, processors that share a node, or no clusters that are far apart.
    `rounds` of prices are spent on each set of clusters, the least bound first.
    """
    if not task.is_a_sum or task.resources or task.tables.shares_node.any() or not math.isfinite(value):
        return None
    hops = _least_hops(task)
    region = regions_of(hops)
    if region is None:
        return None
    least = float(hops[np.isfinite(hops)].min())
    between = _between(hops, region) - least
    less = np.where(np.isfinite(between), between, 0.0)[np.ix_(region, region)]
    count = len(between)
    known = [Region(s, _way(between, s), -math.inf) for k in range(1, count + 1) for s in combinations(range(count), k)]
    known = [r for r in known if _holds(task, np.flatnonzero(np.isin(region, r.members)))]
    best: RegionBound = RegionBound(bound, None, value)
    tried: set[tuple[int, ...]] = set()
    while known:
        lowest = min(known, key=lambda r: (r.bound, -len(r.members)))
        best = replace(best, bound=max(best.bound, min(lowest.bound, best.value)))
        if lowest.bound >= best.value - SLACK * abs(best.value) or lowest.members in tried or expired():
            return best
        tried.add(lowest.members)
        classes = np.flatnonzero(np.isin(region, lowest.members)).tolist()
        part = task.only(classes)
        lowered = part.plain.lowered(less[np.ix_(classes, classes)])
        found = price(part, best.value, rounds, expired, lowered=lowered)
        if found.steps is not None and found.value < best.value:
            best = RegionBound(best.bound, tuple(Step(s.start, s.end, classes[s.place]) for s in found.steps), found.value)
        # What holds for chains within these clusters holds within fewer of them.
        known = [replace(r, inside=max(r.inside, found.bound)) if set(r.members) <= set(lowest.members) else r for r in known]
    return replace(best, bound=best.value)


def regions_of(hops: Floats) -> Ints | None:
    """The cluster of each class, from the least hops between classes; None where there are none that are far apart.

    Single linkage: classes are connected by their shortest hops, and cut where the next hop is longest beside the one before. A hop
    between two members of one class counts too.
    """
    count = len(hops)
    both = np.minimum(hops, hops.T)
    np.fill_diagonal(both, np.inf)
    joined, edges = np.zeros(count, dtype=bool), []
    joined[0] = True
    nearest, source = both[0].copy(), np.zeros(count, dtype=np.int64)
    for _ in range(count - 1):
        nearest[joined] = np.inf
        new = int(np.argmin(nearest))
        if not math.isfinite(nearest[new]):
            new = int(np.argmin(joined))
            edges.append((math.inf, 0, new))
        else:
            edges.append((float(nearest[new]), int(source[new]), new))
        joined[new] = True
        closer = both[new] < nearest
        nearest[closer], source[closer] = both[new][closer], new
    edges += [(float(hops[c, c]), c, c) for c in range(count) if math.isfinite(hops[c, c])]
    edges.sort(key=lambda edge: edge[0])
    heights = [edge[0] for edge in edges]
    for cut in sorted(range(1, len(edges)), key=lambda k: -_ratio(heights[k - 1], heights[k])):
        if _ratio(heights[cut - 1], heights[cut]) < APART:
            break
        found = _components(count, [(a, b) for _, a, b in edges[:cut]])
        if 1 < int(found.max()) + 1 <= MOST_REGIONS:
            return found
    return None


def _ratio(one: float, next_one: float) -> float:
    """How many times longer the next hop is; 0 where both lead nowhere."""
    return next_one / max(one, 1e-12) if math.isfinite(one) else 0.0


def _components(count: int, edges: list[tuple[int, int]]) -> Ints:
    label = list(range(count))

    def root(x: int) -> int:
        while label[x] != x:
            x = label[x]
        return x

    for a, b in edges:
        label[root(a)] = root(b)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(c), len(numbers)) for c in range(count)], dtype=np.int64)


def _least_hops(task: Task) -> Floats:
    """Class by class: the least cost of a hop over any boundary."""
    least = np.full((task.tables.count, task.tables.count), np.inf)
    seen: set[int] = set()
    for boundary in range(1, task.tables.layers):
        hops = task.plain.hops(boundary)
        if task.tables.points[boundary] and id(hops) not in seen:
            seen.add(id(hops))
            np.minimum(least, hops, out=least)
    return least


def _between(hops: Floats, region: Ints) -> Floats:
    """Cluster by cluster: the least hop from one to the other; the diagonal is the least hop of all."""
    count = int(region.max()) + 1
    between = np.full((count, count), float(hops[np.isfinite(hops)].min()))
    for a in range(count):
        for b in range(count):
            if a != b:
                between[a, b] = hops[np.ix_(region == a, region == b)].min()
    return between


def _way(between: Floats, members: tuple[int, ...]) -> float:
    """The shortest path through all `members`, which may lead over other clusters too."""
    short = between.copy()
    for k in range(len(short)):
        np.minimum(short, short[:, k : k + 1] + short[k : k + 1, :], out=short)
    size = len(members)
    best = np.full((1 << size, size), np.inf)
    for i in range(size):
        best[1 << i, i] = 0.0
    for done in range(1, 1 << size):
        for last in range(size):
            if math.isfinite(best[done, last]):
                for new in range(size):
                    if not done >> new & 1:
                        way = best[done, last] + short[members[last], members[new]]
                        best[done | 1 << new, new] = min(best[done | 1 << new, new], way)
    return float(best[-1].min())


def _holds(task: Task, classes: Ints) -> bool:
    """Whether the places of `classes` have room for all layers, each as if it held its longest segment."""
    longest = np.zeros(len(classes), dtype=np.int64)
    for start, mask in enumerate(task.allowed[:-1]):
        ends = np.where(mask[classes], np.arange(mask.shape[1])[None, :] - start, 0)
        np.maximum(longest, ends.max(axis=1), out=longest)
    return int((longest * task.tables.multiplicity[classes]).sum()) >= task.tables.layers
