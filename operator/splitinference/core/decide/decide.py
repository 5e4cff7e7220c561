"""One decision: check triggers, solve, compare. The decision is a value with its reason."""

from splitinference.core.decide import stabilization_window
from splitinference.core.decide.approved import adopt_approved
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Mode, Policy
from splitinference.core.decide.base.triggers import Reason, check
from splitinference.core.decide.base.validated_solver import DryRun, Solve, Solver, always_reachable
from splitinference.core.decide.early_load_signal import with_early_load
from splitinference.core.decide.mandatory import mandatory
from splitinference.core.decide.metrics_settling import settling, update_levels
from splitinference.core.decide.optional import optional
from splitinference.core.values.result import Limits

_MAY_WAIT = (Reason.UTILIZATION_SHIFTED, Reason.LINK_DEGRADED)
"""Reasons that wait while metrics settle, because the SLO is not violated. A better plan waits too, once one is known."""


def decide(
    inputs: DecisionInputs, policy: Policy, memory: Memory, solve: Solve, limits: Limits, *, dry_run: DryRun = always_reachable
) -> tuple[Adopt | Keep, Memory]:
    """The decision, and the memory after it. `dry_run`: how the transition to a plan would end."""
    memory = stabilization_window.update_window(inputs, policy, memory)
    inputs, memory = with_early_load(stabilization_window.hide_unsettled(inputs, memory), memory)
    memory = update_levels(inputs, policy, memory)
    trigger, memory = check(inputs, policy, memory)
    solver = Solver(solve, limits, dry_run)
    approved = inputs.approved if policy.mode is Mode.ADVISORY and not inputs.in_transition else None
    if approved is not None and (trigger is None or not trigger.mandatory):
        return adopt_approved(inputs, policy, memory, solver, approved)
    if trigger is None:
        return Keep(reason=Kept.STEADY), memory
    if trigger.mandatory:
        return mandatory(inputs, policy, memory, solver, trigger)
    if trigger.reason in _MAY_WAIT and settling(memory, inputs, policy):
        return Keep(reason=Kept.SETTLING, trigger=trigger), memory
    return optional(inputs, policy, memory.model_copy(update={"reviewed": inputs.now}), solver, trigger)
