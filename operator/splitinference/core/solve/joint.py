"""Plans for several problems on the same nodes: all at once, or one after the other; never more of a node than there is."""

import time

from splitinference.core.cost.check import double_booked
from splitinference.core.plan import Plan
from splitinference.core.problem import Problem
from splitinference.core.solve.dispatch import WrongAnswer, judged, solve
from splitinference.core.solve.outcome import (
    DEFAULT_LIMITS,
    BindingConstraint,
    Infeasible,
    JointlySolved,
    JointOutcome,
    Limits,
    Solved,
    TimedOut,
)
from splitinference.core.solve.several import plan_together
from splitinference.core.solve.share import check_together, left_by, without_nodes


def solve_jointly(problems: tuple[Problem, ...], limits: Limits = DEFAULT_LIMITS) -> JointOutcome:
    """The plans whose values have the least sum. Raises ValueError for problems of unlike goals or nodes, and for throughput."""
    check_together(problems)
    began = time.monotonic()
    deadline = began + limits.seconds
    found = plan_together(list(problems), lambda: time.monotonic() > deadline, limits.seconds)
    if found.plans is None:
        if not found.refuted:
            return TimedOut(None, found.bound)
        words = f"{len(problems)} models do not fit on the {len(problems[0].snapshot.nodes)} nodes together"
        return Infeasible((BindingConstraint("together", words, "plan fewer of them, or offer more nodes"),))
    return _joined(problems, found.plans, found.bound, time.monotonic() - began)


def solve_in_turn(problems: tuple[Problem, ...], limits: Limits = DEFAULT_LIMITS) -> JointOutcome:
    """One after the other, each on what those before it left; the first that cannot be planned ends it."""
    check_together(problems)
    began = time.monotonic()
    plans: list[Plan] = []
    for number, problem in enumerate(problems):
        left = left_by(problem, plans, problems[:number])
        while True:
            answer = solve(left, Limits(limits.seconds / len(problems), limits.memory_mib))
            plan = answer.plan if isinstance(answer, Solved) else answer.best if isinstance(answer, TimedOut) else None
            if plan is None:
                return answer if not isinstance(answer, Solved) else TimedOut(None, float("-inf"))
            crowded = {v.message.split(":")[0] for v in double_booked((*plans, plan), problems[: number + 1]) if v.constraint == "compute"}
            if not crowded:
                break
            left = without_nodes(left, crowded)
        plans.append(plan)
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
