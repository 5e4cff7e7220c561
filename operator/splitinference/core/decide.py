"""What to do now. Composes triggers, the solver and the judge of plans; a decision is a value with its reason."""

from splitinference.core.adaptation import Facts, Memory, Policy
from splitinference.core.decision import Adopt, Keep, Kept
from splitinference.core.judged import Ends, Solve, Solver, arrives
from splitinference.core.mandatory import mandatory
from splitinference.core.noticed import noticed
from splitinference.core.optional import optional
from splitinference.core.solve.outcome import Limits
from splitinference.core.triggers import check


def decide(
    facts: Facts, policy: Policy, memory: Memory, solve: Solve, limits: Limits, *, ends: Ends = arrives
) -> tuple[Adopt | Keep, Memory]:
    """The decision, and the memory after it. `ends`: how a walk to a plan would end; none but a first is adopted that has no way."""
    facts, memory = noticed(facts, memory)
    trigger, memory = check(facts, policy, memory)
    if trigger is None:
        return Keep(reason=Kept.STEADY), memory
    solver = Solver(solve, limits, ends)
    if trigger.mandatory:
        return mandatory(facts, policy, memory, solver, trigger)
    return optional(facts, policy, memory.model_copy(update={"reviewed": facts.now}), solver, trigger)
