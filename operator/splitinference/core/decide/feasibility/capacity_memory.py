"""What stood in the way of a walk that had begun: a fact for a while, so that a plan is not tried again as soon as the room wavers."""

from collections.abc import Mapping

from splitinference.core.decide.base.policy import Facts, Memory, Obstacle, Policy
from splitinference.core.decide.base.triggers import Reason, Trigger
from splitinference.core.transition.state import Resource


def remembered(memory: Memory, facts: Facts, policy: Policy, trigger: Trigger | None = None) -> Memory:
    """The memory without the obstacles of long ago; with those of now, where they are the reason to decide."""
    kept = {node: obstacle for node, obstacle in memory.obstacles.items() if facts.now - obstacle.at < policy.obstacle}
    if trigger is not None and trigger.reason is Reason.WALK_BLOCKED and facts.blocked is not None:
        for shortage in facts.blocked.short:
            left = shortage.free if shortage.resource is Resource.MEMORY else 0
            kept[shortage.node] = Obstacle(at=facts.now, free_bytes=left)
    return memory if kept == memory.obstacles else memory.model_copy(update={"obstacles": kept})


def room(obstacles: Mapping[str, Obstacle], facts: Facts) -> Mapping[str, int]:
    """The most bytes that segments may take on the nodes that were in the way: what was free there, or what our segments hold there now."""
    return {node: max(obstacle.free_bytes, facts.held_bytes.get(node, 0)) for node, obstacle in obstacles.items()}
