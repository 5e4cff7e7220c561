"""Remembers which nodes blocked a transition, so that the same plan is not tried again as soon as their free memory wavers."""

from collections.abc import Mapping

from splitinference.core.decide.base.policy import DecisionInputs, Memory, Obstacle, Policy
from splitinference.core.decide.base.triggers import Reason, Trigger
from splitinference.core.transition.state import ShortOf


def update_obstacles(memory: Memory, inputs: DecisionInputs, policy: Policy, trigger: Trigger | None = None) -> Memory:
    """The memory without expired obstacles, and with the present ones if they are the trigger."""
    kept = {node: obstacle for node, obstacle in memory.obstacles.items() if inputs.now - obstacle.at < policy.obstacle}
    if trigger is not None and trigger.reason is Reason.TRANSITION_BLOCKED and inputs.blocked is not None:
        for shortage in inputs.blocked.short:
            left = shortage.free if shortage.resource is ShortOf.MEMORY else 0
            kept[shortage.node] = Obstacle(at=inputs.now, free_bytes=left)
    return memory if kept == memory.obstacles else memory.model_copy(update={"obstacles": kept})


def memory_limits(obstacles: Mapping[str, Obstacle], inputs: DecisionInputs) -> Mapping[str, int]:
    """For each obstacle, the most bytes that segments may take there: the free memory of that time, or what our segments hold now."""
    return {node: max(obstacle.free_bytes, inputs.held_bytes.get(node, 0)) for node, obstacle in obstacles.items()}
