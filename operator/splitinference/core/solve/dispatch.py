"""Which algorithm answers which problem; and the judge's word on every answer before it is believed."""

import math
import time
from collections.abc import Callable

from splitinference.core.cost import goal_value, objective_value, violations
from splitinference.core.cost.objective import value_of
from splitinference.core.cost.predict import predict
from splitinference.core.explain import explain
from splitinference.core.plan import Pipeline, Plan, Segment
from splitinference.core.problem import Goal, Objective, Problem
from splitinference.core.solve.bottleneck import least_bottleneck
from splitinference.core.solve.chain import Chain, best_chain
from splitinference.core.solve.infeasible import reasons
from splitinference.core.solve.moves import least_with_moves
from splitinference.core.solve.outcome import DEFAULT_LIMITS, Infeasible, Limits, Outcome, Solved, TimedOut
from splitinference.core.solve.peak import least_with_peak
from splitinference.core.solve.relaxed import Step
from splitinference.core.solve.tables import Tables
from splitinference.core.solve.task import SLACK, Task, task_of

CLOSED = 1e-6
"""Gap at which a plan counts as optimal: the arithmetic's rounding, far below what a measurement could tell."""


GOOD_ENOUGH = 0.05
"""Gap up to which a plan counts as an answer although the time was over; with a larger one the outcome is TimedOut."""
PROBE_SECONDS = 3.0
"""Time for the question whether a relaxed problem has a plan, when reasons are looked for."""


class WrongAnswer(Exception):
    """A solver returned a plan that the judge refuses; a defect of ours, never of the input."""


def solve(problem: Problem, limits: Limits = DEFAULT_LIMITS, hint: Plan | None = None) -> Outcome:
    """The best plan for `problem`, within `limits.seconds`; of equally good ones the `hint`, if that is valid still."""
    if needs_choice(problem):
        # Heavy, and loaded once: not part of a problem's time.
        import splitinference.core.solve.several  # noqa: F401
    began = time.monotonic()
    deadline = began + limits.seconds

    def expired() -> bool:
        return time.monotonic() > deadline

    known = _valid(problem, hint)
    answer = _answer(problem, known, expired, deadline - began, hint)
    if answer is None:
        return Infeasible(reasons(problem, _exists))
    plan, bound = answer
    if plan is None:
        return TimedOut(None, bound)
    return judged(plan, problem, bound, time.monotonic() - began, expired())


def _answer(
    problem: Problem, known: Plan | None, expired: Callable[[], bool], seconds: float, hint: Plan | None
) -> tuple[Plan | None, float] | None:
    """Plan and bound (None for a plan: none found); None if there is no valid plan."""
    if problem.objective.goal is Goal.THROUGHPUT:
        from splitinference.core.solve.throughput import most_throughput

        return most_throughput(problem, known, expired)
    if not needs_choice(problem):
        return _chains(problem, Tables(problem), known, expired, hint)
    from splitinference.core.solve.several import plan_together

    found = plan_together([problem], expired, seconds)
    if found.plans is None:
        return (known, found.bound) if known else None if found.refuted else (None, found.bound)
    plan = found.plans[0]
    if known and objective_value(known, problem) <= objective_value(plan, problem) * (1 + SLACK):
        plan = known
    return plan, found.bound


def _exists(problem: Problem) -> bool:
    """Whether a problem has a plan, as far as a few seconds tell."""
    deadline = time.monotonic() + PROBE_SECONDS

    def expired() -> bool:
        return time.monotonic() > deadline

    if problem.objective.goal is Goal.THROUGHPUT:
        problem = problem.model_copy(update={"objective": Objective()})
    plain = problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"partial_runs": False})})
    found = _answer(plain, None, expired, PROBE_SECONDS, None)
    return found is not None and found[0] is not None


def judged(plan: Plan, problem: Problem, bound: float, seconds: float, late: bool) -> Outcome:
    """The outcome for a plan, after the judge has seen it; raises WrongAnswer if it is not valid."""
    found = violations(plan, problem)
    if found:
        raise WrongAnswer("; ".join(f"{v.constraint}: {v.message}" for v in found))
    prediction = predict(plan, problem)
    value = value_of(prediction, problem)
    most = problem.objective.goal is Goal.THROUGHPUT
    bound = max(bound, value) if most else min(bound, value)
    gap = abs(value - bound) / abs(value) if value else abs(bound)
    optimal = gap <= CLOSED
    known = f"no plan can be better than {bound:.4g} (gap {gap:.2%})" if math.isfinite(bound) else "with no bound of its own"
    proof = "proven best" if optimal else known
    words = explain(plan, prediction, problem, proof)
    done = plan.model_copy(
        update={"prediction": prediction, "value": value, "bound": bound, "gap": gap, "optimal": optimal, "explanation": words}
    )
    if late and gap > GOOD_ENOUGH:
        return TimedOut(done, bound)
    return Solved(done, bound, gap, optimal, seconds, words)


def needs_choice(problem: Problem) -> bool:
    """Whether a problem is about more than one chain of single nodes."""
    return problem.constraints.pipelines > 1 or problem.constraints.max_stage_nodes > 1


def _valid(problem: Problem, hint: Plan | None) -> Plan | None:
    if hint is None or hint.model_digest != problem.profile.digest or violations(hint, problem):
        return None
    return hint


def _chains(
    problem: Problem, tables: Tables, known: Plan | None, expired: Callable[[], bool], hint: Plan | None
) -> tuple[Plan | None, float] | None:
    """The best chain by the main goal, then by each further one among the best; None if there is no valid plan."""
    task = task_of(tables)
    value = value_of(predict(known, problem), problem) if known else math.inf
    chain = answer_of(task, value, expired)
    if chain.steps is None and known is None:
        return None if chain.proven else (None, chain.bound)
    plan = plan_of(tables, chain.steps, hint) if chain.steps else known
    bound = min(chain.bound, chain.value)
    for number, goal in enumerate(problem.objective.then):
        if plan is None or expired():
            break
        reached = goal_value(predict(plan, problem), (problem.objective.goal, *problem.objective.then)[number])
        task = _fixed(task, (problem.objective.goal, *problem.objective.then)[number], reached, goal)
        better = answer_of(task, goal_value(predict(plan, problem), goal), expired)
        if better.steps:
            plan = plan_of(tables, better.steps, hint)
    return plan, bound


def answer_of(task: Task, known: float, expired: Callable[[], bool]) -> Chain:
    """The best chain for a task, by thresholds where only the slowest stage or link counts."""
    if task.occupancy_weight and not task.utilization_weight and not task.objective.moved:
        return least_bottleneck(task, known, expired)
    if task.occupancy_weight and not task.objective.moved and not task.tables.shares_node.any():
        return least_with_peak(task, known, expired)
    if task.occupancy_weight and not task.utilization_weight:
        return least_with_moves(task, known, expired)
    return best_chain(task, known, expired)


def _fixed(task: Task, goal: Goal, reached: float, following: Goal) -> Task:
    """The task with `goal` kept at what was reached, and `following` to be minimised."""
    return with_goal(keep_goal(task, goal, reached), following)


def keep_goal(task: Task, goal: Goal, reached: float) -> Task:
    """The task with one more limit: `goal` not worse than `reached`."""
    from splitinference.core.solve.criterion import of_goal

    criterion = of_goal(task.tables, goal)
    return task.below(reached) if criterion is None else task.with_resource(criterion, reached)


def with_goal(task: Task, goal: Goal) -> Task:
    """The task with another objective."""
    from dataclasses import replace

    from splitinference.core.solve.criterion import of_goal, sum_of

    criterion = of_goal(task.tables, goal)
    return replace(task, objective=criterion or sum_of(task.tables), occupancy_weight=0.0 if criterion else 1.0)


def plan_of(tables: Tables, steps: tuple[Step, ...], hint: Plan | None) -> Plan:
    """The plan of a chain over classes: each use of a class gets a member of its own, those of the hint first."""
    wanted = {name for segment in hint.segments for name in segment.nodes} if hint else set()
    left = {step.place: sorted(tables.members[step.place], key=lambda member: member[1].node.name not in wanted) for step in steps}
    segments = []
    for step in steps:
        _, site = left[step.place].pop(0)
        segments.append(Segment(start=step.start, end=step.end, node=site.node.name, processor=site.processor))
    return Plan(model_digest=tables.problem.profile.digest, pipelines=(Pipeline(segments=tuple(segments)),))


__all__ = ["Chain", "WrongAnswer", "judged", "plan_of", "solve"]
