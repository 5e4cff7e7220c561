"""Prices for what the dynamic programme forgets, by subgradient steps: they lift its bound towards the optimum.

A path of the priced relaxation that forgets nothing after all is a valid chain, and offered as one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from splitinference.core.planner.chain.criterion import Arrays
from splitinference.core.planner.chain.relaxed import Step, complete, onward, path, turns_back
from splitinference.core.planner.chain.tables import Floats
from splitinference.core.planner.chain.task import SLACK, Multipliers, Task

REACH = 0.3
"""How far above a bound a step aims at most, as a share of it: a step to the known value at once overshoots where that is far."""


@dataclass(frozen=True)
class Priced:
    """The best prices found, the bound under them, and the cheapest valid chain met on the way."""

    prices: Multipliers
    bound: float
    steps: tuple[Step, ...] | None
    value: float


def sum_along(arrays: Arrays, steps: tuple[Step, ...]) -> float:
    """A criterion's sum along a chain."""
    terms = [float(arrays.entering()[steps[0].place])]
    for number, step in enumerate(steps):
        terms.append(arrays.segment(step.start, step.end, step.place))
        if number:
            terms.append(float(arrays.hops(step.start)[steps[number - 1].place, step.place]))
    return math.fsum(terms)


def visits(task: Task, steps: tuple[Step, ...]) -> list[int]:
    """The nodes that a chain comes to, in order; several segments in a row inside one node with processors are one visit."""
    t = task.tables
    result = []
    for number, step in enumerate(steps):
        before = steps[number - 1].place if number else -1
        if before < 0 or t.node[before] != t.node[step.place] or not t.shares_node[step.place]:
            result.append(int(t.node[step.place]))
    return result


def uses_of(task: Task, steps: tuple[Step, ...]) -> Floats:
    """How often a chain uses each class."""
    return np.bincount([step.place for step in steps], minlength=task.tables.count).astype(float)


def keeps_counts(task: Task, steps: tuple[Step, ...]) -> bool:
    """Whether a chain uses no place twice, leaves no node to come back, and keeps the limits on nodes and segments."""
    seen = visits(task, steps)
    nodes_with_processors = set(task.tables.node[task.tables.shares_node].tolist())
    shared = [v for v in seen if v in nodes_with_processors]
    return (
        bool((uses_of(task, steps) <= task.tables.multiplicity).all())
        and len(set(shared)) == len(shared)
        and (task.max_nodes is None or len(seen) <= task.max_nodes)
        and task.min_segments <= len(steps)
        and (task.max_segments is None or len(steps) <= task.max_segments)
    )


def crowded(task: Task) -> bool:
    """Whether several segments on one node's processors may break its utilization ceiling together, which only the search sees."""
    return bool(task.tables.shares_node.any()) and task.tables.problem.constraints.utilization_ceiling is not None


def price(task: Task, best: float, rounds: int, expired: Callable[[], bool], start: Multipliers | None = None) -> Priced:
    """At most `rounds` subgradient steps from `start` towards the best prices, given the value `best` of a known chain (inf: none)."""
    t = task.tables
    sums = task.sums
    counted = task.max_nodes is not None and not t.shares_node.any()
    multiplicity = np.minimum(t.multiplicity, t.layers).astype(float)
    current = start or Multipliers.none(task)
    base, built = None, current.resources
    result = Priced(current, -math.inf, None, best)
    pace, stale, turning = 1.0, 0, False
    for _ in range(rounds):
        if base is None or (current.resources != built).any():
            flat = Multipliers(np.zeros(t.count), current.resources)
            base, built = task.arrays(flat.priced(task)) if current.resources.any() else task.plain, current.resources
        uses = current.uses + current.per_node
        priced = onward(base, uses) if turning else complete(base, uses)
        steps = path(base, priced) if math.isfinite(priced.value) else ()
        if not turning and turns_back(base, steps):
            turning = True
            priced = onward(base, uses)
            steps = path(base, priced) if math.isfinite(priced.value) else ()
        if not steps:
            return Priced(current, math.inf, None, math.inf)
        bound = priced.value - current.constant(task)
        slack = bound - result.bound
        if slack > 0:
            result = Priced(current, bound, result.steps, result.value)
        stale = 0 if slack > 1e-4 * abs(bound) else stale + 1
        if stale == 4:
            pace, stale = pace / 2.0, 0
        totals = [sum_along(arrays, steps) for arrays in sums]
        over = np.array([total - r.limit for total, r in zip(totals, task.resources, strict=True)])
        if keeps_counts(task, steps) and all(o <= SLACK * r.limit for o, r in zip(over, task.resources, strict=True)):
            plain = task.is_a_sum and not crowded(task)
            value = sum_along(task.plain, steps) if plain else math.inf
            if value < result.value:
                result = Priced(result.prices, result.bound, steps, value)
        closed = math.isfinite(result.value) and result.value - result.bound <= SLACK * abs(result.value)
        if closed or expired() or pace < 0.02:
            break
        extra = uses_of(task, steps) - multiplicity
        more_nodes = float(len(steps) - task.max_nodes) if counted and task.max_nodes is not None else 0.0
        active = np.where((current.uses > 0) | (extra > 0), extra, 0.0)
        norm = float((active**2).sum()) + more_nodes**2
        target = min(result.value, bound + REACH * abs(bound))
        length = pace * max(target - bound, 0.005 * abs(bound)) / max(norm, 1e-12) if norm else 0.0
        raised = np.maximum(0.0, current.uses + length * active)
        per_node = max(0.0, current.per_node + length * more_nodes) if counted else 0.0
        gaps = np.array([max(target - bound, 0.005 * abs(bound)) for _ in over])
        resources = np.maximum(0.0, current.resources + pace * gaps * over / np.maximum(over**2, 1e-12)) if len(over) else current.resources
        current = Multipliers(raised, resources, per_node)
    return result


def rounds_for(task: Task) -> int:
    """How many rounds are worth it: fewer where one costs more. A number, not a time, so that answers do not depend on the machine."""
    work = task.tables.count * (task.tables.count + task.tables.layers) * task.tables.layers
    return int(min(48, max(12, 4e8 // max(work, 1))))
