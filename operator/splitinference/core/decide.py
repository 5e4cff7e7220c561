"""What to do now. Composes triggers, the solver and the judge of plans; a decision is a value with its reason."""

from splitinference.core import stabilizing
from splitinference.core.adaptation import Facts, Memory, Policy
from splitinference.core.decision import Adopt, Keep, Kept
from splitinference.core.judged import Ends, Solve, Solver, arrives
from splitinference.core.mandatory import mandatory
from splitinference.core.noticed import noticed
from splitinference.core.optional import optional
from splitinference.core.settling import followed, settling
from splitinference.core.solve.outcome import Limits
from splitinference.core.triggers import Reason, check

_MAY_WAIT = (Reason.UTILIZATION_SHIFTED, Reason.LINK_DEGRADED)
"""Where clients do not feel it yet. A better plan waits too, once it is known that there is one."""


def decide(
    facts: Facts, policy: Policy, memory: Memory, solve: Solve, limits: Limits, *, ends: Ends = arrives
) -> tuple[Adopt | Keep, Memory]:
    """The decision, and the memory after it. `ends`: how a walk to a plan would end; none but a first is adopted that has no way."""
    memory = stabilizing.followed(facts, policy, memory)
    facts, memory = noticed(stabilizing.counting(facts, memory), memory)
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
