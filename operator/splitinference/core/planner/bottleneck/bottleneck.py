"""The chain whose slowest stage or link is taken for the least time: a threshold search.

At a threshold every slower stage and link is closed, and the question is whether a chain is left. It is not if prices on places
(the layers each can hold in that time, improved by subgradient steps) make even the cheapest chain of the relaxation cost more
than all places together. It is if the search finds one. The largest threshold refuted is the bound, the smallest met the value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from splitinference.core.planner.chain.bounds.dual import down, keeps_counts, sum_along, uses_of
from splitinference.core.planner.chain.bounds.relaxed import Step, complete, onward, path, turns_back
from splitinference.core.planner.chain.chain import Chain
from splitinference.core.planner.chain.criterion import Arrays, hop_occupancy, sum_of
from splitinference.core.planner.chain.equivalence import longest_only, merged
from splitinference.core.planner.chain.labelling.search import Search
from splitinference.core.planner.chain.tables import Floats
from splitinference.core.planner.chain.task import SLACK, Multipliers, Task
from splitinference.core.planner.chain.tell import SILENT, Tell

_TINY = 1e-6
ROUNDS = 24
WIDTHS = (40, 400, 6_000)
NEARLY = 2e-3
"""A gap too small to be worth the widest search."""


@dataclass(frozen=True)
class _Verdict:
    """About one threshold: a chain that keeps it, or a proof that none does, or neither."""

    steps: tuple[Step, ...] | None
    refuted: bool


def least_bottleneck(task: Task, known: float, expired: Callable[[], bool], tell: Tell = SILENT) -> Chain:
    """The chain of least occupancy, for a task whose objective is that alone; `known`: the value of a chain that is known already."""
    return _Thresholds(task, expired, tell).solve(known)


def occupancy_of(task: Task, steps: tuple[Step, ...]) -> float:
    """How long a step takes the slowest stage or link of a chain."""
    t = task.tables
    taken = [float(hop_occupancy(t, 0)[0][steps[0].place])]
    taken += [float(t.occupancy_from(step.start)[step.place, step.end]) for step in steps]
    taken += [float(hop_occupancy(t, after.start)[before.place, after.place]) for before, after in pairwise(steps)]
    return max(taken)


def occupancies(task: Task) -> Floats:
    """How long a step may take a stage or a link, ascending: the slowest of a chain is one of these."""
    t = task.tables
    found = [t.occupancy_from(a)[task.allowed[a]] for a in range(t.layers)]
    found.append(hop_occupancy(t, 0).ravel())
    found += [hop_occupancy(t, b).ravel() for b in {t.tensor_bytes(b): b for b in range(1, t.layers)}.values()]
    return np.unique(np.concatenate(found))


def longest(task: Task) -> Floats:
    """Boundary by class: layers of the longest segment from there."""
    ends = np.arange(task.tables.layers + 1)
    return np.stack([np.where(mask, ends[None, :] - a, 0).max(axis=1) for a, mask in enumerate(task.allowed[:-1])]).astype(float)


class _Thresholds:
    def __init__(self, task: Task, expired: Callable[[], bool], tell: Tell) -> None:
        self.tell = tell
        self.task = replace(task, objective=sum_of(task.tables), occupancy_weight=0.0)
        self.tables = task.tables
        self.expired = expired

    def solve(self, known: float) -> Chain:
        """Bisect over the values that occur: first with quick verdicts, then with wide searches in what is left between."""
        values = occupancies(self.task)
        best: tuple[Step, ...] | None = None
        value, low = known, 0
        if math.isinf(known):
            first = self._verdict(values[-1] if len(values) else 0.0, WIDTHS)
            if first.steps is None:
                bound = math.inf if first.refuted else 0.0
                return Chain(self.task, None, math.inf, bound, "no chain at any threshold" if first.refuted else "search, not complete")
            best, value = first.steps, occupancy_of(self.task, first.steps)
            self.tell.chain(best)
        for widths in (WIDTHS[:1], WIDTHS[:2], WIDTHS):
            floor = low
            high = int(np.searchsorted(values, value * (1 - SLACK)))
            while floor < high and not self.expired():
                middle = (floor + high) // 2
                verdict = self._verdict(float(values[middle]), widths)
                if verdict.steps is not None:
                    best, value = verdict.steps, occupancy_of(self.task, verdict.steps)
                    self.tell.chain(best)
                    high = min(middle, int(np.searchsorted(values, value * (1 - SLACK))))
                else:
                    floor = middle + 1
                    if verdict.refuted:
                        low = max(low, middle + 1)
                        if low < high:
                            self.tell.bound(float(values[low]))
            bound = float(values[low]) if low < len(values) else value
            if bound >= value * (1 - SLACK):
                return Chain(self.task, best, value, value, "every smaller threshold refuted")
            if self.expired() or (widths != WIDTHS and value - bound <= NEARLY * value):
                break
        return Chain(self.task, best, value, min(value, bound), "thresholds, not all refuted")

    def _verdict(self, threshold: float, widths: tuple[int, ...]) -> _Verdict:
        task, groups = merged(self.task.below(threshold))
        verdict = self._verdict_on(longest_only(task), widths)
        if verdict.steps is None:
            return verdict
        left = [[c for c in group for _ in range(int(self.tables.multiplicity[c]))] for group in groups]
        return _Verdict(tuple(Step(s.start, s.end, left[s.place].pop(0)) for s in verdict.steps), refuted=False)

    def _verdict_on(self, task: Task, widths: tuple[int, ...]) -> _Verdict:
        arrays = task.plain
        verdict, prices = self._price(task, arrays)
        if verdict.steps is not None or verdict.refuted:
            return verdict
        scale = float(prices @ self._most_uses(task))
        search = Search(task, Multipliers(prices / scale, np.zeros(len(task.resources))))
        for width in widths:
            found = search.run(width, _TINY, self.expired, enough=0.0)
            if found.steps is not None:
                return _Verdict(found.steps, refuted=False)
            if found.complete:
                return _Verdict(None, refuted=True)
        return _Verdict(None, refuted=False)

    @staticmethod
    def _most_uses(task: Task) -> Floats:
        return np.minimum(task.tables.multiplicity, task.tables.layers).astype(float)

    def _price(self, task: Task, arrays: Arrays) -> tuple[_Verdict, Floats]:
        """Refute the threshold by prices, or meet a chain on the way; else the best prices found."""
        most = self._most_uses(task)
        reach = longest(task)
        if not reach.any():
            return _Verdict(None, refuted=True), most
        sums = [(arrays, r.limit) for arrays, r in zip(task.sums, task.resources, strict=True)]
        starts = [held / float(held @ most) for held in (np.median(reach, axis=0), reach.max(axis=0)) if held.any()]
        prices = max(starts, key=lambda found: complete(arrays, found).value / self._budget(task, found, most))
        best, best_prices, pace, turning = -math.inf, prices, 0.5, False
        for _ in range(ROUNDS):
            if self.expired():
                break
            relaxed = onward(arrays, prices) if turning else complete(arrays, prices)
            if not turning and math.isfinite(relaxed.value) and turns_back(arrays, path(arrays, relaxed)):
                turning, relaxed = True, onward(arrays, prices)
            if not math.isfinite(relaxed.value) or relaxed.value > (1.0 + SLACK) * self._budget(task, prices, most):
                return _Verdict(None, refuted=True), prices
            steps = path(arrays, relaxed)
            for chain in (steps, down(task, arrays, relaxed)):
                within = chain is not None and all(sum_along(a, chain) <= limit * (1 + SLACK) for a, limit in sums)
                if chain is not None and within and keeps_counts(task, chain) and not self.tables.shares_node.any():
                    return _Verdict(chain, refuted=False), prices
            quality = relaxed.value / self._budget(task, prices, most)
            if quality > best:
                best, best_prices = quality, prices
            else:
                pace *= 0.8
            extra = uses_of(task, steps) / np.maximum(most, 1.0) - 1.0
            prices = prices * np.exp(pace * np.clip(extra, -1.0, 2.0) * (1.0 - min(quality, 0.98)) * 4.0)
            prices = prices / float(prices @ most)
        return _Verdict(None, refuted=False), best_prices

    @staticmethod
    def _budget(task: Task, prices: Floats, most: Floats) -> float:
        """What the places of any valid chain cost together at most: all, or the dearest `max_nodes` of them."""
        if task.max_nodes is None or task.tables.shares_node.any():
            return float(prices @ most)
        order = np.argsort(-prices, kind="stable")
        left, total = float(task.max_nodes), 0.0
        for c in order:
            count = min(left, most[c])
            total += count * float(prices[c])
            left -= count
            if left <= 0:
                break
        return total
