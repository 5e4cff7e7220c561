"""The solver as decisions use it: with limits, a check of each plan, and a dry run of the transition to it."""

from collections.abc import Sequence
from typing import Protocol

from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.cost.checks.room import lacking, reserves, reserving
from splitinference.core.decide.base.decision import Keep, Kept
from splitinference.core.planner.judge import CLOSED
from splitinference.core.planner.process import SolverError
from splitinference.core.transition.steps import Blocked, Done
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Problem
from splitinference.core.values.result import Infeasible, Limits, Outcome, Solved, TimedOut
from splitinference.core.values.room import Room


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


MOST_NODES = 6
"""On so many nodes room for other pods is tried; each is a solve."""


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
        """The best valid plan, or why there is none. A plan that leaves the rooms of the problem goes before all that do not."""
        found = self._best(problem, hint)
        if not reserves(problem) or isinstance(found, Keep) or not lacking(found, problem):
            return found
        return self._leaving_room(found, problem, hint)

    def _leaving_room(self, best: Plan, problem: Problem, hint: Plan | None) -> Plan:
        """The best plan that leaves room, with why it is not `best`; else `best`, with what it lacks."""
        nodes = reserving(best, problem)
        most = MOST_NODES if problem.second_copies is None or not problem.rooms else MOST_NODES // 2
        tried = [(name, self.best(reserved, hint)) for name, reserved in nodes[:most]]
        plans = [(name, plan) for name, plan in tried if isinstance(plan, Plan)]
        leaving = [(name, plan) for name, plan in plans if not lacking(plan, problem)]
        if not leaving:
            said = (f"no plan leaves {_amount(room)} on a node that may have {room.what}" for room in lacking(best, problem))
            return best.model_copy(update={"explanation": (*best.explanation, *said)})
        name, plan = min(leaving, key=lambda pair: (_cost(pair[1], problem), pair[0]))
        said = (f"{_amount(room)} stay free on {name} for {room.what}" for room in lacking(best, problem)[:1])
        complete = (
            problem.second_copies is None
            and len(nodes) <= most
            and all(isinstance(each, Plan) or each.reason is Kept.INFEASIBLE for _, each in tried)
        )
        proof = _proof(plan, problem, [each.bound for _, each in plans] if complete else [best.bound])
        return plan.model_copy(update={"explanation": (*plan.explanation, *said), "value": objective_value(plan, problem), **proof})

    def _best(self, problem: Problem, hint: Plan | None) -> Plan | Keep:
        try:
            outcome = self._solve(problem, self._limits, hint)
        except SolverError as error:
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


def _cost(plan: Plan, problem: Problem) -> float:
    """The objective, less is better."""
    value = objective_value(plan, problem)
    return -value if problem.objective.goal is Goal.THROUGHPUT else value


def _proof(plan: Plan, problem: Problem, bounds: Sequence[float | None]) -> dict[str, object]:
    """Bound and gap of the best of several plans, of which no other is better than the least of these bounds."""
    known = [bound for bound in bounds if bound is not None]
    if len(known) < len(bounds):
        return {"bound": None, "gap": None, "optimal": False}
    value = objective_value(plan, problem)
    bound = max(known) if problem.objective.goal is Goal.THROUGHPUT else min(known)
    gap = abs(value - bound) / abs(value) if value else 0.0
    return {"bound": bound, "gap": gap, "optimal": plan.optimal and gap <= CLOSED}


def _amount(room: Room) -> str:
    cores = f" and {room.millicores / 1000:g} cores" if room.millicores else ""
    return f"{-(-room.memory_bytes // 2**20)} MiB{cores}"
