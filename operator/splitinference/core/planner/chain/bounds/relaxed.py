"""The layered dynamic programme over (boundary, class) that forgets which places are taken.

Its value is a lower bound of every chain's cost; where its path uses no class more often than it has members, it is the optimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitinference.core.planner.chain.criterion import Arrays
from splitinference.core.planner.chain.tables import Floats, Ints


@dataclass(frozen=True)
class Step:
    """One segment [start, end) on a class of places."""

    start: int
    end: int
    place: int


@dataclass(frozen=True)
class Completion:
    """Least costs from a boundary to the end: `ended[c, b]` after a segment on c ended at b, `starting[b, c]` before one on c starts."""

    ended: Floats
    starting: Floats
    value: float


def complete(arrays: Arrays, uses: Floats | None = None, since: int = 0) -> Completion:
    """Backward pass down to boundary `since`, with a price for each use of a class on top.

    `value` is the least cost of a chain, inf if there is none (or if `since` is not 0).
    """
    layers, count = arrays.tables.layers, arrays.tables.count
    ended, starting = np.full((count, layers + 1), np.inf), np.full((layers + 1, count), np.inf)
    ended[:, layers] = 0.0
    add, least, points, stop = np.add, np.minimum.reduce, arrays.tables.points.tolist(), arrays.stop
    segments, hops, over = arrays.segments_from, arrays.hops, np.empty((count, count))
    for b in range(layers - 1, since - 1, -1):
        if not points[b] or stop[b] == b + 1:
            continue
        begun = starting[b]
        least(segments(b) + ended[:, b + 1 : stop[b]], axis=1, out=begun)
        if uses is not None:
            begun += uses
        if b:
            add(hops(b), begun, out=over)
            least(over, axis=1, out=ended[:, b])
    value = float((arrays.entering() + starting[0]).min(initial=np.inf))
    return Completion(ended, starting, value)


@dataclass(frozen=True)
class Onward(Completion):
    """As `Completion`, of chains that never turn back: from a place over another one to the first (two-cycle elimination).

    `ended` and `starting` are the least costs, `follower[c, b]` and `next[b, c]` the class that comes next there (-1: none), and
    `other_ended` and `other_starting` the least costs where that class may not come next.
    """

    follower: Ints
    next: Ints
    other_ended: Floats
    other_starting: Floats


def onward(arrays: Arrays, uses: Floats | None = None) -> Onward:
    """Backward pass as `complete`; where links are few or unlike, a bound much nearer to what chains can do.

    The elimination is that of Houck, Picard, Queyranne and Vemuganti (1980) for the travelling salesman: of each state the best way
    on and the best one by another successor are kept.
    """
    layers, count = arrays.tables.layers, arrays.tables.count
    single = arrays.tables.multiplicity == 1
    ended, other_ended = np.full((count, layers + 1), np.inf), np.full((count, layers + 1), np.inf)
    starting, other_starting = np.full((layers + 1, count), np.inf), np.full((layers + 1, count), np.inf)
    follower, following = np.full((count, layers + 1), -1, dtype=np.int64), np.full((layers + 1, count), -1, dtype=np.int64)
    ended[:, layers] = 0.0
    every = np.arange(count)
    for b in range(layers - 1, -1, -1):
        if not arrays.tables.points[b] or arrays.stop[b] == b + 1:
            continue
        ends = slice(b + 1, arrays.stop[b])
        segments = arrays.segments_from(b)
        whole = segments + ended[:, ends]
        at = whole.argmin(axis=1)
        starting[b] = whole[every, at]
        following[b] = np.where(np.isfinite(starting[b]), follower[:, ends][every, at], -1)
        apart = np.where(follower[:, ends] == following[b][:, None], segments + other_ended[:, ends], whole)
        other_starting[b] = apart.min(axis=1)
        if uses is not None:
            starting[b] += uses
            other_starting[b] += uses
        if b:
            over = arrays.hops(b) + starting[b]
            back = np.flatnonzero((following[b] >= 0) & single[following[b]])
            over[following[b][back], back] = arrays.hops(b)[following[b][back], back] + other_starting[b][back]
            follower[:, b] = over.argmin(axis=1)
            ended[:, b] = over[every, follower[:, b]]
            over[every, follower[:, b]] = np.inf
            other_ended[:, b] = over.min(axis=1)
    value = float((arrays.entering() + starting[0]).min(initial=np.inf))
    return Onward(ended, starting, value, follower, following, other_ended, other_starting)


def turns_back(arrays: Arrays, steps: tuple[Step, ...]) -> bool:
    """Whether a chain goes from a single place over another one back to it."""
    single = arrays.tables.multiplicity == 1
    return any(a.place == b.place and bool(single[a.place]) for a, b in zip(steps, steps[2:], strict=False))


def _path_onward(arrays: Arrays, found: Onward) -> tuple[Step, ...]:
    single, layers = arrays.tables.multiplicity == 1, arrays.tables.layers
    steps: list[Step] = []
    place, before, boundary = int(np.argmin(arrays.entering() + found.starting[0])), -1, 0
    while True:
        ends = slice(boundary + 1, arrays.stop[boundary])
        rest = found.ended[place, ends]
        if before >= 0 and single[before]:
            rest = np.where(found.follower[place, ends] == before, found.other_ended[place, ends], rest)
        end = boundary + 1 + int(np.argmin(arrays.segments_from(boundary)[place] + rest))
        steps.append(Step(boundary, end, place))
        if end == layers:
            return tuple(steps)
        begun = found.starting[end]
        if single[place]:
            begun = np.where(found.next[end] == place, found.other_starting[end], begun)
        over = arrays.hops(end)[place] + begun
        if before >= 0 and single[before]:
            over[before] = np.inf
        place, before, boundary = int(np.argmin(over)), place, end


def path(arrays: Arrays, completion: Completion) -> tuple[Step, ...]:
    """The chain that the completion's value belongs to; of equals the first."""
    if isinstance(completion, Onward):
        return _path_onward(arrays, completion)
    steps: list[Step] = []
    layers, stop = arrays.tables.layers, arrays.stop
    place = int(np.argmin(arrays.entering() + completion.starting[0]))
    boundary = 0
    while True:
        ways = arrays.segments_from(boundary)[place] + completion.ended[place, boundary + 1 : stop[boundary]]
        end = boundary + 1 + int(np.argmin(ways))
        steps.append(Step(boundary, end, place))
        if end == layers:
            return tuple(steps)
        place = int(np.argmin(arrays.hops(end)[place] + completion.starting[end]))
        boundary = end


def forward(arrays: Arrays) -> Floats:
    """Least cost of a chain from the gateway up to just before a segment on c starts at b: boundary by class."""
    layers, count = arrays.tables.layers, arrays.tables.count
    begun, done = np.full((layers + 1, count), np.inf), np.full((count, layers + 1), np.inf)
    begun[0] = arrays.entering()
    for b in range(layers):
        if b:
            begun[b] = np.minimum.reduce(done[:, b][:, None] + arrays.hops(b), axis=0)
        reached = done[:, b + 1 : arrays.stop[b]]
        np.minimum(reached, begun[b][:, None] + arrays.segments_from(b), out=reached)
    return begun


def through(arrays: Arrays, completion: Completion) -> Floats:
    """Per class: the least cost of a relaxed chain with a segment on it; inf where there is none."""
    begun = forward(arrays)
    least = np.full(arrays.tables.count, np.inf)
    for b in range(arrays.tables.layers):
        over = begun[b][:, None] + arrays.segments_from(b) + completion.ended[:, b + 1 : arrays.stop[b]]
        np.minimum(least, over.min(axis=1, initial=np.inf), out=least)
    return least


def promising(arrays: Arrays, completion: Completion, most: float) -> list[int]:
    """Classes with a segment that some relaxed chain of cost at most `most` goes through; the others can be left out."""
    return [int(c) for c in np.flatnonzero(through(arrays, completion) <= most)]


def most_segments(arrays: Arrays, most: float, cap: int, rows: Sequence[Sequence[int]] | None = None) -> int | None:
    """The most segments that a relaxed chain of cost at most `most` can have; None if that is `cap` or more.

    With `rows` of classes, each at least as good as the next and all of a row on equal links, only the first of each is looked at,
    and used as often as one likes: quicker, and never fewer.
    """
    layers = arrays.tables.layers
    firsts = list(range(arrays.tables.count)) if rows is None else [row[0] for row in rows]
    count, grid, hops_of = len(firsts), np.ix_(firsts, firsts), {}
    entry = arrays.criterion.entry

    def over(boundary: int) -> Floats:
        """Hops between the first of rows; within one, from the first to another of it."""
        full = arrays.hops(boundary)
        if rows is None:
            return full
        if id(full) not in hops_of:
            part = hops_of[id(full)] = full[grid]
            for number, row in enumerate(rows):
                if len(row) > 1:
                    part[number, number] = full[row[0], row[1]] - entry[row[1]] + entry[row[0]]
        return hops_of[id(full)]

    together = max(1, 50_000 // count**2)
    ended = np.full((cap + 1, count, layers + 1), np.inf)
    starting = np.full((cap + 1, layers + 1, count), np.inf)
    ended[0, :, layers] = 0.0
    for b in range(layers - 1, -1, -1):
        if arrays.stop[b] == b + 1:
            continue
        rest = ended[:-1, :, b + 1 : arrays.stop[b]].copy()
        np.minimum(rest[-1], ended[-1, :, b + 1 : arrays.stop[b]], out=rest[-1])
        segments = arrays.segments_from(b)
        starting[1:, b] = np.minimum.reduce((segments if rows is None else segments[firsts])[None] + rest, axis=2)
        if b:
            hops = over(b)
            for first in range(1, cap + 1, together):
                some = slice(first, min(first + together, cap + 1))
                ended[some, :, b] = np.minimum.reduce(hops[None] + starting[some, b][:, None, :], axis=2)
    values = (arrays.entering()[None, firsts] + starting[:, 0]).min(axis=1)
    within = np.flatnonzero(values <= most)
    return None if within.size and within[-1] == cap else int(within[-1]) if within.size else 0
