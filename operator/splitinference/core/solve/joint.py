"""Plans for several problems on the same nodes: all at once, or one after the other; never more of a node than there is."""

import time
from dataclasses import dataclass

from splitinference.core.cost.check import double_booked
from splitinference.core.plan import Plan
from splitinference.core.problem import Goal, Problem
from splitinference.core.solve.dispatch import WrongAnswer, judged, solve
from splitinference.core.solve.outcome import DEFAULT_LIMITS, BindingConstraint, Infeasible, Limits, Solved, TimedOut
from splitinference.core.solve.several import plan_together, without


@dataclass(frozen=True)
class JointlySolved:
    """One plan for each problem, in their order; `bound` is for the sum of their values."""

    plans: tuple[Plan, ...]
    value: float
    bound: float
    gap: float
    optimal: bool
    seconds: float


def solve_jointly(problems: tuple[Problem, ...], limits: Limits = DEFAULT_LIMITS) -> JointlySolved | Infeasible | TimedOut:
    """The plans whose values have the least sum. Raises ValueError for problems of unlike goals or nodes, and for throughput."""
    _check(problems)
    began = time.monotonic()
    deadline = began + limits.seconds
    found = plan_together(list(problems), lambda: time.monotonic() > deadline, limits.seconds)
    if found.plans is None:
        if not found.refuted:
            return TimedOut(None, found.bound)
        words = f"{len(problems)} models do not fit on the {len(problems[0].snapshot.nodes)} nodes together"
        return Infeasible((BindingConstraint("together", words, "plan fewer of them, or offer more nodes"),))
    return _joined(problems, found.plans, found.bound, time.monotonic() - began)


def solve_in_turn(problems: tuple[Problem, ...], limits: Limits = DEFAULT_LIMITS) -> JointlySolved | Infeasible | TimedOut:
    """One after the other, each on what those before it left; the first that cannot be planned ends it."""
    _check(problems)
    began = time.monotonic()
    plans: list[Plan] = []
    for number, problem in enumerate(problems):
        answer = solve(without(problem, plans, list(problems[:number])), Limits(limits.seconds / len(problems), limits.memory_mib))
        match answer:
            case Solved(plan=plan):
                plans.append(plan)
            case TimedOut(best=best) if best is not None:
                plans.append(best)
            case _:
                return answer
    return _joined(problems, tuple(plans), float("-inf"), time.monotonic() - began)


def _joined(problems: tuple[Problem, ...], plans: tuple[Plan, ...], bound: float, seconds: float) -> JointlySolved:
    booked = double_booked(plans, problems)
    if booked:
        raise WrongAnswer("; ".join(v.message for v in booked))
    done = []
    for plan, problem in zip(plans, problems, strict=True):
        outcome = judged(plan, problem, float("-inf"), seconds, late=False)
        if isinstance(outcome, Solved):
            done.append(outcome.plan.model_copy(update={"bound": None, "gap": None, "optimal": False}))
    value = sum(plan.value or 0.0 for plan in done)
    bound = min(bound, value)
    gap = (value - bound) / abs(value) if value else abs(bound)
    return JointlySolved(tuple(done), value, bound, gap, gap <= 1e-6, seconds)


def _check(problems: tuple[Problem, ...]) -> None:
    if not problems:
        raise ValueError("no problem is given")
    first = problems[0]
    if any(p.snapshot.nodes != first.snapshot.nodes for p in problems):
        raise ValueError("problems that are planned together need the same nodes")
    if any(p.objective.goal is not first.objective.goal for p in problems) or first.objective.goal is Goal.THROUGHPUT:
        raise ValueError("problems that are planned together need the same goal, and one other than throughput")
    if any(p.objective.then for p in problems):
        raise ValueError("further goals (then) are for one problem at a time")
