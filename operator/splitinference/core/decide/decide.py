"""What to do now. Composes triggers, the solver and the judge of plans; a decision is a value with its reason."""

from splitinference.core.decide import stabilization_window
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Facts, Memory, Policy
from splitinference.core.decide.base.triggers import Reason, check
from splitinference.core.decide.base.validated_solver import Ends, Solve, Solver, arrives
from splitinference.core.decide.early_load_signal import noticed
from splitinference.core.decide.mandatory import mandatory
from splitinference.core.decide.metrics_settling import followed, settling
from splitinference.core.decide.optional import optional
from splitinference.core.values.result import Limits

_MAY_WAIT = (Reason.UTILIZATION_SHIFTED, Reason.LINK_DEGRADED)
"""Where clients do not feel it yet. A better plan waits too, once it is known that there is one."""


def decide(
    facts: Facts, policy: Policy, memory: Memory, solve: Solve, limits: Limits, *, ends: Ends = arrives
) -> tuple[Adopt | Keep, Memory]:
    """The decision, and the memory after it. `ends`: how a walk to a plan would end; none but a first is adopted that has no way."""
    memory = stabilization_window.followed(facts, policy, memory)
    facts, memory = noticed(stabilization_window.counting(facts, memory), memory)
    memory = followed(facts, policy, memory)
    trigger, memory = check(facts, policy, memory)
    if trigger is None:
        return Keep(reason=Kept.STEADY), memory
    solver = Solver(solve, limits, ends)
    if trigger.mandatory:
        return mandatory(facts, policy, memory, solver, trigger)
    if trigger.reason in _MAY_WAIT and settling(memory, facts, policy):
        return Keep(reason=Kept.SETTLING, trigger=trigger), memory
    return optional(facts, policy, memory.model_copy(update={"reviewed": facts.now}), solver, trigger)
