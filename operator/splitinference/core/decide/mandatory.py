"""The decision for a mandatory reason: the best plan that can be reached at once. Without one, the plan stays."""

from dataclasses import dataclass

from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.cost.checks.room import lacking
from splitinference.core.decide.base.compare import Change, change, figures, gain, move_seconds, moving
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy
from splitinference.core.decide.base.triggers import Reason, Trigger
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.decide.feasibility.capacity_memory import memory_limits, update_obstacles
from splitinference.core.decide.feasibility.reachable_plans import best_reachable
from splitinference.core.decide.feasibility.restrict import may_stay, pinned, same_cuts, with_room, without
from splitinference.core.decide.pipelines import SeveralPipelines, several, without_slo
from splitinference.core.decide.retry_backoff import Attempt
from splitinference.core.decide.stabilization_window import start_window
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo

Found = tuple[Plan | Keep, tuple[str, ...]]
"""A plan with notes for the message, or why there is none."""


def mandatory(inputs: DecisionInputs, policy: Policy, memory: Memory, solver: Solver, trigger: Trigger) -> tuple[Adopt | Keep, Memory]:
    """The decision for a mandatory reason, and the memory after it."""
    memory = update_obstacles(memory, inputs, policy, trigger)
    problem = without(inputs.problem, [*inputs.quarantined, *inputs.pressured])
    if trigger.reason is Reason.TRANSITION_BLOCKED and inputs.serving is not None:
        # The plan does not serve yet, so the cost of another plan is counted from what serves.
        problem = problem.model_copy(update={"serving": tuple((s.start, s.end, s.node) for s in inputs.serving.segments)})
    attempt = Attempt.of(problem, inputs, trigger.reason)
    if attempt.too_soon(memory, policy, inputs.now):
        return Keep(reason=Kept(memory.tried_reason), message=memory.tried_message, trigger=trigger), memory
    case = _MandatoryDecision(inputs, policy, solver, trigger)
    found, notes = case.best(with_room(problem, memory_limits(memory.obstacles, inputs)))
    if isinstance(found, Keep) and memory.obstacles:
        found, notes = case.best(problem)
    apart = several(problem, inputs.plan)
    if isinstance(found, Plan) and not apart and (kept := case.good_enough(found, problem)) is not None and solver.reachable(kept):
        message = f"{trigger.message}; the plan stays: no other plan is better by more than {policy.min_gain:.0%}"
        return Adopt(plan=kept, change=Change.KEEP, reason=trigger.reason, message=message, mandatory=True), memory.after_adoption()
    if isinstance(found, Plan) and not apart:
        found, further = case.reachable_plan(found, problem)
        notes += further
    if isinstance(found, Plan) and trigger.reason is Reason.ROOM_MISSING and (missing := lacking(found, problem)):
        found = Keep(reason=Kept.INFEASIBLE, message=f"no plan that can be reached leaves room for {missing[0].what}")
    if isinstance(found, Keep):
        unmentioned = [f"{node} is not used: {why}" for node, why in inputs.quarantined.items() if why not in trigger.message]
        message = "; ".join([trigger.message, found.message, *unmentioned])
        return Keep(reason=found.reason, message=message, trigger=trigger), attempt.failed(memory, found.reason, message, inputs.now)
    parts = [trigger.message, *notes, figures(found, problem), moving(found, problem, policy) if inputs.plan else ""]
    message = "; ".join(filter(None, parts))
    adopted = Adopt(plan=found, change=change(inputs.plan, found), reason=trigger.reason, message=message, mandatory=True)
    after_adoption = memory.after_adoption(detoured=inputs.now if trigger.reason is Reason.TRANSITION_BLOCKED else None)
    return adopted, start_window(after_adoption, adopted.change)


@dataclass(frozen=True)
class _MandatoryDecision:
    """The inputs of one mandatory decision, and the solver."""

    inputs: DecisionInputs
    policy: Policy
    solver: Solver
    trigger: Trigger

    def best(self, problem: Problem) -> Found:
        """The best plan, reachable or not; of several pipelines only a plan that can be reached."""
        current = self.inputs.plan
        if several(problem, current):
            return self._several(problem)
        found: Plan | Keep | None = None
        if current is not None and self.trigger.reason not in (Reason.SPEC_CHANGED, Reason.TRANSITION_BLOCKED):
            same = same_cuts(problem, current)
            found = self._with_same_cuts(same, current) if same is not None else None
        if not isinstance(found, Plan) or (self.trigger.reason is Reason.ROOM_MISSING and lacking(found, problem)):
            found = self.solver.best(problem, None)
        if isinstance(found, Keep) and problem.slo != Slo():
            relaxed = self.solver.best(without_slo(problem), None)
            if isinstance(relaxed, Plan):
                return relaxed, (f"no plan meets the SLO: {found.message}",)
        return found, ()

    def _several(self, problem: Problem) -> Found:
        """The best reachable plan where it is about several pipelines: as many as fit, and more than there are if some are missing."""
        inputs, reason = self.inputs, self.trigger.reason
        stays = inputs.serving if reason is Reason.TRANSITION_BLOCKED and inputs.serving is not None else inputs.plan
        recut = reason in (Reason.SPEC_CHANGED, Reason.TRANSITION_BLOCKED)
        least = len(inputs.plan.pipelines) + 1 if reason is Reason.PIPELINES_MISSING and inputs.plan is not None else 1
        return SeveralPipelines(inputs, self.policy, self.solver, stays, recut).most(problem, least)

    def _with_same_cuts(self, same: Problem, current: Plan) -> Plan | Keep:
        """The best plan with the same split points. One that keeps running segments in place wins, unless moving them pays.

        While a segment is lost, nothing is served, so each needless move makes the interruption longer.
        """
        best = self.solver.best(same, None)
        staying = may_stay(current, same)
        if isinstance(best, Keep) or not staying or self.trigger.reason is Reason.ROOM_MISSING:
            return best
        least = self.solver.best(pinned(same, staying), None)
        if isinstance(least, Keep):
            return best
        longer = move_seconds(best, same, self.policy) - move_seconds(least, same, self.policy)
        further = gain(objective_value(least, same), objective_value(best, same), same)
        return best if further - longer / self.policy.payback.total_seconds() > self.policy.min_gain else least

    def good_enough(self, found: Plan, problem: Problem) -> Plan | None:
        """If only the spec changed: the present plan with a new prediction, if it is as good as the one found."""
        current = self.inputs.plan
        if self.trigger.reason is not Reason.SPEC_CHANGED or current is None:
            return None
        if current.model_digest != found.model_digest or violations(current, problem):
            return None
        if gain(objective_value(current, problem), objective_value(found, problem), problem) > self.policy.min_gain:
            return None
        return current.model_copy(update={"prediction": predict(current, problem), "value": objective_value(current, problem)})

    def reachable_plan(self, found: Plan, problem: Problem) -> Found:
        """The plan if it can be reached, else the best that can. A first plan is adopted in any case, since there is none to keep."""
        end = self.solver.dry_run(found)
        if not isinstance(end, Blocked):
            return found, ()
        other = best_reachable(found, problem, self.inputs, self.policy, self.solver)
        if other is not None:
            broken = [v.message for v in violations(other, problem) if v.constraint.startswith("slo")]
            limits = (f"no reachable plan meets the SLO: {'; '.join(broken)}",) if broken else ()
            return other, (f"this is the best reachable plan; the best of all cannot be reached{self._why(end)}", *limits)
        if self.inputs.plan is None:
            return found, ()
        return Keep(reason=Kept.BLOCKED, message=f"no plan can be reached from the serving segments{self._why(end)}"), ()

    def _why(self, end: Blocked) -> str:
        """What blocks the transition, unless the trigger's message already says it."""
        said = self.trigger.reason is Reason.TRANSITION_BLOCKED and self.inputs.blocked is not None and self.inputs.blocked.why == end.why
        return "" if said else f": {end.why}"
