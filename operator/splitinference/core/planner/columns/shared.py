"""Chains whose stages may be on several nodes, for the slowest place: thresholds, and under each a bound and a chain from prices.

A stage on m nodes takes each of them for an m-th of its time. So at a threshold T a run of layers may be on m places where each
of them alone would take at most m T for it. Under prices on places the cheapest way to hold a run is by the cheapest places that
may, and the cheapest chain is a shortest path over boundaries: if even that is dearer than all places together, no plan keeps T.
Links are left out: the bound holds with them, and chains are judged with them.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from splitinference.core.planner.chain.tables import Bools, Floats, Ints, Tables
from splitinference.core.planner.chain.task import SLACK

ROUNDS, MORE_ROUNDS = 40, 120
MANY, NEARLY = 20_000, 3e-3
"""Among so many thresholds, those nearer than this share are not told apart: each costs as much as one that matters."""
LOOK, ANEW = 4, 20
"""Every so many rounds a chain is looked for; every so many with the relaxation solved anew on what is left before each step."""


@dataclass(frozen=True)
class ClassStage:
    """One run of layers [start, end) on one or more places, by class."""

    start: int
    end: int
    places: tuple[int, ...]


Chains: TypeAlias = tuple[tuple[ClassStage, ...], ...]


@dataclass(frozen=True)
class Shared:
    """Chains that share no place (None: none found), and a bound for their slowest place."""

    chains: Chains | None
    bound: float


def least_shared(tables: Tables, most: int, copies: int, met: Callable[[Chains], float], expired: Callable[[], bool]) -> Shared:
    """The least bottleneck of `copies` chains on places of their own, with at most `most` places for a stage.

    `met` judges chains: their bottleneck in ms, links included; inf if they are not valid.
    """
    runs = _Runs(tables, most, copies)
    values = runs.values()
    low, high, refuted = 0, len(values), 0
    nearly = NEARLY if len(values) > MANY else 0.0
    best: Chains | None = None

    def differ(low: int, high: int) -> bool:
        return low < high and float(values[min(high, len(values) - 1)]) - float(values[low]) >= nearly * float(values[low])

    while differ(low, high) and not expired():
        middle = (low + high) // 2
        chains, none = runs.within(float(values[middle]), met, ROUNDS)
        if chains is not None:
            best, high = chains, min(middle, int(np.searchsorted(values, met(chains) * (1 - SLACK))))
        else:
            low = middle + 1
            refuted = max(refuted, low) if none else refuted
    # Between what is refuted and what is met some thresholds were neither: there only the bound is looked for, with more rounds.
    least = refuted
    while differ(least, high) and not expired():
        middle = (least + high) // 2
        if runs.within(float(values[middle]), None, MORE_ROUNDS)[1]:
            least = middle + 1
        else:
            high = middle
    return Shared(best, float(values[least]) if least < len(values) else float("inf"))


class _Runs:
    """All runs of layers that some place may hold: one column each; rows are places, a class as often as a stage can use it."""

    def __init__(self, tables: Tables, most: int, copies: int) -> None:
        self.tables, self.most, self.copies = tables, most, copies
        masks = [tables.allowed_from(a) for a in range(tables.layers)]
        pairs = [(a, int(b)) for a, mask in enumerate(masks) for b in np.flatnonzero(mask.any(axis=0))]
        self.start: Ints = np.array([a for a, _ in pairs], dtype=np.int64)
        self.end: Ints = np.array([b for _, b in pairs], dtype=np.int64)
        taken = [np.where(mask, tables.occupancy_from(a), np.inf)[:, mask.any(axis=0)] for a, mask in enumerate(masks)]
        often = np.minimum(tables.multiplicity, most)
        self.place: Ints = np.repeat(np.arange(tables.count), often)
        self.rank: Ints = np.concatenate([np.arange(n) for n in often])
        self.taken: Floats = np.concatenate(taken, axis=1) if pairs else np.zeros((tables.count, 0))
        self.since = np.searchsorted(self.start, np.arange(tables.layers + 1))

    def values(self) -> Floats:
        """How long a place may be taken for a step, ascending."""
        held = np.unique(self.taken[np.isfinite(self.taken)])
        return np.unique(np.concatenate([held / m for m in range(1, self.most + 1)]))

    def within(self, threshold: float, met: Callable[[Chains], float] | None, rounds: int) -> tuple[Chains | None, bool]:
        """Chains that keep the threshold, looked for if `met` judges them; else whether there are none."""
        threshold *= 1 + SLACK
        part = copy(self)
        part._keep(np.flatnonzero((self.taken <= self.most * threshold).any(axis=0)))
        return part._within(threshold, met, rounds)

    def _keep(self, runs: Ints) -> None:
        """Leave out all runs but these."""
        self.start, self.end, self.taken = self.start[runs], self.end[runs], self.taken[:, runs]
        self.since = np.searchsorted(self.start, np.arange(self.tables.layers + 1))

    def _within(self, threshold: float, met: Callable[[Chains], float] | None, rounds: int) -> tuple[Chains | None, bool]:
        t = self.tables
        able = [self.taken[self.place] <= m * threshold for m in range(1, self.most + 1)]
        most, held = t.multiplicity.astype(float), np.zeros(t.count)
        np.maximum.at(held, self.place, np.where(able[-1], (self.end - self.start)[None, :], 0).max(axis=1, initial=0))
        if not held.any():
            return None, True
        prices, pace, slower = held / float(held @ most), 0.5, 0.1 ** (1.0 / rounds)
        for number in range(1, rounds + 1):
            costs, by = self._costs(able, prices[self.place], slice(None))
            rest = self._rest(costs)
            if self.copies * rest[0] > 1.0 + SLACK:
                return None, True
            if met is not None and number % LOOK == 0:
                chains = self._chains(able, prices, rest, anew=number % ANEW == 0)
                if chains is not None and met(chains) <= threshold * (1 + SLACK):
                    return chains, False
            extra = self.copies * self._uses(able, prices[self.place], costs + rest[self.end], by) / np.maximum(most, 1.0) - 1.0
            prices = prices * np.exp(pace * np.clip(extra, -1.0, 2.0) * (1.0 - min(self.copies * rest[0], 0.98)) * 4.0)
            prices, pace = prices / float(prices @ most), pace * slower
        return None, False

    def _costs(self, able: list[Bools], price: Floats, some: slice) -> tuple[Floats, Ints]:
        """Per run: what the cheapest places that may hold it cost together, and how many they are; inf where there are none."""
        order = np.argsort(price, kind="stable")
        order = order[np.isfinite(price[order])]
        count = len(self.start[some])
        least, by = np.full(count, np.inf), np.ones(count, dtype=np.int64)
        for number, mask in enumerate(able, start=1):
            open_here = mask[order, some]
            before = np.cumsum(open_here, axis=0, dtype=np.int16)
            total = price[order] @ (open_here & (before <= number))
            better = (total < least) & (before[-1] >= number if len(order) else False)
            least[better], by[better] = total[better], number
        return least, by

    def _rest(self, costs: Floats) -> Floats:
        """Per boundary: the least cost of runs from there to the end."""
        rest = np.full(self.tables.layers + 1, np.inf)
        rest[-1] = 0.0
        for a in range(self.tables.layers - 1, -1, -1):
            some = slice(self.since[a], self.since[a + 1])
            rest[a] = (costs[some] + rest[self.end[some]]).min(initial=np.inf)
        return rest

    def _uses(self, able: list[Bools], price: Floats, ways: Floats, by: Ints) -> Ints:
        """How often the relaxation's least chain uses each class; `ways`: per run, the least cost of a chain's rest that begins with it."""
        order, boundary, used = np.argsort(price, kind="stable"), 0, []
        while boundary < self.tables.layers:
            begin, finish = self.since[boundary], self.since[boundary + 1]
            if begin == finish:
                break
            run = begin + int(np.argmin(ways[begin:finish]))
            number = by[run]
            used.append(order[able[number - 1][order, run]][:number])
            boundary = int(self.end[run])
        rows = np.concatenate(used) if used else np.zeros(0, dtype=np.int64)
        return np.bincount(self.place[rows], minlength=self.tables.count)

    def _chains(self, able: list[Bools], prices: Floats, rest: Floats, *, anew: bool) -> Chains | None:
        """Chains down the relaxation on places of their own, each step to the least on what is free; None where one ends.

        `anew`: with the relaxation solved before each step on what is free then.
        """
        left = self.tables.multiplicity.copy()
        result = []
        for _ in range(self.copies):
            stages: list[ClassStage] = []
            while (boundary := stages[-1].end if stages else 0) < self.tables.layers:
                price = np.where(self.rank < left[self.place], prices[self.place], np.inf)
                some = slice(int(self.since[boundary]), int(self.since[boundary + 1]))
                if anew:
                    rest = self._rest(self._costs(able, price, slice(None))[0])
                costs, by = self._costs(able, price, some)
                ways = costs + rest[self.end[some]]
                if not len(ways) or not np.isfinite(ways).any():
                    return None
                at = int(np.argmin(ways))
                run, number = some.start + at, int(by[at])
                rows = np.flatnonzero(able[number - 1][:, run] & np.isfinite(price))
                rows = rows[np.argsort(price[rows], kind="stable")][:number]
                stages.append(ClassStage(boundary, int(self.end[run]), tuple(int(c) for c in self.place[rows])))
                np.subtract.at(left, self.place[rows], 1)
            result.append(tuple(stages))
        return tuple(result)
