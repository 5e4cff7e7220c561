"""Several chains at once: pipelines of one plan, stages on several nodes, plans of several problems on the same nodes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from splitinference.core.plan import Pipeline, Plan
from splitinference.core.problem import Goal, Problem
from splitinference.core.solve.apart import least_apart, least_sum_apart
from splitinference.core.solve.choose import choose
from splitinference.core.solve.columns import Column, Pool, alone, best_of, pool
from splitinference.core.solve.fluid import least_step_ms
from splitinference.core.solve.share import left_by
from splitinference.core.solve.tables import Tables
from splitinference.core.solve.task import task_of

CHOICE_SECONDS = 5.0


@dataclass(frozen=True)
class Together:
    """Plans, one for each problem (None: none found), a bound for the sum of their values, and whether there can be none."""

    plans: tuple[Plan, ...] | None
    bound: float
    refuted: bool


def plan_together(problems: list[Problem], expired: Callable[[], bool], seconds: float) -> Together:
    """Plans for all problems within what their nodes can hold; each problem's snapshot has the same nodes."""
    pools = [pool(problem, expired) for problem in problems]
    if len(problems) > 1 and not all(p.whole for p in pools):
        pools = [_wider(i, problems, pools, expired) for i in range(len(problems))]
    choice = choose(problems, pools, min(seconds, CHOICE_SECONDS))
    whole = all(p.whole for p in pools)
    bound = choice.bound if whole else sum(_bound(problem, expired) for problem in problems)
    if choice.columns is None:
        return Together(None, bound, choice.refuted and whole)
    plans = tuple(_plan(p, columns) for p, columns in zip(problems, choice.columns, strict=True))
    return Together(plans, bound, refuted=False)


def _plan(problem: Problem, columns: tuple[Column, ...]) -> Plan:
    share = 1.0 / len(columns)
    ordered = sorted((c.pipeline for c in columns), key=lambda p: [(s.node, s.start) for s in p.segments])
    pipelines = tuple(Pipeline(segments=p.segments, share=share) for p in ordered)
    return Plan(model_digest=problem.profile.digest, pipelines=pipelines)


def _wider(index: int, problems: list[Problem], pools: list[Pool], expired: Callable[[], bool]) -> Pool:
    """The pool, and chains for what is left when another problem has taken its best."""
    columns = list(pools[index].columns)
    for other, p in enumerate(pools):
        if other == index or not p.columns:
            continue
        taken = min(p.columns, key=lambda c: c.prediction.latency_ms)
        left = left_by(problems[index], [Plan(model_digest="", pipelines=(taken.pipeline,))], [problems[other]])
        columns.extend(c for c in pool(left, expired).columns)
    unique = {c.pipeline: c for c in columns}
    return Pool(tuple(unique.values()), whole=False)


def _bound(problem: Problem, expired: Callable[[], bool]) -> float:
    """A bound for a problem alone: from its best single chain, and from what all nodes could do together.

    A stage on several nodes is never quicker for one request than on the best of them, but passes more requests: so for the
    bottleneck only the second bound holds there.
    """
    bounds, goal = problem.constraints, problem.objective.goal
    single = alone(problem)
    objective = single.objective.model_copy(update={"utilization_weight": 0.0})
    single = single.model_copy(update={"objective": objective, "constraints": single.constraints.model_copy(update={"max_stage_nodes": 1})})
    tables = Tables(single)
    if not tables.count:
        return math.inf
    fluid = bounds.pipelines * least_step_ms(tables) if goal is Goal.BOTTLENECK else -math.inf
    if goal is Goal.BOTTLENECK and bounds.max_stage_nodes > 1:
        return fluid
    task = task_of(tables)
    _, chain = best_of(task, expired)
    if bounds.pipelines > 1 and bounds.disjoint_pipelines and not tables.shares_node.any():
        if goal is Goal.BOTTLENECK and not task.objective.moved:
            chain = max(chain, least_apart(task, bounds.pipelines, expired).bound)
        elif goal is Goal.LATENCY and bounds.max_stage_nodes == 1 and task.is_a_sum:
            chain = max(chain, least_sum_apart(task, bounds.pipelines, expired))
    each = bounds.pipelines if goal is Goal.MOVE or (goal is Goal.COST and bounds.disjoint_pipelines) else 1
    return max(chain * each, fluid)
