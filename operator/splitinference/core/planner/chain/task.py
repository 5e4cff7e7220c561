"""One chain to be found: what to minimise, what to keep, which segments and hops are open. What the algorithms share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from splitinference.core.planner.chain.criterion import Arrays, Criterion, hop_occupancy, of_goal, per_node, stops, sum_of
from splitinference.core.planner.chain.tables import Bools, Floats, Tables

SLACK = 1e-9
"""Relative slack for limits on sums, the judge's own."""


def each_once(masks: Sequence[Bools], change: Callable[[Bools], Bools]) -> list[Bools]:
    """Every mask changed; masks that are one array stay one, as boundaries of equal tensors share theirs."""
    done: dict[int, Bools] = {}
    for mask in masks:
        if id(mask) not in done:
            done[id(mask)] = change(mask)
    return [done[id(mask)] for mask in masks]


@dataclass(frozen=True)
class SideConstraint:
    """A sum that must not be more than `limit`."""

    criterion: Criterion
    limit: float


@dataclass(frozen=True)
class Task:
    """Minimise `objective` + `occupancy_weight` * slowest stage or link + `utilization_weight` * peak utilization, over chains."""

    tables: Tables
    objective: Criterion
    occupancy_weight: float
    utilization_weight: float
    resources: tuple[SideConstraint, ...]
    allowed: Sequence[Bools]
    hops_open: Sequence[Bools] | None
    max_nodes: int | None
    min_segments: int
    max_segments: int | None

    @property
    def is_a_sum(self) -> bool:
        """Whether the objective is a sum over segments and hops alone."""
        return not self.occupancy_weight and not self.utilization_weight

    @cached_property
    def _stop(self) -> list[int]:
        return stops(self.allowed)

    def arrays(self, criterion: Criterion) -> Arrays:
        """A criterion over the task's open segments and hops."""
        return Arrays(self.tables, criterion, self.allowed, self.hops_open, self._stop)

    @cached_property
    def plain(self) -> Arrays:
        """The objective over the task's open segments and hops."""
        return self.arrays(self.objective)

    @cached_property
    def sums(self) -> list[Arrays]:
        """The limited sums over the task's open segments and hops, as `resources` has them."""
        return [self.arrays(resource.criterion) for resource in self.resources]

    def under(self, prices: "Multipliers") -> Arrays:
        """The objective and all prices over the task's open segments and hops."""
        if prices.per_node or prices.resources.any():
            return self.arrays(prices.priced(self))
        return self.plain.with_use(prices.uses)

    def below(self, occupancy_ms: float) -> "Task":
        """The same task with stages and links that are taken for longer than `occupancy_ms` closed."""
        t, limit = self.tables, occupancy_ms * (1 + SLACK)
        allowed = [mask & (t.occupancy_from(a) <= limit) for a, mask in enumerate(self.allowed)]
        taken = {size: hop_occupancy(t, b) <= limit for size, b in {t.tensor_bytes(b): b for b in range(1, t.layers)}.items()}
        opened = [hop_occupancy(t, 0) <= limit, *(taken[t.tensor_bytes(b)] for b in range(1, t.layers))]
        if self.hops_open is not None:
            both: dict[tuple[int, int], Bools] = {}
            for new, old in zip(opened, self.hops_open, strict=True):
                if (id(new), id(old)) not in both:
                    both[id(new), id(old)] = new & old
            opened = [both[id(new), id(old)] for new, old in zip(opened, self.hops_open, strict=True)]
        return replace(self, allowed=allowed, hops_open=opened)

    def only(self, classes: list[int]) -> "Task":
        """The same task over these classes alone."""
        grid = np.ix_(classes, classes)
        hops = None
        if self.hops_open is not None:
            hops = [self.hops_open[0][:, classes], *each_once(self.hops_open[1:], lambda mask: mask[grid])]
        return replace(
            self,
            tables=self.tables.only(classes),
            objective=self.objective.only(classes),
            resources=tuple(SideConstraint(r.criterion.only(classes), r.limit) for r in self.resources),
            allowed=[mask[classes] for mask in self.allowed],
            hops_open=hops,
        )

    def with_resource(self, criterion: Criterion, limit: float) -> "Task":
        """The same task with one more limit."""
        return replace(self, resources=(*self.resources, SideConstraint(criterion, limit)))


def task_of(tables: Tables) -> Task:
    """The chain task of a problem whose goal is about one chain."""
    problem = tables.problem
    objective, slo, bounds = problem.objective, problem.slo, problem.constraints
    main = of_goal(tables, objective.goal)
    resources = [
        SideConstraint(criterion, limit)
        for criterion, limit in (
            (sum_of(tables, prefill=1.0), slo.time_to_first_token_ms),
            (sum_of(tables, decode=1.0), slo.time_per_output_token_ms),
            (per_node(tables.price), bounds.max_cost_per_hour),
            (per_node(tables.draw), bounds.max_watts),
        )
        if limit is not None
    ]
    return Task(
        tables=tables,
        objective=(main or sum_of(tables)) + sum_of(tables, moved=objective.move_weight),
        occupancy_weight=0.0 if main else 1.0,
        utilization_weight=objective.utilization_weight,
        resources=tuple(resources),
        allowed=tables.allowed(),
        hops_open=None,
        max_nodes=bounds.max_nodes,
        min_segments=bounds.min_segments,
        max_segments=bounds.max_segments,
    )


@dataclass(frozen=True)
class Multipliers:
    """Prices on what the dynamic programme forgets: uses of each class, resources, nodes visited. All at least zero."""

    uses: Floats
    resources: Floats
    per_node: float = 0.0

    @staticmethod
    def none(task: Task) -> "Multipliers":
        """No price on anything."""
        return Multipliers(np.zeros(task.tables.count), np.zeros(len(task.resources)))

    def priced(self, task: Task) -> Criterion:
        """The objective's sum and all prices."""
        total = task.objective
        for price, resource in zip(self.resources, task.resources, strict=True):
            if price:
                total = total + resource.criterion.times(float(price))
        return total.with_use(self.uses, self.per_node)

    def only(self, classes: list[int]) -> "Multipliers":
        """The same prices for these classes alone."""
        return replace(self, uses=self.uses[classes])

    def times(self, factor: float) -> "Multipliers":
        """The same prices, weighted."""
        return Multipliers(self.uses * factor, self.resources * factor, self.per_node * factor)

    def constant(self, task: Task) -> float:
        """What the prices add at most to a valid chain: subtract it to get a bound."""
        total = float(self.uses @ np.minimum(task.tables.multiplicity, task.tables.layers))
        total += sum(float(p) * r.limit * (1 + SLACK) for p, r in zip(self.resources, task.resources, strict=True))
        return total + self.per_node * (task.max_nodes or 0)
