"""Columns for one chain: label setting prices the best chain and bounds it, goal by goal; heuristics add others where it is not proven."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from splitinference.core.cost import goal_value
from splitinference.core.cost.objective import value_of
from splitinference.core.planner.bottleneck.bottleneck import least_bottleneck
from splitinference.core.planner.bottleneck.moves import least_with_moves
from splitinference.core.planner.bottleneck.peak import least_with_peak
from splitinference.core.planner.chain.bounds.relaxed import Step
from splitinference.core.planner.chain.chain import Chain, best_chain
from splitinference.core.planner.chain.criterion import of_goal, sum_of
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.chain.task import Task, task_of
from splitinference.core.planner.chain.tell import SILENT, Tell
from splitinference.core.planner.columns.columns import Column, Pool, column, plan_with, unchecked
from splitinference.core.planner.columns.heuristics import heuristic_chains
from splitinference.core.planner.columns.presolve import needed_nodes
from splitinference.core.planner.progress import Progress
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.problem import Goal, Objective, Problem


def chain_pool(problem: Problem, known: Plan | None, expired: Callable[[], bool], hint: Plan | None, progress: Progress) -> Pool:
    """Columns for a problem of one chain: the best by its goals in order, and the valid plan that is `known`.

    Where the best is not proven, chains by heuristics are columns too: the choice is never worse than the best of them.
    """
    tables = Tables(needed_nodes(problem))
    task = task_of(tables)
    columns = [unchecked(known.pipelines[0], problem)] if known else []
    value = value_of(columns[0].prediction, problem) if columns else math.inf
    found = answer_of(task, value, expired, _Teller(problem, tables, hint, progress))
    if found.steps is not None:
        columns.append(unchecked(pipeline_by(tables, found.steps, hint), problem))
    elif not columns and found.proven:
        return Pool((), whole=False, bound=math.inf, refuted=True)
    if not found.proven and found.bound < value:
        columns.extend(_by_heuristics(problem))
    if problem.snapshot.network.shared and task.occupancy_weight:
        columns.extend(_beside_shared_links(problem, expired))
    bound = min(found.bound, found.value)
    if not columns:
        return Pool((), whole=False, bound=bound)
    columns.extend(_by_further_goals(task, min(columns, key=lambda c: value_of(c.prediction, problem)), expired, hint))
    return Pool(tuple(columns), whole=False, bound=bound)


@dataclass(frozen=True)
class _Teller:
    """Turns chains over classes into plans for the progress of a problem."""

    problem: Problem
    tables: Tables
    hint: Plan | None
    progress: Progress

    def chain(self, steps: tuple[Step, ...]) -> None:
        """A chain that is better than all before."""
        self.progress.plan(plan_with(self.problem, (unchecked(pipeline_by(self.tables, steps, self.hint), self.problem),)))

    def bound(self, value: float) -> None:
        """No chain is better."""
        self.progress.bound(value)


def _beside_shared_links(problem: Problem, expired: Callable[[], bool]) -> Iterator[Column]:
    """Chains that pass shared links less often: quickest for one request, and on one side of each link alone.

    Prices see each hop's own time on a shared link and not what several hops take of it together: their bound holds, but their chain
    may not be the best. That is for the choice among columns, which counts all.
    """
    yield from _by_heuristics(problem)
    snapshot = problem.snapshot
    sides: list[Problem] = [problem]
    for shared in snapshot.network.shared:
        behind = tuple(node for node in snapshot.nodes if shared.holds(node.name, node.zone))
        beyond = tuple(node for node in snapshot.nodes if not shared.holds(node.name, node.zone))
        sides += [problem.model_copy(update={"snapshot": snapshot.model_copy(update={"nodes": part})}) for part in (behind, beyond) if part]
    for number, side in enumerate(sides):
        for goal in (Goal.LATENCY, problem.objective.goal):
            if expired() or (number == 0 and goal is problem.objective.goal):
                continue
            tables = Tables(side.model_copy(update={"objective": Objective(goal=goal)}))
            found = answer_of(task_of(tables), math.inf, expired) if tables.count else None
            if found is not None and found.steps and (made := column(pipeline_by(tables, found.steps, None), problem)):
                yield made


def _by_heuristics(problem: Problem) -> Iterator[Column]:
    for pipeline in heuristic_chains(problem):
        made = column(pipeline, problem)
        if made is not None:
            yield made


def _by_further_goals(task: Task, best: Column, expired: Callable[[], bool], hint: Plan | None) -> Iterator[Column]:
    """For each further goal: a chain that is better by it, and no worse by all goals before."""
    problem = task.tables.problem
    goals = (problem.objective.goal, *problem.objective.then)
    for before, goal in zip(goals, problem.objective.then, strict=False):
        if expired():
            return
        task = with_goal(keep_goal(task, before, goal_value(best.prediction, before)), goal)
        better = answer_of(task, goal_value(best.prediction, goal), expired)
        if better.steps:
            best = unchecked(pipeline_by(task.tables, better.steps, hint), problem)
            yield best


def answer_of(task: Task, known: float, expired: Callable[[], bool], tell: Tell = SILENT) -> Chain:
    """The best chain for a task, by thresholds where only the slowest stage or link counts; `tell` hears of it as it goes."""
    if task.occupancy_weight and not task.utilization_weight and not task.objective.moved:
        return least_bottleneck(task, known, expired, tell)
    if task.occupancy_weight and not task.objective.moved and not task.tables.shares_node.any():
        return least_with_peak(task, known, expired, tell)
    if task.occupancy_weight and not task.utilization_weight:
        return least_with_moves(task, known, expired, tell)
    return best_chain(task, known, expired, tell=tell)


def keep_goal(task: Task, goal: Goal, reached: float) -> Task:
    """The task with one more limit: `goal` not worse than `reached`."""
    criterion = of_goal(task.tables, goal)
    return task.below(reached) if criterion is None else task.with_resource(criterion, reached)


def with_goal(task: Task, goal: Goal) -> Task:
    """The task with another objective."""
    criterion = of_goal(task.tables, goal)
    return replace(task, objective=criterion or sum_of(task.tables), occupancy_weight=0.0 if criterion else 1.0)


def pipeline_by(tables: Tables, steps: tuple[Step, ...], hint: Plan | None) -> Pipeline:
    """A chain over classes as a pipeline: each use of a class gets a member of its own, those of the hint first."""
    wanted = {name for segment in hint.segments for name in segment.nodes} if hint else set()
    left = {step.place: sorted(tables.members[step.place], key=lambda member: member[1].node.name not in wanted) for step in steps}
    segments = []
    for step in steps:
        _, site = left[step.place].pop(0)
        segments.append(Segment(start=step.start, end=step.end, node=site.node.name, processor=site.processor))
    return Pipeline(segments=tuple(segments))
