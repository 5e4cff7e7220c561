"""From a resource's spec to the core's policy of adaptation, and to the strategy of its walks."""

from datetime import timedelta

from splitinference.controller.api.sections.adaptation_spec import Adaptation
from splitinference.controller.api.sections.scaling_spec import Scaling
from splitinference.core.decide.base.policy import Mode, Policy
from splitinference.core.decide.scaling import ScalingPolicy
from splitinference.core.transition.steps import Strategy


def policy(spec: Adaptation) -> Policy:
    """When an optional move is worth it. New cuts must be better than moving by as much as moving must be better than staying."""
    return Policy(
        mode=Mode(spec.mode.value),
        utilization_limit=spec.thresholds.utilization_percent / 100,
        window=spec.window,
        confirmations=spec.confirmations,
        cooldown=spec.cooldown,
        stabilization=spec.stabilization,
        min_gain=spec.min_gain_percent / 100,
        resplit_gain=spec.min_gain_percent / 100,
        moves_per_hour=spec.max_moves_per_hour,
        review=max(spec.window, timedelta(seconds=30)),
    )


def scaling(spec: Scaling) -> ScalingPolicy:
    """How many pipelines there may be, and how steadily their number follows the load."""
    return ScalingPolicy(least=spec.min, most=spec.max, target=spec.target_percent / 100, down_after=spec.down_after, idle=spec.idle_after)


def strategy(spec: Adaptation) -> Strategy:
    """What to do where a node cannot hold the old segment and the new one."""
    return Strategy(spec.strategy.value)
