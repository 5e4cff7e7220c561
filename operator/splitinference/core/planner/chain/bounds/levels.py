"""Cheapest chains under limits: what may still be spent, in whole units, is a dimension of the dynamic programme.

Nodes have few prices, so a chain's cost has few values. To prove that none below the best known value keeps the limits, the cost
is held exactly, level by level, and only the limits and the places used twice are priced: a much stronger bound than one that
prices all three, and a test that cuts labels of the search.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from splitinference.core.planner.chain.bounds.dual import keeps_counts, sum_along, uses_of
from splitinference.core.planner.chain.bounds.relaxed import Step
from splitinference.core.planner.chain.criterion import Arrays
from splitinference.core.planner.chain.tables import Bools, Floats, Ints
from splitinference.core.planner.chain.task import SLACK, Multipliers, Task

MOST_LEVELS = 400
MOST_CELLS = 4_000_000


@dataclass(frozen=True)
class Levels:
    """Costs in whole units: per class what entering it takes, and the most that a chain better than the known value may take.

    Rounded down where prices have no common unit: then a chain takes no more levels than it costs, and the bound stays one.
    """

    takes: Ints
    most: int
    unit: float
    exact: bool

    def below(self, value: float) -> "Levels":
        """The levels of chains cheaper than `value`."""
        return replace(self, most=math.ceil(value * (1 - SLACK) / self.unit - 1e-6) - 1)


@dataclass(frozen=True)
class Ahead:
    """Least priced use of the limits from a boundary to the end: `ended[c, b, v]` with v levels left; and what a valid chain may use."""

    ended: Floats
    starting: Floats
    least: float
    budget: float
    prices: Multipliers

    @property
    def refutes(self) -> bool:
        """Whether no chain within the levels keeps limits and places."""
        return self.least > self.budget * (1 + 2 * SLACK)


@dataclass(frozen=True)
class Verdict:
    """On chains cheaper than the known value: a valid one, or the proof that there is none (`ahead.refutes`), or neither."""

    steps: tuple[Step, ...] | None
    ahead: Ahead


def levels_of(task: Task, value: float) -> Levels | None:
    """The levels below `value`; None where the task's cost is not one of entering nodes alone, or has no limits, or is too large."""
    c = task.objective
    others = (c.prefill.any(), c.decode.any(), c.per_use.any(), c.moved, c.hop_prefill, c.hop_decode)
    if not task.is_a_sum or any(others) or not task.resources or task.tables.shares_node.any() or not 0 < value < math.inf:
        return None
    takes, unit, exact = None, value / MOST_LEVELS, False
    for scale in (1, 10, 100, 1_000, 10_000):
        whole = np.rint(c.entry * scale)
        if np.abs(whole - c.entry * scale).max() < 1e-9 * scale:
            common = reduce(math.gcd, [int(n) for n in whole]) or 1
            if value * scale / common <= MOST_LEVELS:
                takes, unit, exact = whole.astype(np.int64) // common, common / scale, True
            break
    if takes is None:
        takes = np.floor(c.entry / unit).astype(np.int64)
    levels = Levels(takes, 0, unit, exact).below(value)
    return levels if task.tables.count * (task.tables.layers + 1) * (levels.most + 1) <= MOST_CELLS else None


class Refutation:
    """The search for prices of limits and places under which no chain within the levels is left."""

    def __init__(self, task: Task, levels: Levels) -> None:
        self.task, self.levels = task, levels
        self.sums = task.sums
        self.limits = np.array([r.limit * (1 + SLACK) for r in task.resources])
        self.most = np.minimum(task.tables.multiplicity, task.tables.layers).astype(float)

    def run(self, start: Multipliers, rounds: int, expired: Callable[[], bool]) -> Verdict:
        """At most `rounds` subgradient steps; prices are shares: those of the limits and of all places add up to 1."""
        weights, uses = start.resources * self.limits, start.uses.copy()
        if not weights.any():
            weights, uses = np.full(len(self.limits), 1.0 / len(self.limits)), np.zeros(len(self.most))
        best: Ahead | None = None
        pace = 1.0
        for _ in range(rounds):
            total = float(weights.sum() + uses @ self.most)
            weights, uses = weights / total, uses / total
            ahead = self._ahead(Multipliers(uses, weights / self.limits))
            if best is None or ahead.least > best.least:
                best = ahead
            else:
                pace *= 0.9
            if ahead.refutes or expired():
                return Verdict(None, ahead)
            steps = self._path(ahead)
            over = np.array([sum_along(a, steps) for a in self.sums]) / self.limits - 1.0
            if (over <= 0).all() and keeps_counts(self.task, steps):
                return Verdict(steps, ahead)
            extra = uses_of(self.task, steps) - self.most
            extra = np.where((uses > 0) | (extra > 0), extra, 0.0)
            length = pace * (1.0 + 0.02 - ahead.least) / max(float(over @ over + extra @ extra), 1e-12)
            weights, uses = np.maximum(weights + length * over, 0.0), np.maximum(uses + length * extra, 0.0)
            if not weights.any():
                weights = np.full(len(self.limits), 1e-3)
        return Verdict(None, best or ahead)

    def _priced(self, prices: Multipliers) -> Arrays:
        zero = self.task.objective.times(0.0).with_use(prices.uses)
        for weight, resource in zip(prices.resources, self.task.resources, strict=True):
            zero = zero + resource.criterion.times(float(weight))
        return self.task.arrays(zero)

    def _ahead(self, prices: Multipliers) -> Ahead:
        arrays, takes, size = self._priced(prices), self.levels.takes, self.levels.most + 1
        layers, count = arrays.tables.layers, arrays.tables.count
        ended, starting = np.full((count, layers + 1, size), np.inf), np.full((layers + 1, count, size), np.inf)
        ended[:, layers] = 0.0
        before = np.arange(size)[None, :] - takes[:, None]
        able, before = before >= 0, np.maximum(before, 0)
        for b in range(layers - 1, -1, -1):
            if not arrays.tables.points[b] or arrays.stop[b] == b + 1:
                continue
            left = np.minimum.reduce(arrays.segments_from(b)[:, :, None] + ended[:, b + 1 : arrays.stop[b]], axis=1)
            starting[b] = np.where(able, np.take_along_axis(left, before, axis=1), np.inf)
            if b:
                ended[:, b] = np.minimum.reduce(arrays.hops(b)[:, :, None] + starting[b][None], axis=1)
        least = float((arrays.entering() + starting[0][:, -1]).min(initial=np.inf))
        budget = float(prices.resources @ self.limits + prices.uses @ self.most)
        return Ahead(ended, starting, least, budget, prices)

    def _path(self, ahead: Ahead) -> tuple[Step, ...]:
        """The chain of the relaxation's least value."""
        arrays, level, boundary = self._priced(ahead.prices), self.levels.most, 0
        place = int(np.argmin(arrays.entering() + ahead.starting[0][:, level]))
        steps: list[Step] = []
        while True:
            level -= int(self.levels.takes[place])
            ways = arrays.segments_from(boundary)[place] + ahead.ended[place, boundary + 1 : arrays.stop[boundary], level]
            end = boundary + 1 + int(np.argmin(ways))
            steps.append(Step(boundary, end, place))
            if end == arrays.tables.layers:
                return tuple(steps)
            place = int(np.argmin(arrays.hops(end)[place] + ahead.starting[end][:, level]))
            boundary = end


@dataclass(frozen=True)
class Cut:
    """Cuts labels of a search under the prices of `ahead`: those that can no longer keep limits, places and levels together."""

    levels: Levels
    ahead: Ahead

    def keeps(self, spent: Floats, nodes: Ints, used: Floats, place: Ints, end: Ints) -> Bools:
        """Which labels stay: cost and nodes so far, `used` of limits and places under the prices, last class, boundary reached."""
        levels = self.levels
        least = spent / levels.unit - (0.0 if levels.exact else nodes)
        left = levels.most - np.maximum(np.ceil(least - 1e-6), 0.0).astype(np.int64)
        rest = self.ahead.ended[place, end, np.maximum(left, 0)]
        return np.asarray((left >= 0) & (used + rest <= self.ahead.budget * (1 + 4 * SLACK)))
