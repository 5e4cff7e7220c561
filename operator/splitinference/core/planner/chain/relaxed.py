"""The layered dynamic programme over (boundary, class) that forgets which places are taken.

Its value is a lower bound of every chain's cost; where its path uses no class more often than it has members, it is the optimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitinference.core.planner.chain.criterion import Arrays
from splitinference.core.planner.chain.tables import Floats


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


def path(arrays: Arrays, completion: Completion) -> tuple[Step, ...]:
    """The chain that the completion's value belongs to; of equals the first."""
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


def promising(arrays: Arrays, completion: Completion, most: float) -> list[int]:
    """Classes with a segment that some relaxed chain of cost at most `most` goes through; the others can be left out."""
    begun = forward(arrays)
    alive = np.zeros(arrays.tables.count, dtype=bool)
    for b in range(arrays.tables.layers):
        through = begun[b][:, None] + arrays.segments_from(b) + completion.ended[:, b + 1 : arrays.stop[b]]
        alive |= (through <= most).any(axis=1)
    return [int(c) for c in np.flatnonzero(alive)]


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
