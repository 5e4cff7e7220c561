"""Plans for several problems on the same nodes: all at once, or one after the other; never more of a node than there is.

Values of like goals add up. Unlike ones are in unlike units: there each counts as so many times what its problem reaches alone.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from splitinference.core.cost.violations import Violation, double_booked
from splitinference.core.planner.columns.several import Reached, plan_together
from splitinference.core.planner.columns.share import adds_up, at_pace, check_together, left_by, without_nodes
from splitinference.core.planner.judge import CLOSED, WrongAnswerError, judged
from splitinference.core.planner.solver import solve
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Problem
from splitinference.core.values.result import (
    DEFAULT_LIMITS,
    BindingConstraint,
    Infeasible,
    JointlySolved,
    JointOutcome,
    Limits,
    Solved,
    TimedOut,
)


def solve_jointly(problems: tuple[Problem, ...], limits: Limits = DEFAULT_LIMITS) -> JointOutcome:
    """The plans whose values have the least sum, as `JointlySolved` adds them up. Raises ValueError for what `check_together` refuses."""
    check_together(problems, jointly=True)
    began = time.monotonic()
    deadline = began + limits.seconds
    reached: list[Reached] = []
    for problem in () if adds_up(problems) else problems:
        answer = solve(problem, Limits(limits.seconds / (2 * len(problems)), limits.memory_mib))
        plan = _plan_of(answer)
        if plan is None or plan.value is None:
            return answer if not isinstance(answer, Solved) else TimedOut(None, float("-inf"))
        reached.append(Reached(plan.value, answer.bound if not isinstance(answer, Infeasible) else plan.value))

    def known() -> Iterator[tuple[Plan, ...]]:
        each = Limits(max(0.1, (deadline - time.monotonic()) / (4 * len(problems))), limits.memory_mib)
        for order in (range(len(problems)), range(len(problems) - 1, -1, -1)):
            found = _one_by_one([problems[i] for i in order], each)
            if isinstance(found, list):
                by_number = dict(zip(order, found, strict=True))
                yield tuple(by_number[i].plan for i in range(len(problems)))

    found = plan_together(list(problems), lambda: time.monotonic() > deadline, limits.seconds, reached, known)
    if found.plans is None:
        if not found.refuted:
            return TimedOut(None, found.bound)
        words = f"{len(problems)} models do not fit on the {len(problems[0].snapshot.nodes)} nodes together"
        return Infeasible((BindingConstraint("together", words, "plan fewer of them, or offer more nodes"),))
    plans = _judged([_Placed(plan, problem, problem) for plan, problem in zip(found.plans, problems, strict=True)])
    return _joined(problems, plans, tuple(one.value for one in reached), found.bound, time.monotonic() - began)


def solve_in_turn(problems: tuple[Problem, ...], limits: Limits = DEFAULT_LIMITS) -> JointOutcome:
    """One after the other, each on what those before it left; the first that cannot be planned ends it.

    Goals may be unlike, and throughput among them: its tokens per second are what the others leave, and take what they need.
    """
    check_together(problems, jointly=False)
    began = time.monotonic()
    like = adds_up(problems)
    each = Limits(limits.seconds / (len(problems) if like else 2 * len(problems)), limits.memory_mib)
    found = _one_by_one(problems, each)
    if not isinstance(found, list):
        return found
    plans = _judged(found)
    alone = () if like else tuple(_best_alone(problem, plan, each) for problem, plan in zip(problems, plans, strict=True))
    return _joined(problems, plans, alone, float("-inf"), time.monotonic() - began)


@dataclass(frozen=True)
class _Placed:
    """A plan; the problem that says what it takes of the nodes; and the one that says what it is worth."""

    plan: Plan
    taking: Problem
    judged_on: Problem


def _plan_of(answer: object) -> Plan | None:
    return answer.plan if isinstance(answer, Solved) else answer.best if isinstance(answer, TimedOut) else None


def _one_by_one(problems: Sequence[Problem], each: Limits) -> list[_Placed] | Infeasible | TimedOut:
    """Each problem on what those before it leave, at most `each` for one; or why one of them has no plan."""
    done: list[_Placed] = []
    for problem in problems:
        left = left_by(problem, [placed.plan for placed in done], [placed.taking for placed in done])
        full: set[str] = set()
        while True:
            answer = solve(left, each)
            plan = _plan_of(answer)
            if full and isinstance(answer, Infeasible):
                words = f"{problem.profile.model}: the models before it take the compute of {', '.join(sorted(full))}"
                return Infeasible((BindingConstraint("compute", words, "another order, fewer requests per second, or more nodes"),))
            if plan is None or plan.value is None:
                return answer if not isinstance(answer, Solved) else TimedOut(None, float("-inf"))
            flows = problem.objective.goal is Goal.THROUGHPUT
            placed = _Placed(plan, at_pace(problem, plan.value) if flows else problem, left if flows else problem)
            crowded = {v.message.split(":")[0] for v in _booked_twice([*done, placed]) if v.constraint == "compute"}
            if not crowded:
                break
            full |= crowded
            left = without_nodes(left, crowded)
        done.append(placed)
    return done


def _best_alone(problem: Problem, plan: Plan, limits: Limits) -> float:
    """The best value that a problem reaches alone, as far as the time goes: that of its plan now is one."""
    found = _plan_of(solve(problem, limits))
    values = [one.value for one in (plan, found) if one is not None and one.value is not None]
    return max(values) if problem.objective.goal is Goal.THROUGHPUT else min(values)


def _booked_twice(placed: Sequence[_Placed]) -> tuple[Violation, ...]:
    return double_booked([one.plan for one in placed], [one.taking for one in placed])


def _judged(placed: Sequence[_Placed]) -> tuple[Plan, ...]:
    """The plans with predictions and values, after the judge has seen them; raises WrongAnswerError if they are not valid together."""
    booked = _booked_twice(placed)
    if booked:
        raise WrongAnswerError("; ".join(v.message for v in booked))
    done = []
    for one in placed:
        outcome = judged(one.plan, one.judged_on, float("-inf"), 0.0, late=False)
        if isinstance(outcome, Solved):
            done.append(outcome.plan.model_copy(update={"bound": None, "gap": None, "optimal": False}))
    return tuple(done)


def _joined(problems: Sequence[Problem], plans: tuple[Plan, ...], alone: tuple[float, ...], bound: float, seconds: float) -> JointlySolved:
    values = [plan.value or 0.0 for plan in plans]
    if alone:
        goals = [problem.objective.goal for problem in problems]
        values = [_times(value, best, goal) for value, best, goal in zip(values, alone, goals, strict=True)]
    value = sum(values)
    bound = min(bound, value)
    gap = (value - bound) / abs(value) if value else abs(bound)
    return JointlySolved(plans, value, bound, gap, gap <= CLOSED, seconds, alone)


def _times(value: float, alone: float, goal: Goal) -> float:
    """How many times what is reached alone a value is; more is worse, for throughput too."""
    return alone / value if goal is Goal.THROUGHPUT else value / Reached(alone, alone).unit
