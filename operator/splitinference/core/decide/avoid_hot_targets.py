"""Keeps optional moves from taking layers from a calm node to one that is too busy.

The busier a node is, the less certain is its prediction. A plan that moved there would meet the reason to move again at once.
"""

from splitinference.core.cost.stage import memory_bytes
from splitinference.core.decide.feasibility.restrict import with_room
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem


def goes_to_busier(current: Plan, plan: Plan, problem: Problem, limit: float) -> bool:
    """Whether a layer would move to a node of which others use more than `limit`, 0..1, and more than of its present node. Of several
    pipelines, only those that both plans have are compared."""
    used = {node.name: node.utilization or 0.0 for node in problem.snapshot.nodes}

    def computed(of: Plan) -> list[dict[int, float]]:
        return [
            {layer: max(used.get(name, 0.0) for name in s.nodes) for s in pipeline.segments for layer in range(s.start, s.end)}
            for pipeline in of.pipelines
        ]

    pairs = zip(computed(current), computed(plan), strict=False)
    return any(share > max(limit, before.get(layer, 0.0)) for before, after in pairs for layer, share in after.items())


def no_more_on_busy(current: Plan, problem: Problem, limit: float) -> Problem:
    """The problem in which busy nodes hold no more memory than in the current plan."""
    held = {node.name: 0 for node in problem.snapshot.nodes if (node.utilization or 0.0) > limit}
    for segment in current.segments:
        for name in segment.nodes:
            if name in held:
                held[name] += memory_bytes(problem, *segment.held)
    return with_room(problem, held)
