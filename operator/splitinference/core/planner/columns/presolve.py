"""Nodes that no best chain needs, left out before any array is made: of thousands of nodes mostly a few hundred are left.

Of nodes that see all others over the same links, one is better than another if it is no worse in anything that a plan can tell. A
chain uses at most so many nodes as it can have segments. If a node has that many better ones, one of them is free and can take its
part. So the node can be left out, and the best chain is as good as before.
"""

from collections import defaultdict

import numpy as np

from splitinference.core.cost.checks.eligible import unusable
from splitinference.core.cost.predict import added_watts
from splitinference.core.cost.site import sites
from splitinference.core.cost.stage import no_slower
from splitinference.core.planner.chain.tables import Bools, Floats
from splitinference.core.values.cluster import Node
from splitinference.core.values.problem import Problem

MANY = 256
"""Of fewer nodes the arrays are small, and to compare nodes first takes as long as it saves."""
_TOGETHER = 500


def needed_nodes(problem: Problem, many: int = MANY) -> Problem:
    """The problem without nodes that a best chain does not need; the problem itself where it has fewer than `many` nodes."""
    nodes, bounds = problem.snapshot.nodes, problem.constraints
    if len(nodes) < many or bounds.max_stage_nodes > 1:
        return problem
    # Of several pipelines each has as many segments.
    each = min(n for n in (len(problem.profile.layers), bounds.max_segments) if n is not None)
    most = min(n for n in (each * bounds.pipelines, bounds.max_nodes) if n is not None)
    network = problem.snapshot.network
    special = {name for link in network.links for name in (link.source, link.target)}
    special |= {name for way in network.closed for name in (way.source, way.target)}
    special |= {network.ingress, *(pin.node for pin in bounds.pins), *(name for _, _, name in problem.serving)}
    groups: dict[object, list[int]] = defaultdict(list)
    for number, node in enumerate(nodes):
        if node.name in special or node.processors or node.layer_times or unusable(node, problem):
            continue
        trust = tuple(all(node.labels.get(k) == v for k, v in rule.labels.items()) for rule in bounds.trust)
        behind = tuple(shared.holds(node.name, node.zone) for shared in network.shared)
        groups[node.zone, trust, behind].append(number)
    dropped: set[int] = set()
    for members in groups.values():
        if len(members) > most:
            figures = np.array([_figures(nodes[number], problem) for number in members])
            better = _better(figures)
            dropped.update(number for number, count in zip(members, better, strict=True) if count >= most)
    if not dropped:
        return problem
    kept = tuple(node for number, node in enumerate(nodes) if number not in dropped)
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": kept})})


def _figures(node: Node, problem: Problem) -> list[float]:
    """What a plan can tell of a node; less is better in all."""
    (site,) = sites(node)
    return [
        *no_slower(site),
        -float(site.memory_bytes),
        node.stage_overhead_ms,
        node.utilization or 0.0,
        node.cost_per_hour if problem.counts_cost else 0.0,
        added_watts(site) if problem.counts_power else 0.0,
        node.busy_watts if problem.constraints.max_watts is not None else 0.0,
    ]


def _better(figures: Floats) -> list[int]:
    """For each row, how many others are no worse in every column; of equals the earlier one is better."""
    count = len(figures)
    number = np.arange(count)
    result: list[int] = []
    for start in range(0, count, _TOGETHER):
        part = figures[start : start + _TOGETHER]
        no_worse: Bools = np.ones((len(part), count), dtype=bool)
        no_better: Bools = np.ones((len(part), count), dtype=bool)
        for column in range(figures.shape[1]):
            no_worse &= figures[None, :, column] <= part[:, None, column]
            no_better &= figures[None, :, column] >= part[:, None, column]
        equal = no_worse & no_better
        no_worse &= ~equal | (number[None, :] < number[start : start + _TOGETHER, None])
        result.extend(int(n) for n in no_worse.sum(axis=1))
    return result
