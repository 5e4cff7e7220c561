"""The solver as decisions use it: with limits, a check of each plan, and a dry run of the transition to it."""

from typing import Protocol

from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.decide.base.decision import Keep, Kept
from splitinference.core.planner.process import SolverFailed
from splitinference.core.transition.steps import Blocked, Done
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import Infeasible, Limits, Outcome, Solved, TimedOut


class Solve(Protocol):
    """The solver, as `splitinference.core.planner.solve`."""

    def __call__(self, problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        """Solve within the limits; `hint` is a plan to start from."""


class DryRun(Protocol):
    """How the transition from the observed state to a plan would end if every started segment succeeds."""

    def __call__(self, plan: Plan, /) -> Done | Blocked:
        """Simulate the transition."""


def always_reachable(_plan: Plan, /) -> Done | Blocked:
    """The dry run for callers without observed segments: every plan is reachable."""
    return Done()


class Solver:
    """The solver with its limits and the check of its plans."""

    def __init__(self, solve: Solve, limits: Limits, dry_run: DryRun = always_reachable) -> None:
        self._solve = solve
        self._limits = limits
        self.dry_run = dry_run

    def reachable(self, plan: Plan) -> bool:
        """Whether the transition to the plan would complete."""
        return isinstance(self.dry_run(plan), Done)

    def best(self, problem: Problem, hint: Plan | None) -> Plan | Keep:
        """The best valid plan, or why there is none."""
        try:
            outcome = self._solve(problem, self._limits, hint)
        except SolverFailed as error:
            return Keep(reason=Kept.SOLVER_FAILED, message=f"the solver failed: {error}")
        late = Keep(reason=Kept.SOLVE_TIMED_OUT, message=f"the solver found no plan within {self._limits.seconds:g} s")
        match outcome:
            case Solved(plan=plan):
                proof = {"bound": outcome.bound, "gap": outcome.gap, "optimal": outcome.optimal, "explanation": outcome.explanation}
                found = plan.model_copy(update=proof)
            case TimedOut(best=plan):
                if plan is None or violations(plan, problem):
                    return late
                found = plan
            case Infeasible(reasons=reasons):
                said = (f"{reason.message} ({reason.relaxation})" if reason.relaxation else reason.message for reason in reasons)
                return Keep(reason=Kept.INFEASIBLE, message="; ".join(said))
        wrong = violations(found, problem)
        if wrong:
            return Keep(reason=Kept.PLAN_REJECTED, message="the solver's plan violates: " + "; ".join(v.message for v in wrong))
        return found.model_copy(update={"prediction": predict(found, problem), "value": objective_value(found, problem)})
