"""Which algorithm answers which problem; and the judge's word on every answer before it is believed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from splitinference.core.cost import objective_value, violations
from splitinference.core.cost.objective import value_of
from splitinference.core.cost.predict import prediction_of
from splitinference.core.cost.ranges import ranges
from splitinference.core.cost.violations import inspected
from splitinference.core.planner.chain.task import SLACK
from splitinference.core.planner.columns.columns import Column, column, plan_with
from splitinference.core.planner.columns.heuristics import greedy, memory_proportional
from splitinference.core.planner.columns.master import choose
from splitinference.core.planner.columns.pricing import chain_pool
from splitinference.core.planner.diagnose import reasons
from splitinference.core.planner.explain import explain
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Objective, Problem
from splitinference.core.values.result import DEFAULT_LIMITS, Infeasible, Limits, Outcome, Solved, TimedOut

CLOSED = 1e-6
"""Gap at which a plan counts as optimal: the arithmetic's rounding, far below what a measurement could tell."""


GOOD_ENOUGH = 0.05
"""Gap up to which a plan counts as an answer although the time was over; with a larger one the outcome is TimedOut."""
PROBE_SECONDS = 3.0
"""Time for the question whether a relaxed problem has a plan, when reasons are looked for."""


class WrongAnswerError(Exception):
    """A solver returned a plan that the judge refuses; a defect of ours, never of the input."""


def solve(problem: Problem, limits: Limits = DEFAULT_LIMITS, hint: Plan | None = None) -> Outcome:
    """The best plan for `problem`, within `limits.seconds`; of equally good ones the `hint`, if that is valid still."""
    began = time.monotonic()
    deadline = began + limits.seconds

    def expired() -> bool:
        return time.monotonic() > deadline

    known = _valid(problem, hint)
    answer = _answer(problem, known, expired, deadline - began, hint)
    if answer.refuted:
        return Infeasible(reasons(problem, _Finder(deadline), expired))
    if answer.plan is None:
        return TimedOut(None, answer.bound)
    outcome = judged(answer.plan, problem, answer.bound, time.monotonic() - began, late=expired(), column=answer.column)
    return replace(outcome, columns=answer.columns) if isinstance(outcome, Solved) else outcome


@dataclass(frozen=True)
class _Answer:
    """A plan (None: none found), a bound, whether it is proven that there is none, among how many columns it was chosen, the only one."""

    plan: Plan | None
    bound: float
    refuted: bool = False
    columns: int = 0
    column: Column | None = None


def _answer(problem: Problem, known: Plan | None, expired: Callable[[], bool], seconds: float, hint: Plan | None) -> _Answer:
    if problem.objective.goal is Goal.THROUGHPUT:
        from splitinference.core.planner.throughput.throughput import most_throughput

        flow = most_throughput(problem, known, expired, seconds)
        return _Answer(None, math.inf, refuted=True) if flow is None else _Answer(*flow)
    if not needs_choice(problem):
        return _one_chain(problem, known, expired, seconds, hint)
    from splitinference.core.planner.columns.several import plan_together

    found = plan_together([problem], expired, seconds)
    if found.plans is None:
        return _Answer(known, found.bound, refuted=found.refuted and known is None)
    plan = found.plans[0]
    if known and objective_value(known, problem) <= objective_value(plan, problem) * (1 + SLACK):
        plan = known
    return _Answer(plan, found.bound, columns=found.columns)


def _one_chain(problem: Problem, known: Plan | None, expired: Callable[[], bool], seconds: float, hint: Plan | None) -> _Answer:
    """The smallest case of the choice among columns: one chain for one problem."""
    pool = chain_pool(problem, known, expired, hint)
    if not pool.columns:
        return _Answer(None, pool.bound, refuted=pool.refuted)
    choice = choose([problem], [pool], seconds)
    if choice.columns is None:
        raise WrongAnswerError("the master refuses every chain that was priced")
    taken = choice.columns[0][0]
    return _Answer(plan_with(problem, (taken,)), pool.bound, columns=len(pool.columns), column=taken)


class _Finder:
    """Some plan of a problem, found in what is left until the deadline: for the question whether a relaxed problem has one."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def __call__(self, problem: Problem) -> Plan | None:
        """A plan, or None where there is none or the time is over."""
        left = min(PROBE_SECONDS, self._deadline - time.monotonic())
        if left <= 0:
            return None
        deadline = time.monotonic() + left

        def expired() -> bool:
            return time.monotonic() > deadline

        if problem.objective.goal is Goal.THROUGHPUT:
            problem = problem.model_copy(update={"objective": Objective()})
        plain = problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"partial_runs": False})})
        return _answer(plain, None, expired, left, None).plan


def judged(plan: Plan, problem: Problem, bound: float, seconds: float, *, late: bool, column: Column | None = None) -> Outcome:
    """The outcome for a plan, after the judge has seen it; raises WrongAnswerError if it is not valid.

    `column`: the plan's only chain, where the judge's cost model has been asked about it already.
    """
    found, laid = inspected(plan, problem, column.laid if column else None)
    if found or laid is None:
        raise WrongAnswerError("; ".join(f"{v.constraint}: {v.message}" for v in found))
    prediction = column.prediction if column else prediction_of(laid, plan, problem)
    value = value_of(prediction, problem)
    most = problem.objective.goal is Goal.THROUGHPUT
    bound = max(bound, value) if most else min(bound, value)
    gap = abs(value - bound) / abs(value) if value else abs(bound)
    optimal = gap <= CLOSED
    known = f"no plan can be better than {bound:.4g} (gap {gap:.2%})" if math.isfinite(bound) else "with no bound of its own"
    proof = "proven best for these figures" if optimal else known
    prediction = prediction.model_copy(update={"ranges": ranges(plan, problem)})
    words = explain(plan, prediction, problem, proof)
    done = plan.model_copy(
        update={"prediction": prediction, "value": value, "bound": bound, "gap": gap, "optimal": optimal, "explanation": words}
    )
    if late and gap > GOOD_ENOUGH:
        return TimedOut(done, bound)
    return Solved(done, bound, gap, optimal, seconds, words)


def quick_plan(problem: Problem, hint: Plan | None) -> Plan | None:
    """A valid plan by the quickest rules, or the hint where that is better; None where they find none. For one chain alone."""
    if needs_choice(problem) or problem.objective.goal is Goal.THROUGHPUT:
        return _valid(problem, hint)
    found = [made for rule in (greedy, memory_proportional) for pipeline in rule(problem) if (made := column(pipeline, problem))]
    plans = [plan_with(problem, (one,)) for one in found]
    plans += [known for known in [_valid(problem, hint)] if known]
    if not plans:
        return None
    best = min(plans, key=lambda plan: objective_value(plan, problem))
    outcome = judged(best, problem, -math.inf, 0.0, late=False)
    return outcome.plan if isinstance(outcome, Solved) else None


def needs_choice(problem: Problem) -> bool:
    """Whether a problem is about more than one chain of single nodes."""
    return problem.constraints.pipelines > 1 or problem.constraints.max_stage_nodes > 1


def _valid(problem: Problem, hint: Plan | None) -> Plan | None:
    if hint is None or hint.model_digest != problem.profile.digest or violations(hint, problem):
        return None
    return hint
