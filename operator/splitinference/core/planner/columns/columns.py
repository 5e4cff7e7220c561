"""Chains as columns: candidates with all that they cost and take, from which several are chosen together."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from splitinference.core.cost.checks.violations import inspected
from splitinference.core.cost.evaluate import Evaluation, evaluate
from splitinference.core.cost.objective import value_of
from splitinference.core.cost.predict import prediction_of
from splitinference.core.cost.site import Site
from splitinference.core.planner.bottleneck.bottleneck import least_bottleneck
from splitinference.core.planner.chain.bounds.relaxed import Step
from splitinference.core.planner.chain.chain import best_chain
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.chain.task import Task, task_of
from splitinference.core.planner.columns.disjoint import least_apart
from splitinference.core.planner.columns.heuristics import greedy, memory_proportional
from splitinference.core.planner.columns.shared import Chains, Shared, least_shared
from splitinference.core.planner.progress import Progress
from splitinference.core.values.plan import Pipeline, Plan, Prediction, Segment
from splitinference.core.values.problem import Goal, Objective, Problem

MOST_ENUMERATED = 2_500
"""Up to so many chains all are columns, and the choice among them is exact."""
MANY_CLASSES = 300
MOST_STEPS = 20_000
"""Segments laid while chains are counted; beyond, they count as many."""


@dataclass(frozen=True)
class Column:
    """One chain alone: its prediction and what it lays on places."""

    pipeline: Pipeline
    prediction: Prediction
    laid: Evaluation

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes that it uses."""
        return frozenset(name for segment in self.pipeline.segments for name in segment.nodes)


@dataclass(frozen=True)
class Pool:
    """Columns of one problem; `whole`: there are no other chains; `bound`: for its value, as far as making columns gave one.

    `refuted`: it is proven that no chain is valid.
    """

    columns: tuple[Column, ...]
    whole: bool
    bound: float = -math.inf
    refuted: bool = False


def alone(problem: Problem) -> Problem:
    """The problem of one of its chains: what only all of them together can break is left out."""
    bounds = problem.constraints.model_copy(update={"pipelines": 1, "utilization_ceiling": None})
    return problem.model_copy(update={"constraints": bounds})


def pool(problem: Problem, expired: Callable[[], bool], progress: Progress | None = None) -> Pool:
    """All chains of a small problem; of a large one, good and varied ones. `progress` hears of plans on the way."""
    single = alone(problem)
    tables = Tables(single)
    found: dict[Pipeline, Column] = {}
    # Counted first: to lay out thousands of chains that then are too many would take the time of the good ones.
    few = _few(tables, single)
    if few is not None:
        for pipeline in few:
            _add(found, pipeline, single)
        return Pool(tuple(found.values()), whole=True)
    shared = shared_stages(tables, problem, expired)
    for pipeline in pipelines_of(tables, shared.chains or ()):
        _add(found, pipeline, single)
    told = len(found)
    _tell(found, problem, progress)
    for pipeline in _varied(tables, single, problem.constraints.pipelines, expired):
        _add(found, pipeline, single)
        if problem.constraints.max_stage_nodes > 1:
            for wider in _widened(pipeline, single):
                _add(found, wider, single)
        if len(found) > told:
            told = len(found)
            _tell(found, problem, progress)
    return Pool(tuple(found.values()), whole=False, bound=shared.bound)


def shared_stages(tables: Tables, problem: Problem, expired: Callable[[], bool]) -> Shared:
    """Chains with stages on several nodes and a bound, for a goal that they serve; nothing for another one."""
    bounds, single = problem.constraints, alone(problem)
    if bounds.max_stage_nodes == 1 or problem.objective.goal is not Goal.BOTTLENECK or not tables.count:
        return Shared(None, -math.inf)
    if bounds.pipelines > 1 and not bounds.disjoint_pipelines:
        return Shared(None, -math.inf)

    def met(chains: Chains) -> float:
        if tables.shares_node.any():
            return math.inf
        made = [column(pipeline, single) for pipeline in pipelines_of(tables, chains)]
        return max(math.inf if one is None else one.prediction.bottleneck_ms for one in made)

    return least_shared(tables, bounds.max_stage_nodes, bounds.pipelines, met, expired)


def pipelines_of(tables: Tables, chains: Chains) -> tuple[Pipeline, ...]:
    """Chains over classes as pipelines, each use of a class by a member of its own."""
    left, result = [list(members) for members in tables.members], []
    for chain in chains:
        segments = []
        for stage in chain:
            first, *others = [left[c].pop(0)[1] for c in stage.places]
            names = tuple(site.node.name for site in others)
            segments.append(Segment(start=stage.start, end=stage.end, node=first.node.name, processor=first.processor, replicas=names))
        result.append(Pipeline(segments=tuple(segments)))
    return tuple(result)


def column(pipeline: Pipeline, problem: Problem) -> Column | None:
    """A chain as a column; None if it is not valid alone."""
    plan = Plan(model_digest=problem.profile.digest, pipelines=(pipeline,))
    wrong, laid = inspected(plan, problem)
    return None if wrong or laid is None else Column(pipeline, prediction_of(laid, plan, problem), laid)


def unchecked(pipeline: Pipeline, problem: Problem) -> Column:
    """A chain that was priced under all rules as a column: if it breaks one, that is a defect, which the judge of answers shows."""
    plan = Plan(model_digest=problem.profile.digest, pipelines=(pipeline,))
    laid = evaluate(plan, problem)
    return Column(pipeline, prediction_of(laid, plan, problem), laid)


def plan_with(problem: Problem, columns: tuple[Column, ...]) -> Plan:
    """The plan of these columns, over which requests are spread evenly."""
    share = 1.0 / len(columns)
    ordered = sorted((c.pipeline for c in columns), key=lambda p: [(s.node, s.start) for s in p.segments])
    pipelines = tuple(Pipeline(segments=p.segments, share=share) for p in ordered)
    return Plan(model_digest=problem.profile.digest, pipelines=pipelines)


def _add(found: dict[Pipeline, Column], pipeline: Pipeline, problem: Problem) -> None:
    if pipeline not in found and (made := column(pipeline, problem)) is not None:
        found[pipeline] = made


def _tell(found: dict[Pipeline, Column], problem: Problem, progress: Progress | None) -> None:
    """A plan of the columns found so far, the latest and the best first, on nodes of their own."""
    count = problem.constraints.pipelines
    if progress is None or len(found) < count:
        return
    by_value = sorted(found.values(), key=lambda c: value_of(c.prediction, problem))
    for order in (by_value, list(reversed(found.values()))):
        taken: list[Column] = []
        used: set[str] = set()
        for one in order:
            if len(taken) < count and not used & one.nodes:
                taken.append(one)
                used |= one.nodes
        if len(taken) == count:
            progress.plan(plan_with(problem, tuple(taken)))


def _groups(tables: Tables, most: int) -> list[tuple[int, tuple[str, ...], str]]:
    """(class, nodes, processor) of every place, and of every set of up to `most` places that may hold a stage together."""
    places = [(c, site.node.name, site.processor) for c, members in enumerate(tables.members) for _, site in members]
    result: list[tuple[int, tuple[str, ...], str]] = [(c, (name,), processor) for c, name, processor in places]
    for size in range(2, min(most, len(places)) + 1):
        for chosen in combinations(places, size):
            if len({p for _, _, p in chosen}) == 1 and len({n for _, n, _ in chosen}) == size:
                result.append((chosen[0][0], tuple(n for _, n, _ in chosen), chosen[0][2]))
    return result


def _few(tables: Tables, problem: Problem) -> list[Pipeline] | None:
    """Every chain that the tables allow; None if they are many, or if to count them takes too many steps."""
    found: list[Pipeline] = []
    for step, chain in enumerate(_all(tables, problem)):
        if chain is not None:
            found.append(chain)
        if len(found) > MOST_ENUMERATED or step > MOST_STEPS:
            return None
    return found


def _all(tables: Tables, problem: Problem) -> Iterator[Pipeline | None]:
    """Every chain that the tables allow, replicated stages included; the judge sorts out the rest. None for each step on the way."""
    layers, bounds = tables.layers, problem.constraints
    groups = _groups(tables, bounds.max_stage_nodes) if sum(map(len, tables.members)) <= 8 else []
    if not groups:
        groups = [(c, (s.node.name,), s.processor) for c, members in enumerate(tables.members) for _, s in members]
    classes = {(s.node.name, s.processor): c for c, members in enumerate(tables.members) for _, s in members}
    allowed = [tables.allowed_from(a) for a in range(layers)]
    most = bounds.max_segments or layers

    def extend(done: tuple[Segment, ...], boundary: int) -> Iterator[Pipeline | None]:
        if boundary == layers:
            yield Pipeline(segments=done)
            return
        yield None
        if len(done) == most:
            return
        used = {(name, s.processor) for s in done for name in s.nodes}
        for _, names, processor in groups:
            if any((name, processor) in used for name in names):
                continue
            fits = np.logical_and.reduce([allowed[boundary][classes[name, processor]] for name in names])
            # Long runs first: of many places most short ones come to no end.
            for end in np.flatnonzero(fits)[::-1]:
                segment = Segment(start=boundary, end=int(end), node=names[0], processor=processor, replicas=names[1:])
                yield from extend((*done, segment), int(end))

    yield from extend((), 0)


def pipeline_of(tables: Tables, steps: tuple[Step, ...]) -> Pipeline:
    """A chain over classes as a pipeline over their first members."""
    return _taking([list(members) for members in tables.members], steps)


def _taking(left: list[list[tuple[int, Site]]], steps: tuple[Step, ...]) -> Pipeline:
    """A chain over classes as a pipeline; the members that it takes are no longer left."""
    segments = []
    for step in steps:
        _, site = left[step.place].pop(0)
        segments.append(Segment(start=step.start, end=step.end, node=site.node.name, processor=site.processor))
    return Pipeline(segments=tuple(segments))


def best_of(task: Task, expired: Callable[[], bool]) -> tuple[tuple[Step, ...] | None, float]:
    """The best chain and a bound, by the algorithm that suits the task."""
    if task.occupancy_weight and not task.utilization_weight and not task.objective.moved:
        found = least_bottleneck(task, float("inf"), expired)
    else:
        found = best_chain(task, float("inf"), expired)
    return found.steps, found.bound


def _varied(tables: Tables, problem: Problem, pipelines: int, expired: Callable[[], bool]) -> Iterator[Pipeline]:
    """The best chain; then chains of what is left; then the best of every part of the nodes dealt out evenly, and of every zone."""
    if pipelines > 1 and tables.count > MANY_CLASSES:
        # Of many places a first plan comes before the search for the best: one chain after the other on what is left.
        yield from _one_after_the_other(problem, pipelines, expired)
    if pipelines > 1 and problem.objective.goal is Goal.BOTTLENECK and not tables.shares_node.any():
        apart = least_apart(replace(task_of(tables), resources=()), pipelines, expired)
        members = [list(found) for found in tables.members]
        for chain in apart.chains or ():
            yield _taking(members, chain)
    nodes = [node for node in problem.snapshot.nodes if node.name not in tables.unusable]
    bounds = problem.constraints
    budgets = [g for g, limit in ((Goal.COST, bounds.max_cost_per_hour), (Goal.ENERGY, bounds.max_watts)) if limit is not None]
    goals = dict.fromkeys((problem.objective.goal, Goal.BOTTLENECK, Goal.LATENCY, *budgets))
    for goal in goals:
        left = list(nodes)
        for _ in range(max(pipelines, 2)):
            pipeline = _best_on(problem, goal, {node.name for node in left}, expired)
            if pipeline is None or expired():
                break
            yield pipeline
            used = {name for segment in pipeline.segments for name in segment.nodes}
            left = [node for node in left if node.name not in used]
        ranked = sorted(nodes, key=lambda n: (-n.flops_per_s, -n.memory_bandwidth_bytes_per_s, n.utilization or 0.0, n.name))
        for parts in {pipelines, pipelines + 1} - {1}:
            for hand in range(parts):
                dealt = {n.name for i, n in enumerate(ranked) if (i % (2 * parts)) in (hand, 2 * parts - 1 - hand)}
                pipeline = _best_on(problem, goal, dealt, expired)
                if pipeline is not None:
                    yield pipeline
        for zone in sorted({node.zone for node in nodes}):
            pipeline = _best_on(problem, goal, {n.name for n in nodes if n.zone == zone}, expired)
            if pipeline is not None:
                yield pipeline


def _one_after_the_other(problem: Problem, pipelines: int, expired: Callable[[], bool]) -> Iterator[Pipeline]:
    """Good chains by simple rules, each on the nodes that those before it leave."""
    left = {node.name for node in problem.snapshot.nodes}
    for _ in range(pipelines):
        nodes = tuple(node for node in problem.snapshot.nodes if node.name in left)
        part = problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})
        made = [found for rule in (greedy, memory_proportional) for pipeline in rule(part) if (found := column(pipeline, part))]
        if not made or expired():
            return
        best = min(made, key=lambda found: value_of(found.prediction, part))
        yield best.pipeline
        left -= best.nodes


def _best_on(problem: Problem, goal: Goal, names: set[str], expired: Callable[[], bool]) -> Pipeline | None:
    nodes = tuple(node for node in problem.snapshot.nodes if node.name in names)
    part = problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes}), "objective": Objective(goal=goal)})
    tables = Tables(part)
    if not tables.count or expired():
        return None
    steps, _ = best_of(task_of(tables), expired)
    return pipeline_of(tables, steps) if steps else None


def _widened(pipeline: Pipeline, problem: Problem) -> Iterator[Pipeline]:
    """The chain with ever more nodes for whichever stage is slowest, as long as that helps."""
    now = column(pipeline, problem)
    while now is not None:
        free = [n for n in problem.snapshot.nodes if n.name not in now.nodes]
        slowest = max(now.laid.stages, key=lambda s: max(c.occupancy_ms for c in s.costs) / len(s.costs))
        if len(slowest.sites) >= problem.constraints.max_stage_nodes:
            slowest = max(now.laid.stages, key=lambda s: (len(s.sites) < problem.constraints.max_stage_nodes, s.decode_ms))
        better: Column | None = None
        for node in free:
            wider = slowest.segment.model_copy(update={"replicas": (*slowest.segment.replicas, node.name)})
            segments = tuple(wider if s is slowest.segment else s for s in now.pipeline.segments)
            made = column(Pipeline(segments=segments), problem)
            if made and (better is None or made.prediction.bottleneck_ms < better.prediction.bottleneck_ms):
                better = made
        if better is None or better.prediction.bottleneck_ms >= now.prediction.bottleneck_ms:
            return
        yield better.pipeline
        now = better
