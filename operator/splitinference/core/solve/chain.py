"""The best chain for a task: dynamic programme, then prices, then search; as far as it takes to prove it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from splitinference.core.solve.alike import needed
from splitinference.core.solve.criterion import Arrays
from splitinference.core.solve.dual import crowded, keeps_counts, price, rounds_for, sum_along
from splitinference.core.solve.relaxed import Step, complete, most_segments, path, promising
from splitinference.core.solve.search import Search
from splitinference.core.solve.task import SLACK, Multipliers, Task

WIDTHS = (64, 1_000, 12_000)
"""Labels kept at a boundary, one try after the other; a number, not a time, so that the same problem gets the same plan."""


MOST_SEGMENTS = 20
FEW = 300


@dataclass(frozen=True)
class Chain:
    """A chain by places of `task`; `steps` is None if there is none (bound inf: proven) or none was found."""

    task: Task
    steps: tuple[Step, ...] | None
    value: float
    bound: float
    note: str

    @property
    def proven(self) -> bool:
        """Whether the answer is final: the best chain, or that there is none."""
        return self.value - self.bound <= 2 * SLACK * abs(self.value) if self.steps else math.isinf(self.bound)


def best_chain(task: Task, known: float, expired: Callable[[], bool]) -> Chain:
    """The best chain for `task` that is better than `known` (inf: no chain is known).

    With a `known` value, `steps` is None and bound at least `known` means that nothing better exists.
    """
    if task.tables.count == 0:
        return Chain(task, None, math.inf, math.inf, "no place is left")
    quick = _by_dynamic_programme(task)
    if quick is not None and (quick.proven or quick.bound >= known):
        return quick
    steps, value, bound = None, known, quick.bound if quick else -math.inf
    priced = price(task, value, rounds_for(task), expired)
    if math.isinf(priced.bound) and priced.bound > 0:
        return Chain(task, None, math.inf, math.inf, "the relaxation has no chain")
    if priced.steps and priced.value < value:
        steps, value = priced.steps, priced.value
    bound = max(bound, priced.bound) if task.is_a_sum else bound
    if steps and value - bound <= SLACK * abs(value):
        return Chain(task, steps, value, min(bound, value), "prices on repeated places close the gap")
    first = Search(task, priced.prices).run(16, value, expired)
    if first.steps:
        steps, value = first.steps, first.value
    bound = max(bound, min(first.bound, value))
    if first.complete:
        return Chain(task, steps, value, math.inf if math.isinf(value) else bound, "search, complete")
    if steps is None and math.isinf(value) and task.is_a_sum:
        steps, value, refuted = _within_limits(task, expired)
        if refuted:
            return Chain(task, None, math.inf, math.inf, "no chain keeps one of the limits")
    classes = list(range(task.tables.count))
    for width in WIDTHS:
        part, prices = task.only(classes), priced.prices.only(classes)
        if task.is_a_sum and math.isfinite(value):
            kept = _promising(part, prices, value)
            classes, part, prices = [classes[c] for c in kept], part.only(kept), prices.only(kept)
        if part.tables.count == 0:
            return Chain(task, steps, value, value, "no class of places is left that a better chain could use")
        search = Search(part, prices)
        kept = needed(part, search.alike, _at_most(part, search, value))
        if len(kept) < part.tables.count:
            classes, part = [classes[c] for c in kept], part.only(kept)
            again = price(part, value, rounds_for(part), expired)
            if again.steps and again.value < value:
                steps, value = tuple(Step(s.start, s.end, classes[s.place]) for s in again.steps), again.value
            search = Search(part, prices.only(kept))
            if again.bound > search.root_bound * (1 + SLACK):
                priced = replace(priced, prices=_spread(again.prices, classes, task.tables.count))
                search = Search(part, again.prices)
        found = search.run(width, value, expired)
        if found.steps:
            value = found.value
            steps = tuple(Step(s.start, s.end, classes[s.place]) for s in found.steps)
        bound = max(bound, min(found.bound, value))
        if found.complete:
            return Chain(task, steps, value, math.inf if math.isinf(value) else bound, f"search with {width} labels a boundary, complete")
        if expired():
            break
    return Chain(task, steps, value, bound, "search, not complete")


def _within_limits(task: Task, expired: Callable[[], bool]) -> tuple[tuple[Step, ...] | None, float, bool]:
    """A chain that keeps the limits on sums, found by minimising one of them; its value; and whether there can be none."""
    for number, resource in enumerate(task.resources):
        others = tuple(r for i, r in enumerate(task.resources) if i != number)
        found = best_chain(replace(task, objective=resource.criterion, resources=others), math.inf, expired)
        if found.bound > resource.limit * (1 + SLACK):
            return None, math.inf, True
        if found.steps and found.value <= resource.limit * (1 + SLACK):
            return found.steps, sum_along(Arrays(task.tables, task.objective, task.allowed, task.hops_open), found.steps), False
    return None, math.inf, False


def _spread(prices: Multipliers, classes: list[int], count: int) -> Multipliers:
    """Prices of some classes as prices of all, the others free of charge."""
    uses = np.zeros(count)
    uses[classes] = prices.uses
    return replace(prices, uses=uses)


def _at_most(task: Task, search: Search, value: float) -> int:
    """The most segments that a chain better than `value` can have."""
    limits = [task.tables.layers]
    if task.max_segments is not None:
        limits.append(task.max_segments)
    if task.max_nodes is not None and not task.tables.shares_node.any():
        limits.append(task.max_nodes)
    if task.is_a_sum and math.isfinite(value) and task.tables.count <= FEW:
        found = most_segments(search.priced, value + search.constant, MOST_SEGMENTS)
        if found is not None:
            limits.append(found)
    return min(limits)


def _by_dynamic_programme(task: Task) -> Chain | None:
    """The relaxation's answer: its chain, if valid, is the optimum of a sum; its value always a bound."""
    arrays = Arrays(task.tables, task.objective, task.allowed, task.hops_open)
    completion = complete(arrays)
    if math.isinf(completion.value):
        return Chain(task, None, math.inf, math.inf, "the relaxation has no chain")
    if not task.is_a_sum:
        return None
    steps = path(arrays, completion)
    sums = [sum_along(Arrays(task.tables, r.criterion, task.allowed, task.hops_open), steps) for r in task.resources]
    kept = all(total <= r.limit * (1 + SLACK) for total, r in zip(sums, task.resources, strict=True))
    if kept and keeps_counts(task, steps) and not crowded(task):
        return Chain(task, steps, completion.value, completion.value, "dynamic programme, no place repeated")
    return Chain(task, None, math.inf, completion.value, "dynamic programme, as a bound")


def _promising(task: Task, prices: Multipliers, value: float) -> list[int]:
    arrays = Arrays(task.tables, prices.priced(task), task.allowed, task.hops_open)
    return promising(arrays, complete(arrays), value + prices.constant(task))
