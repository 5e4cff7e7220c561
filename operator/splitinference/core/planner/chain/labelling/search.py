"""Search over labels, boundary by boundary, that knows which places are taken: exact if nothing had to be dropped, with a bound if so.

A label is a chain so far: where it ended, on which class, what it has used and cost. Labels that cannot beat the best known chain
are cut off by the priced relaxation's completion; labels that another one dominates are dropped; and if a boundary holds more
than `width` labels, the least promising are dropped and the best of their bounds is the search's bound.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from splitinference.core.planner.chain.bounds.levels import Cut
from splitinference.core.planner.chain.bounds.relaxed import Completion, Step, complete, onward, path, turns_back
from splitinference.core.planner.chain.criterion import Arrays, hop_occupancy
from splitinference.core.planner.chain.labelling.dominance import Dominance
from splitinference.core.planner.chain.labelling.labels import Labels
from splitinference.core.planner.chain.tables import Bools, Floats, Ints
from splitinference.core.planner.chain.task import SLACK, Multipliers, Task

_CHUNK = 20_000
_CHILDREN, _LEAST_CHILDREN = 48, 2_000


@dataclass(frozen=True)
class Found:
    """Best chain found (None: none better than the given value), its value, a bound for all chains, and whether the search was complete."""

    steps: tuple[Step, ...] | None
    value: float
    bound: float
    complete: bool


def _below(value: float) -> float:
    """What a chain must cost less than to count as better than `value`."""
    return value - SLACK * abs(value) if np.isfinite(value) else value


class Search:
    """The search for one task under given prices; `run` it with growing widths."""

    def __init__(self, task: Task, prices: Multipliers, cut: Cut | None = None) -> None:
        self.task, self.cut = task, cut
        t = task.tables
        self.tables = t
        self.constant = prices.constant(task)
        self.priced = task.under(prices)
        self.completion = complete(self.priced)
        if np.isfinite(self.completion.value) and turns_back(self.priced, path(self.priced, self.completion)):
            self.completion = onward(self.priced)
        self.plain = task.plain
        self.sums = task.sums
        self.sum_completions = [complete(arrays) for arrays in self.sums]
        self.limits = np.array([r.limit * (1 + SLACK) for r in task.resources])
        self.occupied = bool(task.occupancy_weight)
        self.counting = task.max_nodes is not None or task.max_segments is not None or task.min_segments > 1
        bounds = t.problem.constraints
        shared = bool(t.shares_node.any())
        self.utilized = bool(task.utilization_weight) or (shared and bounds.utilization_ceiling is not None)
        self.ceiling = (bounds.utilization_ceiling or 1.0) * (1 + SLACK)
        self.slowest = self._slowest() if self.occupied else None
        useful = task.max_segments or t.layers
        self.single = np.flatnonzero(t.multiplicity == 1)
        self.several = np.flatnonzero((t.multiplicity > 1) & (t.multiplicity < min(useful, t.layers)))
        self._bit = np.full(t.count, -1)
        self._bit[self.single] = np.arange(len(self.single))
        self._column = np.full(t.count, -1)
        self._column[self.several] = np.arange(len(self.several))
        self.words = (len(self.single) + 63) // 64
        self._leave_bits, self._leave_counts = self._leaving()
        self._dominance = Dominance(task, self.single, self.several, occupied=self.occupied, utilized=self.utilized)
        self._parents: list[Ints] = []
        self._steps: list[Ints] = []
        self._made = 0
        self._most, self._dropped = 0, float("inf")

    def _leaving(self) -> tuple[NDArray[np.uint64], NDArray[np.int16]]:
        """What leaving a class's node takes besides: all other places of a node with processors."""
        t = self.tables
        bits, counts = np.zeros((t.count, self.words), dtype=np.uint64), np.zeros((t.count, len(self.several)), dtype=np.int16)
        for c in np.flatnonzero(t.shares_node):
            for other in np.flatnonzero(t.node == t.node[c]):
                if self._bit[other] >= 0:
                    bits[c, self._bit[other] // 64] |= np.uint64(1 << int(self._bit[other] % 64))
                elif self._column[other] >= 0:
                    counts[c, self._column[other]] = t.multiplicity[other]
        return bits, counts

    def _slowest(self) -> Completion:
        """Least slowest stage or link from a boundary to the end, places repeated at will."""
        t, task = self.tables, self.task
        stop = self.plain.stop
        ended, starting = np.full((t.count, t.layers + 1), np.inf), np.full((t.layers + 1, t.count), np.inf)
        ended[:, t.layers] = 0.0
        for b in range(t.layers - 1, -1, -1):
            if stop[b] == b + 1:
                continue
            ends = slice(b + 1, stop[b])
            stage = np.where(task.allowed[b][:, ends], t.occupancy_from(b)[:, ends], np.inf)
            starting[b] = np.maximum(stage, ended[:, ends]).min(axis=1)
            if b and np.isfinite(starting[b]).any():
                link = np.where(np.isfinite(self.plain.hops(b)), hop_occupancy(t, b), np.inf)
                ended[:, b] = np.maximum(link, starting[b][None, :]).min(axis=1)
        return Completion(ended, starting, float(np.maximum(hop_occupancy(t, 0)[0], starting[0]).min(initial=np.inf)))

    @property
    def root_bound(self) -> float:
        """The priced relaxation's bound for all chains."""
        weight = self.task.occupancy_weight
        slowest = self.slowest.value if self.slowest else 0.0
        if not np.isfinite(self.completion.value) or any(c.value > m for c, m in zip(self.sum_completions, self.limits, strict=True)):
            return float("inf")
        return self.completion.value - self.constant + weight * slowest

    def run(self, width: int, best: float, expired: Callable[[], bool], *, enough: float = -np.inf) -> Found:
        """Search with at most `width` labels at a boundary, for chains cheaper than `best`.

        Gives up when `expired`; stops at the first chain that costs no more than `enough`.
        """
        t = self.tables
        self._parents, self._steps, self._made = [], [], 0
        waiting: list[list[Labels]] = [[] for _ in range(t.layers + 1)]
        waiting[0].append(Labels.root(len(self.sums), self.words, len(self.several)))
        value, winner, dropped = best, -1, float("inf")
        self._most, self._dropped = max(_LEAST_CHILDREN, _CHILDREN * width), float("inf")
        for b in range(t.layers):
            if not waiting[b]:
                continue
            labels = Labels.join(waiting[b])
            waiting[b] = []
            labels = labels.pick(labels.bound < _below(value))
            if len(labels) > 4 * width:
                order = np.argsort(labels.bound, kind="stable")
                dropped = min(dropped, float(labels.bound[order[4 * width]]))
                labels = labels.pick(order[: 4 * width])
            labels = self._dominance.undominated(labels)
            if len(labels) > width:
                order = np.argsort(labels.bound, kind="stable")
                dropped = min(dropped, float(labels.bound[order[width]]))
                labels = labels.pick(order[:width])
            if expired():
                dropped = min(dropped, float(labels.bound.min(initial=np.inf)), self._left(waiting))
                break
            for part in range(0, len(labels), _CHUNK):
                for end, child in self._expand(b, labels.pick(slice(part, part + _CHUNK)), value):
                    if end < t.layers:
                        waiting[end].append(child)
                        continue
                    here = int(np.argmin(child.bound))
                    if child.bound[here] < value:
                        value, winner = float(child.bound[here]), int(child.identity[here])
                if value <= enough:
                    return Found(self._trace(winner), value, -np.inf, complete=False)
        dropped = min(dropped, self._dropped)
        bound = min(_below(value), dropped)
        return Found(self._trace(winner) if winner >= 0 else None, value, bound, dropped >= value)

    @staticmethod
    def _left(waiting: list[list[Labels]]) -> float:
        return min((float(labels.bound.min(initial=np.inf)) for parts in waiting for labels in parts), default=float("inf"))

    def _hop_rows(self, arrays: Arrays, boundary: int, last: Ints) -> Floats:
        return arrays.entering()[None, :] if boundary == 0 else arrays.hops(boundary)[last]

    def _expand(self, b: int, labels: Labels, best: float) -> list[tuple[int, Labels]]:
        """All continuations by one segment that may still be part of a chain cheaper than `best`."""
        task = self.task
        if not len(labels) or self.plain.stop[b] == b + 1:
            return []
        reach = labels.priced[:, None] + self._hop_rows(self.priced, b, labels.last)
        promise = reach + (self.completion.starting[b] - self.constant)
        if self.slowest is not None:
            promise += task.occupancy_weight * np.maximum(labels.occupancy[:, None], self.slowest.starting[b][None, :])
        if self.utilized:
            promise += task.utilization_weight * labels.utilization[:, None]
        who, where = np.nonzero(promise < _below(best))
        free = self._is_free(labels, who, where)
        who, where = who[free], where[free]
        if len(who) > self._most:
            kept = self._least(promise[who, where])
            who, where = who[kept], where[kept]
        result: list[tuple[int, Labels]] = []
        for part in range(0, len(who), _CHUNK):
            result.extend(self._segments(b, labels, (who[part : part + _CHUNK], where[part : part + _CHUNK]), reach, best))
        return result

    def _least(self, bounds: Floats) -> Ints:
        """The least of too many, in their order; what is left out counts for the search's bound."""
        order = np.argsort(bounds, kind="stable")
        self._dropped = min(self._dropped, float(bounds[order[self._most]]))
        return np.sort(order[: self._most])

    def _is_free(self, labels: Labels, who: Ints, where: Ints) -> Bools:
        free = np.ones(len(who), dtype=bool)
        bit, column = self._bit[where], self._column[where]
        one = np.flatnonzero(bit >= 0)
        word, shift = bit[one] // 64, (bit[one] % 64).astype(np.uint64)
        free[one] = (labels.taken[who[one], word] >> shift) & np.uint64(1) == 0
        some = np.flatnonzero(column >= 0)
        free[some] = labels.counts[who[some], column[some]] < self.tables.multiplicity[where[some]]
        return free

    def _segments(self, b: int, labels: Labels, pairs: tuple[Ints, Ints], reach: Floats, best: float) -> list[tuple[int, Labels]]:
        """The continuations of (label, class) pairs by every end: by column j the segment [b, b + 1 + j)."""
        t, task = self.tables, self.task
        who, where = pairs
        ends = slice(b + 1, self.plain.stop[b])
        last = labels.last[who]
        inside = (t.node[where] == t.node[last]) & t.shares_node[where] & (last >= 0)
        priced = reach[who, where][:, None] + self.priced.segments_from(b)[where]
        bound = priced + (self.completion.ended[:, ends] - self.constant)[where]
        occupancy = labels.occupancy[who]
        if self.slowest is not None:
            link = hop_occupancy(t, b)[last if b else np.zeros_like(last), where]
            occupancy = np.maximum(occupancy, link)
            stage = np.maximum(occupancy[:, None], t.occupancy_from(b)[:, ends][where])
            bound += task.occupancy_weight * np.maximum(stage, self.slowest.ended[:, ends][where])
        if self.utilized:
            busy = t.busy_from(b)[:, ends][where] + np.where(inside, labels.busy[who], 0.0)[:, None]
            share = np.minimum(1.0, t.problem.workload.requests_per_s * busy / 1e3)
            others = t.others[where][:, None]
            utilization = np.maximum(labels.utilization[who][:, None], np.minimum(1.0, others + (1.0 - others) * share))
            bound += task.utilization_weight * utilization
        good = bound < _below(best)
        if self.utilized:
            good &= utilization <= self.ceiling
        sums = []
        for number, (arrays, rest) in enumerate(zip(self.sums, self.sum_completions, strict=True)):
            total = labels.sums[who, number] + self._hop_rows(arrays, b, labels.last)[who if b else np.zeros_like(who), where]
            sums.append(total[:, None] + arrays.segments_from(b)[where])
            good &= sums[-1] + rest.ended[:, ends][where] <= self.limits[number]
        nodes, segments = labels.nodes[who] + ~inside, labels.segments[who] + 1
        if self.counting:
            good &= self._counted(nodes, segments, t.shares_node[where])[:, ends]
        row, column = np.nonzero(good)
        before = self.plain.entering()[where] if b == 0 else self.plain.hops(b)[last, where]
        reached = labels.plain[who] + before
        plain = reached[row] + self.plain.segments_from(b)[where[row], column]
        if self.cut is not None:
            used = priced[row, column] - plain
            stays = self.cut.keeps(plain, nodes[row], used, where[row], column + b + 1)
            row, column, plain = row[stays], column[stays], plain[stays]
        if not len(row):
            return []
        if len(row) > self._most:
            kept = self._least(bound[row, column])
            row, column, plain = row[kept], column[kept], plain[kept]
        order = np.argsort(column, kind="stable")
        row, column, plain = row[order], column[order], plain[order]
        source, place = who[row], where[row]
        floats = np.zeros((len(row), labels.floats.shape[1]))
        floats[:, 0] = priced[row, column]
        floats[:, 1] = plain
        floats[:, 2] = stage[row, column] if self.slowest is not None else 0.0
        if self.utilized:
            floats[:, 3], floats[:, 4] = utilization[row, column], busy[row, column]
        floats[:, 5] = bound[row, column]
        for number, total in enumerate(sums):
            floats[:, 6 + number] = total[row, column]
        ints = np.stack([nodes[row], segments[row], place, np.arange(self._made, self._made + len(row))], axis=1)
        self._made += len(row)
        self._parents.append(labels.identity[source])
        self._steps.append(np.stack([np.full(len(row), b), column + b + 1, place], axis=1))
        children = Labels(floats, ints, *self._take(labels, source, place, inside[row]))
        cuts = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), len(column)]
        parts = []
        for begin, finish in pairwise(cuts):
            child, at = children.pick(slice(begin, finish)), int(column[begin]) + b + 1
            if at == t.layers:
                child.floats[:, 5] = child.plain + task.occupancy_weight * child.occupancy + task.utilization_weight * child.utilization
            parts.append((at, child))
        return parts

    def _counted(self, nodes: Ints, segments: Ints, may_stay: Bools) -> Bools:
        """Which ends keep the limits on numbers of nodes and segments."""
        task, layers = self.task, self.tables.layers
        good = np.ones((len(nodes), layers + 1), dtype=bool)
        ends = np.arange(layers + 1)[None, :]
        if task.max_nodes is not None:
            good[nodes > task.max_nodes] = False
            good[(nodes == task.max_nodes) & ~may_stay, :layers] = False
        if task.max_segments is not None:
            good[segments > task.max_segments] = False
            good[segments == task.max_segments, :layers] = False
        if task.min_segments > 1:
            good &= segments[:, None] + (layers - ends) >= task.min_segments
        return good

    def _take(self, labels: Labels, source: Ints, place: Ints, inside: Bools) -> tuple[NDArray[np.uint64], NDArray[np.int16]]:
        taken, counts, last = labels.taken[source], labels.counts[source], labels.last[source]
        if self.tables.shares_node.any():
            left = np.flatnonzero(~inside & (last >= 0))
            taken[left] |= self._leave_bits[last[left]]
            counts[left] = np.maximum(counts[left], self._leave_counts[last[left]])
        bit, column = self._bit[place], self._column[place]
        one = np.flatnonzero(bit >= 0)
        taken[one, bit[one] // 64] |= np.uint64(1) << (bit[one] % 64).astype(np.uint64)
        some = np.flatnonzero(column >= 0)
        counts[some, column[some]] += 1
        return taken, counts

    def _trace(self, identity: int) -> tuple[Step, ...]:
        parents, steps = np.concatenate(self._parents), np.concatenate(self._steps)
        result: list[Step] = []
        while identity >= 0:
            start, end, place = (int(n) for n in steps[identity])
            result.append(Step(start, end, place))
            identity = int(parents[identity])
        return tuple(reversed(result))
