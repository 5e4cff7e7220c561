"""Prices for what the dynamic programme forgets, by subgradient steps: they lift its bound towards the optimum.

A path of the priced relaxation that forgets nothing after all is a valid chain, and offered as one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from splitinference.core.planner.chain.bounds.relaxed import Completion, Step, complete, onward, path, turns_back
from splitinference.core.planner.chain.criterion import Arrays
from splitinference.core.planner.chain.tables import Floats, Ints
from splitinference.core.planner.chain.task import SLACK, Multipliers, Task

DIVE_EVERY = 4
"""Every so many rounds the priced relaxation is followed without coming back: under good prices that is a good chain."""
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


def _within(task: Task, sums: Sequence[Arrays], steps: tuple[Step, ...]) -> bool:
    return all(sum_along(arrays, steps) <= r.limit * (1 + SLACK) for arrays, r in zip(sums, task.resources, strict=True))


def down(task: Task, arrays: Arrays, completion: Completion | None = None, free: Ints | None = None) -> tuple[Step, ...] | None:
    """Step by step to the least of the relaxation, never to a place that is taken; None where the way ends.

    With a `completion` that is followed throughout; else the relaxation is solved anew on what is free before each step. `free`:
    how many places of each class there are; all of them by default.
    """
    t = task.tables
    left = (t.multiplicity if free is None else free).copy()
    taken = np.where(left > 0, 0.0, np.inf)
    steps: list[Step] = []
    boundary = 0
    while boundary < t.layers:
        rest = completion or complete(arrays, taken, since=boundary)
        reach = (arrays.entering() if boundary == 0 else arrays.hops(boundary)[steps[-1].place]) + rest.starting[boundary] + taken
        place = int(np.argmin(reach))
        if not math.isfinite(reach[place]):
            return None
        ways = arrays.segments_from(boundary)[place] + rest.ended[place, boundary + 1 : arrays.stop[boundary]]
        end = boundary + 1 + int(np.argmin(ways))
        steps.append(Step(boundary, end, place))
        left[place] -= 1
        if left[place] == 0:
            taken[place] = np.inf
        boundary = end
    return tuple(steps)


def price(
    task: Task, best: float, rounds: int, expired: Callable[[], bool], start: Multipliers | None = None, *, lowered: Arrays | None = None
) -> Priced:
    """At most `rounds` subgradient steps from `start` towards the best prices, given the value `best` of a known chain (inf: none).

    `lowered`: bound this instead of the objective; only for a task without limits on sums. Chains are still judged by the objective.
    """
    t = task.tables
    sums = task.sums
    multiplicity = np.minimum(t.multiplicity, t.layers).astype(float)
    current = start or Multipliers.none(task)
    base, built = None, current.resources
    result = Priced(current, -math.inf, None, best)
    pace, stale, turning = 1.0, 0, False
    dives = task.is_a_sum and not t.shares_node.any() and not crowded(task)
    for number in range(rounds):
        if base is None or (current.resources != built).any():
            flat = Multipliers(np.zeros(t.count), current.resources)
            base, built = task.arrays(flat.priced(task)) if current.resources.any() else lowered or task.plain, current.resources
        priced, steps, turning = _cheapest(base, current.uses + current.per_node, turning=turning)
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
        if dives and number % DIVE_EVERY == 0:
            chain = down(task, base, priced)
            if chain is not None and keeps_counts(task, chain) and _within(task, sums, chain):
                value = sum_along(task.plain, chain)
                if value < result.value:
                    result = Priced(result.prices, result.bound, chain, value)
        closed = math.isfinite(result.value) and result.value - result.bound <= SLACK * abs(result.value)
        if closed or expired() or pace < 0.02:
            break
        goal = max(min(result.value, bound + REACH * abs(bound)) - bound, 0.005 * abs(bound))
        current = _raised(task, current, uses_of(task, steps) - multiplicity, over, (goal, pace))
    return result


def _cheapest(arrays: Arrays, uses: Floats, *, turning: bool) -> tuple[Completion, tuple[Step, ...], bool]:
    """The priced relaxation, its chain (empty: none), and whether chains that turn back had to be left out."""
    if not turning:
        priced = complete(arrays, uses)
        steps = path(arrays, priced) if math.isfinite(priced.value) else ()
        if not turns_back(arrays, steps):
            return priced, steps, False
    priced = onward(arrays, uses)
    return priced, path(arrays, priced) if math.isfinite(priced.value) else (), True


def _raised(task: Task, current: Multipliers, extra: Floats, over: Floats, aim: tuple[float, float]) -> Multipliers:
    """One subgradient step: prices rise for classes and limits that the chain overdraws, and fall for others. `aim`: by how much the
    bound should rise, and the share of that which is tried."""
    goal, pace = aim
    counted = task.max_nodes is not None and not task.tables.shares_node.any()
    visited = float((extra + np.minimum(task.tables.multiplicity, task.tables.layers)).sum())
    more_nodes = visited - task.max_nodes if counted and task.max_nodes is not None else 0.0
    active = np.where((current.uses > 0) | (extra > 0), extra, 0.0)
    norm = float((active**2).sum()) + more_nodes**2
    length = pace * goal / max(norm, 1e-12) if norm else 0.0
    per_node = max(0.0, current.per_node + length * more_nodes) if counted else 0.0
    resources = current.resources
    if len(over):
        resources = np.maximum(0.0, resources + pace * goal * over / np.maximum(over**2, 1e-12))
    return Multipliers(np.maximum(0.0, current.uses + length * active), resources, per_node)


def rounds_for(task: Task) -> int:
    """How many rounds are worth it: fewer where one costs more. A number, not a time, so that answers do not depend on the machine."""
    work = task.tables.count * (task.tables.count + task.tables.layers) * task.tables.layers
    return int(min(48, max(12, 4e8 // max(work, 1))))
