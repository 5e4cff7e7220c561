"""Whether what is known of the plan's nodes still changes: a mean over a window says on its way up neither what was nor what will be.

Where several nodes get busy at once, the first that shows would be answered by a move, and the second by another. So a move that may
wait waits until the utilization of the plan's nodes keeps still, within bounds: what never keeps still puts nothing off for ever. Where
clients' limits are broken nothing waits.
"""

from datetime import datetime

from splitinference.core.decide.base.policy import Facts, Level, Memory, Policy

STEP = 0.1
"""So much of a node, gained or lost, is a change."""


def followed(facts: Facts, policy: Policy, memory: Memory) -> Memory:
    """The memory with the levels of the plan's nodes as they are now. What is not known now stays as it was."""
    used = {node.name: node.utilization for node in facts.problem.snapshot.nodes}
    levels = {}
    for name in dict.fromkeys(name for segment in (facts.plan.segments if facts.plan else ()) for name in segment.nodes):
        was, now = memory.levels.get(name), used.get(name)
        level = was if now is None else _moved(was, now, facts.now, policy)
        if level is not None:
            levels[name] = level
    return memory if levels == memory.levels else memory.model_copy(update={"levels": levels})


def settling(memory: Memory, facts: Facts, policy: Policy) -> bool:
    """Whether a node of the plan changed within the last share of the window, and has not been changing for two windows already."""
    return any(
        level.changing_since is not None
        and facts.now - level.since < policy.spacing
        and facts.now - level.changing_since < 2 * policy.window
        for level in memory.levels.values()
    )


def _moved(was: Level | None, utilization: float, now: datetime, policy: Policy) -> Level:
    if was is None:
        return Level(utilization=round(utilization, 4), since=now)
    if abs(utilization - was.utilization) <= STEP:
        return was
    changing = was.changing_since if was.changing_since is not None and now - was.since < policy.spacing else now
    return Level(utilization=round(utilization, 4), since=now, changing_since=changing)
