"""One decision: check triggers, solve, compare. The decision is a value with its reason."""

from splitinference.core.decide import stabilization_window
from splitinference.core.decide.approved import adopt_approved
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Mode, Policy
from splitinference.core.decide.base.triggers import Reason, Trigger, check, pipelines_missing
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
    if trigger is not None and trigger.mandatory:
        return mandatory(inputs, policy, memory, solver, trigger)
    if (missing := pipelines_missing(inputs)) is None:
        return _settled(inputs, policy, memory, solver, trigger)
    decision, memory = mandatory(inputs, policy, memory, solver, missing)
    if isinstance(decision, Adopt):
        return decision, memory
    moved, memory = _settled(inputs, policy, memory, solver, trigger)
    return (moved if isinstance(moved, Adopt) else decision), memory


def _settled(
    inputs: DecisionInputs, policy: Policy, memory: Memory, solver: Solver, trigger: Trigger | None
) -> tuple[Adopt | Keep, Memory]:
    """The decision where nothing is mandatory, for a plan with the pipelines that it has."""
    if trigger is None:
        return Keep(reason=Kept.STEADY), memory
    if trigger.reason in _MAY_WAIT and settling(memory, inputs, policy):
        return Keep(reason=Kept.SETTLING, trigger=trigger), memory
    return optional(inputs, policy, memory.model_copy(update={"reviewed": inputs.now}), solver, trigger)
