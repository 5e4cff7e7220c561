"""Several chains at once: pipelines of one plan, stages on several nodes, plans of several problems on the same nodes."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from splitinference.core.cost.objective import objective_value, value_of
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.chain.task import task_of
from splitinference.core.planner.columns.columns import Pool, alone, best_of, column, plan_with, pool
from splitinference.core.planner.columns.disjoint import least_apart, least_sum_apart
from splitinference.core.planner.columns.fluid import least_step_ms
from splitinference.core.planner.columns.master import choose
from splitinference.core.planner.columns.presolve import needed_nodes
from splitinference.core.planner.columns.share import left_by
from splitinference.core.planner.progress import Progress
from splitinference.core.values.plan import Pipeline, Plan
from splitinference.core.values.problem import Goal, Problem

CHOICE_SECONDS = 5.0


@dataclass(frozen=True)
class Together:
    """Plans, one for each problem (None: none found), a bound for the sum of their values, and whether there can be none."""

    plans: tuple[Plan, ...] | None
    bound: float
    refuted: bool
    columns: int = 0


@dataclass(frozen=True)
class Reached:
    """What a problem reaches alone: a value, and a bound for it."""

    value: float
    bound: float

    @property
    def unit(self) -> float:
        """What the problem's value is divided by beside problems of other goals: the value; where that is 0, one of its unit."""
        return self.value or 1.0


def plan_together(
    problems: list[Problem],
    expired: Callable[[], bool],
    seconds: float,
    reached: Sequence[Reached] = (),
    known: Callable[[], Iterable[tuple[Plan, ...]]] = tuple,
    *,
    progress: Progress | None = None,
) -> Together:
    """Plans for all problems within what their nodes can hold; each problem's snapshot has the same nodes.

    What is minimised is the sum of the values; with `reached`, one for each problem, of the values over their units. `known` gives
    plans for all that share the nodes rightly: where not all chains are tried, the answer is no worse than the best of them.
    `progress`: of one problem alone, what it has so far.
    """
    if len(problems) == 1:
        problems = [needed_nodes(problems[0])]
    weights = [1.0 / found.unit for found in reached] or [1.0] * len(problems)
    pools = [pool(problem, expired, progress) for problem in problems]
    whole = all(p.whole for p in pools)
    given: list[tuple[Plan, ...]] = []
    if len(problems) > 1 and not whole:
        given = list(known())
        pools = [_wider(i, problems, pools, [plans[i] for plans in given], expired) for i in range(len(problems))]
    choice = choose(problems, pools, min(seconds, CHOICE_SECONDS), weights)
    if choice.columns is not None:
        given.append(tuple(plan_with(p, columns) for p, columns in zip(problems, choice.columns, strict=True)))
        if progress is not None:
            progress.plan(given[-1][0])
    bound = choice.bound
    if not whole:
        bounds = [found.bound for found in reached] or [
            max(_bound(problem, expired), p.bound) for problem, p in zip(problems, pools, strict=True)
        ]
        bound = sum(weight * least for weight, least in zip(weights, bounds, strict=True))
    if not given:
        return Together(None, bound, choice.refuted and whole)

    def value(plans: tuple[Plan, ...]) -> float:
        return sum(weight * objective_value(plan, p) for weight, plan, p in zip(weights, plans, problems, strict=True))

    # Of equals the last: the choice's own.
    best = min(reversed(given), key=value) if len(given) > 1 else given[0]
    return Together(best, bound, refuted=False, columns=sum(len(p.columns) for p in pools))


def _wider(index: int, problems: list[Problem], pools: list[Pool], known: list[Plan], expired: Callable[[], bool]) -> Pool:
    """The pool, the chains of plans that are known, and chains for what is left when another problem has taken its best."""
    single = alone(problems[index])
    columns = [*pools[index].columns, *(c for plan in known for p in plan.pipelines if (c := column(_whole(p), single)))]
    for other, p in enumerate(pools):
        if other == index or not p.columns:
            continue
        taken = min(p.columns, key=lambda c: value_of(c.prediction, problems[other]))
        left = left_by(problems[index], [Plan(model_digest="", pipelines=(taken.pipeline,))], [problems[other]])
        columns.extend(c for c in pool(left, expired).columns)
    unique = {c.pipeline: c for c in columns}
    return Pool(tuple(unique.values()), whole=False, bound=pools[index].bound)


def _whole(pipeline: Pipeline) -> Pipeline:
    """The pipeline as if all requests took it, as columns are."""
    return Pipeline(segments=pipeline.segments)


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
