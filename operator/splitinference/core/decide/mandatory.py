"""What to do where something must be done at once: the best plan that can be walked to; the plan as it is while there is none."""

from dataclasses import dataclass

from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.decide.base.compare import Change, change, figures, gain, move_seconds, moving
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Facts, Memory, Policy
from splitinference.core.decide.base.triggers import Reason, Trigger
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.decide.feasibility.capacity_memory import remembered, room
from splitinference.core.decide.feasibility.reachable_plans import instead
from splitinference.core.decide.feasibility.restrict import may_stay, pinned, same_cuts, with_room, without
from splitinference.core.decide.retry_backoff import Try
from splitinference.core.decide.stabilization_window import begun
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo

Found = tuple[Plan | Keep, tuple[str, ...]]
"""A plan and what is to be said of it; or why there is none."""


def mandatory(facts: Facts, policy: Policy, memory: Memory, solver: Solver, trigger: Trigger) -> tuple[Adopt | Keep, Memory]:
    """The decision for a mandatory reason, and the memory after it."""
    memory = remembered(memory, facts, policy, trigger)
    problem = without(facts.problem, [*facts.quarantined, *facts.pressured])
    if trigger.reason is Reason.WALK_BLOCKED and facts.serving is not None:
        # The plan does not serve, so the cost of another is counted from what does.
        problem = problem.model_copy(update={"serving": tuple((s.start, s.end, s.node) for s in facts.serving.segments)})
    this = Try.of(problem, facts, trigger.reason)
    if this.too_soon(memory, policy, facts.now):
        return Keep(reason=Kept(memory.tried_reason), message=memory.tried_message, trigger=trigger), memory
    case = _Case(facts, policy, solver, trigger)
    found, notes = case.best(with_room(problem, room(memory.obstacles, facts)))
    if isinstance(found, Keep) and memory.obstacles:
        found, notes = case.best(problem)
    if isinstance(found, Plan) and (kept := case.good_enough(found, problem)) is not None and solver.reaches(kept):
        message = f"{trigger.message}; the plan stays: another is not better by {policy.min_gain:.0%}"
        return Adopt(plan=kept, change=Change.KEEP, reason=trigger.reason, message=message, mandatory=True), memory.afresh()
    if isinstance(found, Plan):
        found, further = case.walkable(found, problem)
        notes += further
    if isinstance(found, Keep):
        unsaid = [f"{node} is avoided: {why}" for node, why in facts.quarantined.items() if why not in trigger.message]
        message = "; ".join([trigger.message, found.message, *unsaid])
        return Keep(reason=found.reason, message=message, trigger=trigger), this.failed(memory, found.reason, message, facts.now)
    parts = [trigger.message, *notes, figures(found, problem), moving(found, problem, policy) if facts.plan else ""]
    message = "; ".join(filter(None, parts))
    adopted = Adopt(plan=found, change=change(facts.plan, found), reason=trigger.reason, message=message, mandatory=True)
    afresh = memory.afresh(detoured=facts.now if trigger.reason is Reason.WALK_BLOCKED else None)
    return adopted, begun(afresh, adopted.change)


@dataclass(frozen=True)
class _Case:
    """What is known, and whom to ask."""

    facts: Facts
    policy: Policy
    solver: Solver
    trigger: Trigger

    def best(self, problem: Problem) -> Found:
        """The best plan, whatever stands in the way to it."""
        current = self.facts.plan
        found: Plan | Keep | None = None
        if current is not None and self.trigger.reason not in (Reason.SPEC_CHANGED, Reason.WALK_BLOCKED):
            same = same_cuts(problem, current)
            found = self._mended(same, current) if same is not None else None
        if not isinstance(found, Plan):
            found = self.solver.best(problem, None)
        if isinstance(found, Keep) and problem.slo != Slo():
            relaxed = self.solver.best(problem.model_copy(update={"slo": Slo()}), None)
            if isinstance(relaxed, Plan):
                return relaxed, (f"the SLO cannot be kept: {found.message}",)
        return found, ()

    def _mended(self, same: Problem, current: Plan) -> Plan | Keep:
        """The best plan of the same cuts; but one that leaves alone what still runs, unless the other is better by more than its move.

        While something is lost nobody is served, so every segment that is moved without need makes the gap longer.
        """
        best = self.solver.best(same, None)
        staying = may_stay(current, same)
        if isinstance(best, Keep) or not staying or len(current.pipelines) > 1:
            return best
        least = self.solver.best(pinned(same, staying), None)
        if isinstance(least, Keep):
            return best
        longer = move_seconds(best, same, self.policy) - move_seconds(least, same, self.policy)
        further = gain(objective_value(least, same), objective_value(best, same), same)
        return best if further - longer / self.policy.payback.total_seconds() > self.policy.min_gain else least

    def good_enough(self, found: Plan, problem: Problem) -> Plan | None:
        """Where only the specification has changed: the plan with its prediction as it is now, if it is as good as the one found."""
        current = self.facts.plan
        if self.trigger.reason is not Reason.SPEC_CHANGED or current is None:
            return None
        if current.model_digest != found.model_digest or violations(current, problem):
            return None
        if gain(objective_value(current, problem), objective_value(found, problem), problem) > self.policy.min_gain:
            return None
        return current.model_copy(update={"prediction": predict(current, problem), "value": objective_value(current, problem)})

    def walkable(self, found: Plan, problem: Problem) -> Found:
        """The plan if it can be walked to, else the best that can. A first plan is taken in any case: nothing else is there to be kept."""
        end = self.solver.ends(found)
        if not isinstance(end, Blocked):
            return found, ()
        other = instead(found, problem, self.facts, self.policy, self.solver)
        if other is not None:
            broken = [v.message for v in violations(other, problem) if v.constraint.startswith("slo")]
            limits = (f"no plan that can be reached keeps the SLO: {'; '.join(broken)}",) if broken else ()
            return other, (f"the best plan cannot be reached{self._why(end)}", *limits)
        if self.facts.plan is None:
            return found, ()
        return Keep(reason=Kept.BLOCKED, message=f"no plan can be reached from what serves{self._why(end)}"), ()

    def _why(self, end: Blocked) -> str:
        """What is in the way, unless the reason to decide has said it."""
        said = self.trigger.reason is Reason.WALK_BLOCKED and self.facts.blocked is not None and self.facts.blocked.why == end.why
        return "" if said else f": {end.why}"
