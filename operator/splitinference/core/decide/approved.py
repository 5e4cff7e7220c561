"""The decision for a plan that was proposed in mode Advisory and that a person approved.

An approval replaces what only prevents flapping: window, confirmations, cooldown and the budget of moves. It replaces nothing that protects
the service: the plan is checked again on fresh data. It must be valid, reachable and better than staying.
"""

from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.decide.base.compare import before_after, change, moving, net_gain
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy
from splitinference.core.decide.base.triggers import Reason, Trigger
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.decide.feasibility.restrict import without
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan


def adopt_approved(inputs: DecisionInputs, policy: Policy, memory: Memory, solver: Solver, plan: Plan) -> tuple[Adopt | Keep, Memory]:
    """Adopt the approved plan, or say with numbers why it can no longer be adopted."""
    current = inputs.plan
    assert current is not None  # noqa: S101 - without a plan the trigger is mandatory
    message = "the proposed plan was approved"
    trigger = Trigger(reason=Reason.APPROVED, message=message, mandatory=False)
    problem = without(inputs.problem, [*inputs.quarantined, *inputs.pressured])
    if plan.model_digest != current.model_digest:
        return _void(f"{message}; it is for another version of the model", trigger), memory
    if broken := violations(plan, problem):
        return _void(f"{message}; it is no longer valid: {'; '.join(violation.message for violation in broken)}", trigger), memory
    plan = plan.model_copy(update={"prediction": predict(plan, problem), "value": objective_value(plan, problem)})
    net = net_gain(current, plan, inputs.problem, policy)
    message = f"{message}; {before_after(current, plan, inputs.problem)}, {moving(plan, inputs.problem, policy)}: net gain {net:.0%}"
    if net <= 0:
        return _void(f"{message}; it is no longer better than the present plan", trigger), memory
    if isinstance(end := solver.dry_run(plan), Blocked):
        return _void(f"{message}; it cannot be reached: {end.why}", trigger), memory
    adopted = Adopt(
        plan=plan,
        before_ms=predict(current, inputs.problem).time_per_output_token_ms,
        change=change(current, plan),
        reason=Reason.APPROVED,
        message=message,
        mandatory=False,
    )
    return adopted, memory.after_adoption(reviewed=inputs.now)


def _void(message: str, trigger: Trigger) -> Keep:
    return Keep(reason=Kept.APPROVAL_VOID, message=message, trigger=trigger)
