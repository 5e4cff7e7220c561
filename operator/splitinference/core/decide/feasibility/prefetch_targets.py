"""The likely target of a future move: where a segment would go if its node could no longer hold it."""

from collections.abc import Iterator
from itertools import islice

from splitinference.core.cost import objective_value, violations
from splitinference.core.cost.checks.eligible import forbidden, unusable
from splitinference.core.cost.site import sites
from splitinference.core.cost.stage import memory_bytes, stage_cost
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Plan, Segment
from splitinference.core.values.problem import Problem, Slo

_MOST_JUDGED = 8
"""Number of nodes, quickest for the segment alone first, that are compared with the whole chain, links included."""


def likely_target(segment: Segment, plan: Plan, problem: Problem) -> str | None:
    """The best node outside the plan for this segment if all others stay. None if no node can hold it.

    This is an estimate by the cost model, without the solver: split points stay, and one segment moves. The SLO is not a limit here.
    """
    if len(plan.pipelines) != 1 or segment.processor or segment.replicas:
        return None
    anyhow = problem.model_copy(update={"slo": Slo()})
    judged = []
    for node in islice(quickest(segment, plan, anyhow), _MOST_JUDGED):
        moved = tuple(other.model_copy(update={"node": node.name}) if other == segment else other for other in plan.segments)
        instead = plan.model_copy(update={"pipelines": (plan.pipelines[0].model_copy(update={"segments": moved}),)})
        if not violations(instead, anyhow):
            judged.append((objective_value(instead, anyhow), node.name))
    return min(judged)[1] if judged else None


def quickest(segment: Segment, plan: Plan, problem: Problem) -> Iterator[Node]:
    """Nodes outside the plan that can hold the segment, quickest first. Nodes whose use by others is unknown are left out."""
    taken = {name for other in plan.segments for name in other.nodes}
    needed = memory_bytes(problem, segment.start, segment.end)
    able = []
    for node in problem.snapshot.nodes:
        if node.name in taken or node.processors or node.utilization is None or node.memory_free_bytes < needed:
            continue
        if unusable(node, problem) or any(forbidden(node, layer, problem.constraints) for layer in range(segment.start, segment.end)):
            continue
        able.append((stage_cost(problem, sites(node)[0], segment.start, segment.end).decode_ms, node.name, node))
    return (node for _, _, node in sorted(able, key=lambda found: found[:2]))
