"""The best chain for a task: dynamic programme, then prices, then search; as far as it takes to prove it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from splitinference.core.planner.chain.bounds.dual import crowded, keeps_counts, price, rounds_for, sum_along
from splitinference.core.planner.chain.bounds.levels import Cut, Refutation, levels_of
from splitinference.core.planner.chain.bounds.regions import region_bound
from splitinference.core.planner.chain.bounds.relaxed import Step, complete, most_segments, onward, path, promising, through, turns_back
from splitinference.core.planner.chain.equivalence import Alike, alike, needed
from splitinference.core.planner.chain.labelling.search import Search
from splitinference.core.planner.chain.quick.dive import dive
from splitinference.core.planner.chain.task import SLACK, Multipliers, Task
from splitinference.core.planner.chain.tell import SILENT, Tell

WIDTHS = (64, 1_000, 12_000)
"""Labels kept at a boundary, one try after the other; a number, not a time, so that the same problem gets the same plan."""


FAR_APART, PATIENT = 0.01, 8
"""Where a search leaves so large a gap, so many times the rounds of prices come before the next one: wider searches close little."""
NARROW = 16
LEVEL_ROUNDS = 12
MOST_SEGMENTS = 20
FEW = 300
CORE = 120
"""Of more than `FEW` classes, so many are looked at first."""
FAR = 0.7
"""A bound below this share of the value leaves out few classes by itself: those behind enough better ones go first, which is quicker."""
FEW_CLASSES = 12
"""Of so few classes there are not many labels: the narrowest search would only be made twice."""


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


def best_chain(task: Task, known: float, expired: Callable[[], bool], widths: tuple[int, ...] = WIDTHS, tell: Tell = SILENT) -> Chain:
    """The best chain for `task` that is better than `known` (inf: no chain is known), with searches of these widths.

    With a `known` value, `steps` is None and bound at least `known` means that nothing better exists. `tell` hears of each chain and bound.
    """
    if task.tables.count == 0:
        return Chain(task, None, math.inf, math.inf, "no place is left")
    quick = _by_dynamic_programme(task)
    if quick is not None and (quick.proven or quick.bound >= known):
        return quick
    if quick is not None:
        tell.bound(quick.bound)
    return _Hunt(task, known, quick.bound if quick else -math.inf, expired, widths, tell=tell).chain()


class _Hunt:
    """For a task that the dynamic programme does not answer: prices, quick chains and searches on ever fewer classes of places.

    `part` is the task over `classes`, those that a chain better than `value` may need; `prices` are for them.
    """

    def __init__(
        self, task: Task, known: float, bound: float, expired: Callable[[], bool], widths: tuple[int, ...], *, tell: Tell = SILENT
    ) -> None:
        self.task, self.expired, self.widths, self.tell = task, expired, widths, tell
        self.steps: tuple[Step, ...] | None = None
        self.value, self.bound = known, bound
        self.classes = list(range(task.tables.count))
        self.part, self.prices = task, Multipliers.none(task)
        self._narrowed: tuple[float, Multipliers | None] = (math.inf, None)

    def chain(self) -> Chain:
        """The answer: closed by prices, by searches, or as far as they came."""
        self._start()
        self._dive()
        self._narrow()
        rounds = rounds_for(self.part)
        note = self._price(rounds // 3)
        if note:
            return self._answer(note)
        if self.task.is_a_sum and math.isfinite(self.value):
            before, value = len(self.classes), self.value
            self._narrow()
            if len(self.classes) > FEW_CLASSES:
                self._dive()
                self._narrow()
            if len(self.classes) < before or self.value < value:
                note = self._price(rounds // 2)
        else:
            note = self._look() or self._reach()
        return self._answer(note or self._search())

    def _answer(self, note: str) -> Chain:
        bound = math.inf if self.steps is None and math.isinf(self.value) and math.isinf(self.bound) else min(self.bound, self.value)
        return Chain(self.task, self.steps, self.value, bound, note)

    def _found(self, steps: tuple[Step, ...] | None, value: float, classes: Sequence[int] | None = None) -> None:
        """A chain over the part's classes, or over `classes` of the task."""
        if steps is not None and value < self.value:
            named = self.classes if classes is None else classes
            self.steps, self.value = tuple(Step(s.start, s.end, named[s.place]) for s in steps), value
            self.tell.chain(self.steps)

    def _proved(self, bound: float) -> bool:
        """Take a bound for the chains of the part; those outside are no better than `value`. Whether the answer is final now."""
        self.bound = max(self.bound, min(bound, self.value))
        if self.bound < self.value:
            self.tell.bound(self.bound)
        return self.bound >= self.value - SLACK * abs(self.value)

    def _start(self) -> None:
        """Of many classes, first those alone that the relaxation goes through at the least cost: their best chain leaves few others."""
        if not self.task.is_a_sum or self.task.tables.count <= FEW:
            return
        kept: set[int] = set()
        for arrays in (self.task.plain, *self.task.sums):
            order = np.argsort(through(arrays, complete(arrays)), kind="stable")
            kept.update(int(c) for c in order[: CORE // (1 + len(self.task.sums))])
            if self.expired():
                break
        core = sorted(kept)
        found = _Hunt(self.task.only(core), self.value, -math.inf, self.expired, WIDTHS[:1]).chain()
        self._found(found.steps, found.value, core)

    def _dive(self) -> None:
        if self.part.tables.count <= FEW:
            self._found(*dive(self.part, self.prices))

    def _price(self, rounds: int) -> str:
        if not self.part.tables.count:
            return self._nothing_left()
        priced = price(self.part, self.value, rounds, self.expired, self.prices)
        self._found(priced.steps, priced.value)
        self.prices = priced.prices
        if math.isinf(priced.bound) and priced.bound > 0:
            self.bound = self.value
            return "the relaxation has no better chain"
        return "prices on repeated places close the gap" if self.task.is_a_sum and self._proved(priced.bound) else ""

    def _nothing_left(self) -> str:
        self.bound = self.value
        return "no class of places is left that a better chain could use"

    def _narrow(self) -> None:
        """Leave out classes that no chain better than `value` needs: too dear, or behind enough better ones in their row."""
        value, prices = self._narrowed
        if not (self.task.is_a_sum and math.isfinite(self.value)) or (value == self.value and prices is self.prices):
            return
        unpriced = not self.prices.uses.any() and self.bound < FAR * self.value
        if unpriced:
            self._keep(self._needed())
        self._keep(_promising(self.part, self.prices, self.value))
        if self.part.tables.count and not unpriced:
            self._keep(self._needed())
        self._narrowed = (self.value, self.prices)

    def _needed(self) -> list[int]:
        found = alike(self.part, [self.part.plain, *self.part.sums], [])
        return needed(self.part, found, self._at_most(found))

    def _keep(self, kept: list[int]) -> None:
        if len(kept) < len(self.classes):
            self.classes = [self.classes[c] for c in kept]
            self.part, self.prices = self.part.only(kept), self.prices.only(kept)

    def _at_most(self, found: Alike) -> int:
        """The most segments that a chain better than `value` can have."""
        task = self.part
        limits = [task.tables.layers]
        if task.max_segments is not None:
            limits.append(task.max_segments)
        if task.max_nodes is not None and not task.tables.shares_node.any():
            limits.append(task.max_nodes)
        # Without prices the best of each row is no dearer than the others of it: then those are enough.
        heads = None if self.prices.uses.any() else found.rows
        if task.is_a_sum and math.isfinite(self.value) and (task.tables.count if heads is None else len(heads)) <= FEW:
            places = int(task.tables.multiplicity.sum())
            within = self.value + self.prices.constant(task)
            most = most_segments(task.under(self.prices), within, min(MOST_SEGMENTS, places), heads)
            if most is not None:
                limits.append(most)
        return min(limits)

    def _look(self) -> str:
        """A first narrow search, for a chain to start from."""
        found = Search(self.part, self.prices).run(NARROW, self.value, self.expired)
        self._found(found.steps, found.value)
        return "search, complete" if self._proved(found.bound) and found.complete else ""

    def _reach(self) -> str:
        """Where no chain keeps the limits on sums so far: minimise one of them."""
        if self.steps is not None or math.isfinite(self.value) or not self.task.is_a_sum:
            return ""
        steps, value, refuted = _within_limits(self.task, self.expired)
        self._found(steps, value)
        if refuted:
            self.bound = math.inf
        return "no chain keeps one of the limits" if refuted else ""

    def _search(self) -> str:
        for number, width in enumerate(self.widths):
            self._narrow()
            if not self.part.tables.count:
                return self._nothing_left()
            if number + 1 < len(self.widths) and width == WIDTHS[0] and len(self.classes) <= FEW_CLASSES and self.part.is_a_sum:
                continue
            cut = self._by_levels(width)
            if self._proved(self.bound):
                return "no cheaper chain keeps the limits, level by level of cost"
            prices = self.prices if cut is None else cut.ahead.prices.times(self.value)
            try:
                found = Search(self.part, prices, cut).run(width, self.value, self.expired)
            except MemoryError:
                # So many labels are too many: prices take no more memory than before.
                return self._price(PATIENT * rounds_for(self.part)) or "search, out of memory"
            self._found(found.steps, found.value)
            if self._proved(found.bound) and found.complete:
                return f"search with {width} labels a boundary, complete"
            if self.expired():
                break
            if cut is None and self.task.is_a_sum and self.value - self.bound > FAR_APART * abs(self.value):
                note = self._by_regions() or self._price(PATIENT * rounds_for(self.part))
                if note:
                    return note
        return "search, not complete"

    def _by_regions(self) -> str:
        found = region_bound(self.part, self.value, self.bound, PATIENT * rounds_for(self.part), self.expired)
        if found is None:
            return ""
        self._found(found.steps, found.value)
        return "hops between regions close the gap" if self._proved(found.bound) else ""

    def _by_levels(self, width: int) -> Cut | None:
        """Where cost is what nodes cost and limits stand in the way: halve the levels of cost between refuted and known.

        What comes back cuts labels of a search for chains cheaper than the known one.
        """
        levels = levels_of(self.part, self.value)
        if levels is None:
            return None
        tried, ahead = max(-1, math.ceil(self.bound / levels.unit - 1e-6) - 1) if self.bound > 0 else -1, None
        prices = self.prices
        rounds = LEVEL_ROUNDS if width == WIDTHS[0] else 4 * LEVEL_ROUNDS
        while tried < levels.most and not self.expired():
            middle = (tried + 1 + levels.most) // 2
            verdict = Refutation(self.part, replace(levels, most=middle)).run(prices, rounds, self.expired)
            prices = verdict.ahead.prices
            if verdict.steps is not None:
                self._found(verdict.steps, sum_along(self.part.plain, verdict.steps))
                levels = levels.below(self.value)
                continue
            tried, ahead = middle, verdict.ahead
            if verdict.ahead.refutes and self.bound < (middle + 1) * levels.unit:
                self.bound = min(self.value, (middle + 1) * levels.unit)
        if levels.most < 0:  # no chain is cheaper than one that costs nothing
            self.bound = self.value
            return None
        if ahead is None or tried != levels.most:
            ahead = Refutation(self.part, levels).run(prices, 1, self.expired).ahead
        return Cut(levels, ahead)


def _within_limits(task: Task, expired: Callable[[], bool]) -> tuple[tuple[Step, ...] | None, float, bool]:
    """A chain that keeps the limits on sums, found by minimising one of them; its value; and whether there can be none."""
    for number, resource in enumerate(task.resources):
        others = tuple(r for i, r in enumerate(task.resources) if i != number)
        found = best_chain(replace(task, objective=resource.criterion, resources=others), math.inf, expired)
        if found.bound > resource.limit * (1 + SLACK):
            return None, math.inf, True
        if found.steps and found.value <= resource.limit * (1 + SLACK):
            return found.steps, sum_along(task.plain, found.steps), False
    return None, math.inf, False


def _by_dynamic_programme(task: Task) -> Chain | None:
    """The relaxation's answer: its chain, if valid, is the optimum of a sum; its value always a bound."""
    arrays = task.plain
    completion = complete(arrays)
    if math.isinf(completion.value):
        return Chain(task, None, math.inf, math.inf, "the relaxation has no chain")
    if not task.is_a_sum:
        return None
    steps = path(arrays, completion)
    if turns_back(arrays, steps):
        completion = onward(arrays)
        if math.isinf(completion.value):
            return Chain(task, None, math.inf, math.inf, "every chain of the relaxation turns back")
        steps = path(arrays, completion)
    sums = [sum_along(arrays, steps) for arrays in task.sums]
    kept = all(total <= r.limit * (1 + SLACK) for total, r in zip(sums, task.resources, strict=True))
    if kept and keeps_counts(task, steps) and not crowded(task):
        return Chain(task, steps, completion.value, completion.value, "dynamic programme, no place repeated")
    return Chain(task, None, math.inf, completion.value, "dynamic programme, as a bound")


def _promising(task: Task, prices: Multipliers, value: float) -> list[int]:
    arrays = task.under(prices)
    completion = complete(arrays)
    if math.isfinite(completion.value) and turns_back(arrays, path(arrays, completion)):
        completion = onward(arrays)
    return promising(arrays, completion, value + prices.constant(task))
