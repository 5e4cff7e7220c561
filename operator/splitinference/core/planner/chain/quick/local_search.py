"""A chain made better by single changes: cut anew, one place exchanged for a free one, two places swapped.

Given the sequence of its places, a chain's cuts are a small dynamic programme over (place in the sequence, boundary); many
sequences are cut at once.
"""

import math
from itertools import combinations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from splitinference.core.planner.chain.bounds.relaxed import Step
from splitinference.core.planner.chain.criterion import Arrays
from splitinference.core.planner.chain.tables import Floats, Ints
from splitinference.core.planner.chain.task import SLACK

ROUNDS = 6
"""Times that a chain is mended; each finds the best single change, so few are enough."""


class Cuts:
    """The cheapest cuts of sequences of classes. Sequences are rows of an array: row by place in the sequence."""

    def __init__(self, arrays: Arrays) -> None:
        t = arrays.tables
        self.layers, self.multiplicity = t.layers, t.multiplicity
        self.reach = max(stop - a - 1 for a, stop in enumerate(arrays.stop))
        # By class, end and length - 1: the cost of the segment that ends there; windows of what is before slide along.
        self.segments = np.full((t.count, t.layers + 1, self.reach), np.inf)
        for a in range(t.layers):
            length = np.arange(arrays.stop[a] - a - 1)
            self.segments[:, a + 1 + length, length] = arrays.segments_from(a)
        self.entering = arrays.entering()
        distinct = {id(hops): hops for hops in (arrays.hops(b) for b in range(1, t.layers))}
        kinds = {key: number for number, key in enumerate(distinct)}
        self._hops = np.stack(list(distinct.values())) if distinct else np.full((1, t.count, t.count), np.inf)
        self._kind = np.array([0, *(kinds[id(arrays.hops(b))] for b in range(1, t.layers)), 0])

    def hop(self, before: Ints, after: Ints) -> Floats:
        """Pair by boundary: cost of the hop from class to class; none at the ends of the model."""
        found: Floats = self._hops[:, before, after][self._kind].T
        found[:, [0, self.layers]] = np.inf
        return found

    def over(self, start: Floats, places: Ints) -> Floats:
        """Row by end: least cost of `start` (row by boundary) and one segment from there, each row's on its class."""
        padded = np.full((len(start), self.layers + self.reach), np.inf)
        padded[:, self.reach :] = start[:, : self.layers]
        # Window e - 1 of the padded row holds the boundaries e - reach .. e - 1; turned round, by length - 1.
        before = sliding_window_view(padded, self.reach, axis=1)[:, 1 : self.layers + 1, ::-1]
        found = np.full((len(start), self.layers + 1), np.inf)
        found[:, 1:] = (before + self.segments[places, 1:]).min(axis=2)
        return found

    def first(self, places: Ints) -> Floats:
        """Row by boundary: cost up to the start of a sequence's first segment."""
        start = np.full((len(places), self.layers + 1), np.inf)
        start[:, 0] = self.entering[places]
        return start

    def ahead(self, sequences: Ints) -> list[Floats]:
        """For each place in the sequences: least cost up to the start of its segment, row by boundary."""
        result = [self.first(sequences[:, 0])]
        for number in range(sequences.shape[1] - 1):
            reached = self.over(result[-1], sequences[:, number])
            result.append(reached + self.hop(sequences[:, number], sequences[:, number + 1]))
        return result

    def behind(self, places: Ints) -> Floats:
        """For each place in one sequence, by boundary: least cost from the start of its segment there to the end of the chain."""
        a, length = np.arange(self.layers)[:, None], np.arange(self.reach)[None, :]
        ends = np.minimum(a + 1 + length, self.layers)
        inside = a + 1 + length <= self.layers
        result = np.full((len(places), self.layers + 1), np.inf)
        rest = np.full(self.layers + 1, np.inf)
        rest[self.layers] = 0.0
        for number in range(len(places) - 1, -1, -1):
            segments = np.where(inside, self.segments[places[number], ends, length], np.inf)
            result[number, : self.layers] = (segments + rest[ends]).min(axis=1)
            if number:
                rest = result[number] + self.hop(places[number - 1 : number], places[number : number + 1])[0]
        return result

    def exchanged(self, places: Ints, number: Ints, other: Ints) -> Floats:
        """Least costs of the chains where the place at `number` of the sequence is `other` instead; row by row."""
        ahead, behind = np.concatenate(self.ahead(places[None])), self.behind(places)
        start, rest = self.first(other), np.full((len(other), self.layers + 1), np.inf)
        inner = np.flatnonzero(number > 0)
        before = places[number[inner] - 1]
        reached = self.over(ahead[:-1], places[:-1])
        start[inner] = reached[number[inner] - 1] + self.hop(before, other[inner])
        rest[:, self.layers] = 0.0
        inner = np.flatnonzero(number < len(places) - 1)
        rest[inner] = behind[number[inner] + 1] + self.hop(other[inner], places[number[inner] + 1])
        return np.asarray((self.over(start, other) + rest).min(axis=1))

    def values(self, sequences: Ints) -> Floats:
        """Least cost of a chain over each sequence; inf where there is none."""
        return self.over(self.ahead(sequences)[-1], sequences[:, -1])[:, self.layers]

    def chain(self, places: Ints) -> tuple[Step, ...]:
        """The chain of least cost over one sequence that has one."""
        end, steps = self.layers, []
        for number, start in reversed(list(enumerate(self.ahead(places[None])))):
            shortest, longest = max(0, end - self.reach), end
            ways = start[0, shortest:longest][::-1] + self.segments[places[number], end, : longest - shortest]
            begin = end - 1 - int(np.argmin(ways))
            steps.append(Step(begin, end, int(places[number])))
            end = begin
        return tuple(reversed(steps))


def mended(arrays: Arrays, steps: tuple[Step, ...]) -> list[tuple[Step, ...]]:
    """Chains from this one by single changes, each better than the one before, while a change helps."""
    cuts = Cuts(arrays)
    places = np.array([step.place for step in steps])
    value = float(cuts.values(places[None])[0])
    result = [cuts.chain(places)] if math.isfinite(value) else []
    for _ in range(ROUNDS if result else 0):
        better = min(_exchanged(cuts, places), _swapped(cuts, places), key=lambda found: found[0])
        if better[0] >= value * (1 - SLACK):
            break
        value, places = better
        result.append(cuts.chain(places))
    return result


def _swapped(cuts: Cuts, places: Ints) -> tuple[float, Ints]:
    """The best swap of two places of the sequence; inf where there is none."""
    others = []
    for i, j in combinations(range(len(places)), 2):
        if places[i] != places[j]:
            other = places.copy()
            other[[i, j]] = other[[j, i]]
            others.append(other)
    if not others:
        return math.inf, places
    found = cuts.values(np.array(others))
    at = int(np.argmin(found))
    return float(found[at]), others[at]


def _exchanged(cuts: Cuts, places: Ints) -> tuple[float, Ints]:
    """The best exchange of one place for a free one; inf where there is none."""
    free = np.flatnonzero(np.bincount(places, minlength=len(cuts.multiplicity)) < cuts.multiplicity)
    number, other = (grid.ravel() for grid in np.meshgrid(np.arange(len(places)), free, indexing="ij"))
    differs = places[number] != other
    number, other = number[differs], other[differs]
    if not len(other):
        return math.inf, places
    found = cuts.exchanged(places, number, other)
    at = int(np.argmin(found))
    changed = places.copy()
    changed[number[at]] = other[at]
    return float(found[at]), changed
