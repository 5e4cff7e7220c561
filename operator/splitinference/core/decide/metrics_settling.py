"""Whether the utilization of the plan's nodes still changes. While it does, a mean over a window shows neither the old nor the new load.

If several nodes get busy at once, the first one to show would cause a move, and the second one another. So an optional move waits until
the utilization of the plan's nodes is stable, for two windows at most. While the SLO is violated, nothing waits.
"""

from datetime import datetime

from splitinference.core.decide.base.policy import DecisionInputs, Level, Memory, Policy

STEP = 0.1
"""A change of utilization by more than this is a change of level."""


def update_levels(inputs: DecisionInputs, policy: Policy, memory: Memory) -> Memory:
    """The memory with the present levels of the plan's nodes. Unknown ones keep their last level."""
    levels = {}
    names = dict.fromkeys(name for segment in (inputs.plan.segments if inputs.plan else ()) for name in segment.nodes)
    nodes = inputs.problem.snapshot.named(names)
    for name in names:
        was, now = memory.levels.get(name), nodes[name].utilization if name in nodes else None
        level = was if now is None else _moved(was, now, inputs.now, policy)
        if level is not None:
            levels[name] = level
    return memory if levels == memory.levels else memory.model_copy(update={"levels": levels})


def settling(memory: Memory, inputs: DecisionInputs, policy: Policy) -> bool:
    """Whether a node of the plan changed within the last `spacing`, and has not been changing for two windows already."""
    return any(
        level.changing_since is not None
        and inputs.now - level.since < policy.spacing
        and inputs.now - level.changing_since < 2 * policy.window
        for level in memory.levels.values()
    )


def _moved(was: Level | None, utilization: float, now: datetime, policy: Policy) -> Level:
    if was is None:
        return Level(utilization=round(utilization, 4), since=now)
    if abs(utilization - was.utilization) <= STEP:
        return was
    changing = was.changing_since if was.changing_since is not None and now - was.since < policy.spacing else now
    return Level(utilization=round(utilization, 4), since=now, changing_since=changing)
