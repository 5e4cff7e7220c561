"""Several chains on places of their own: a bound for the slowest of them, and chains to choose from.

What prices do for one chain they do for several: under prices on places each chain costs at least the relaxation's least, and all
of them together use every place at most once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from splitinference.core.planner.bottleneck.bottleneck import longest, occupancies, occupancy_of
from splitinference.core.planner.chain.bounds.dual import down, keeps_counts, uses_of
from splitinference.core.planner.chain.bounds.relaxed import Step, complete, path
from splitinference.core.planner.chain.criterion import sum_of
from splitinference.core.planner.chain.tables import Floats
from splitinference.core.planner.chain.task import SLACK, Task

ROUNDS = 40


@dataclass(frozen=True)
class Apart:
    """Chains that share no place (None: none found), and a bound for the slowest of so many chains."""

    chains: tuple[tuple[Step, ...], ...] | None
    bound: float


def least_apart(task: Task, copies: int, expired: Callable[[], bool]) -> Apart:
    """The least bottleneck of `copies` chains on places of their own, for a task whose objective is that alone."""
    plain = replace(task, objective=sum_of(task.tables), occupancy_weight=0.0)
    values = occupancies(plain)
    low, high, best = 0, len(values), None
    refuted = 0
    while low < high and not expired():
        middle = (low + high) // 2
        chains, none = _within(plain.below(float(values[middle])), copies, expired)
        if chains is not None:
            best = chains
            slowest = max(occupancy_of(plain, chain) for chain in chains)
            high = min(middle, int(np.searchsorted(values, slowest * (1 - SLACK))))
        else:
            low = middle + 1
            refuted = max(refuted, low) if none else refuted
    return Apart(best, float(values[refuted]) if refuted < len(values) else math.inf)


def _within(task: Task, copies: int, expired: Callable[[], bool]) -> tuple[tuple[tuple[Step, ...], ...] | None, bool]:
    """Chains on the open segments and hops; else whether there are none."""
    t = task.tables
    arrays, most, reach = task.plain, t.multiplicity.astype(float), longest(task)
    if not reach.any():
        return None, True
    held = np.median(reach, axis=0) if np.median(reach, axis=0).any() else reach.max(axis=0)
    prices, pace = held / float(held @ most), 0.5
    for _ in range(ROUNDS):
        if expired():
            break
        relaxed = complete(arrays, prices)
        if not math.isfinite(relaxed.value) or copies * relaxed.value > 1.0 + SLACK:
            return None, True
        chains: list[tuple[Step, ...]] = []
        left = t.multiplicity.copy()
        while len(chains) < copies and (chain := down(task, arrays, relaxed, left)) is not None and keeps_counts(task, chain):
            chains.append(chain)
            left = left - uses_of(task, chain).astype(left.dtype)
        if len(chains) == copies:
            return tuple(chains), False
        extra = copies * uses_of(task, path(arrays, relaxed)) / np.maximum(most, 1.0) - 1.0
        prices = prices * np.exp(pace * np.clip(extra, -1.0, 2.0) * (1.0 - min(copies * relaxed.value, 0.98)) * 4.0)
        prices, pace = prices / float(prices @ most), pace * 0.95
    return None, False


def least_sum_apart(task: Task, copies: int, expired: Callable[[], bool]) -> float:
    """A bound for the dearest of `copies` chains on places of their own, for a task that is a sum: no less than their mean."""
    t = task.tables
    arrays, share = task.plain, t.multiplicity / copies
    prices: Floats = np.zeros(t.count)
    best, pace = -math.inf, 1.0
    for _ in range(ROUNDS):
        relaxed = complete(arrays, prices)
        if not math.isfinite(relaxed.value):
            return math.inf
        bound = relaxed.value - float(prices @ share)
        if bound <= best * (1 + 1e-4):
            pace *= 0.8
        best = max(best, bound)
        extra = uses_of(task, path(arrays, relaxed)) - share
        extra = np.where((prices > 0) | (extra > 0), extra, 0.0)
        norm = float(extra @ extra)
        if not norm or expired():
            break
        prices = np.maximum(0.0, prices + pace * 0.05 * abs(best) / norm * extra)
    return best
