"""Which labels need not be continued: another of the same class, or of one that is as good, is at least as good in every respect.

In every respect means cost, what is limited, and places: who has used fewer of those that could serve in each other's stead can do all that
the other can.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinference.core.planner.chain.equivalence import alike
from splitinference.core.planner.chain.labelling.labels import Labels
from splitinference.core.planner.chain.tables import Bools, Floats, Ints
from splitinference.core.planner.chain.task import Task

_BLOCK = 400
_HEADS = 1_200


class Dominance:
    """Dominance between labels of one task."""

    def __init__(self, task: Task, single: Ints, several: Ints, *, occupied: bool, utilized: bool) -> None:
        """`single` and `several`: the classes of which labels say whether, or how often, they are taken; `occupied` and `utilized`: whether
        the slowest stage, and the busiest node, count."""
        t = task.tables
        self._task, self._single, self._several = task, single, several
        self._occupied, self._utilized = occupied, utilized
        self._words = (len(single) + 63) // 64
        measures = [[t.occupancy_from(b) for b in range(t.layers)]] if occupied else []
        measures += [[t.utilization_from(b) for b in range(t.layers)]] if utilized else []
        found = alike(task, [task.plain, *task.sums], measures)
        self._cluster = found.cluster
        known = {*single.tolist(), *several.tolist()}
        tracked = [(number, c) for number, row in enumerate(found.rows) for c in row if c in known]
        order: Ints = np.array([c for _, c in tracked], dtype=np.int64)
        self._row: Ints = np.array([number for number, _ in tracked], dtype=np.int64)
        self._position = np.full(t.count, -1)
        self._position[order] = np.arange(len(tracked))

    def undominated(self, labels: Labels) -> Labels:
        """Drop labels that another on the same class is at least as good as, in every respect."""
        if len(labels) < 2:
            return labels
        task = self._task
        columns = [labels.plain, *labels.sums.T]
        if self._occupied:
            columns.append(labels.occupancy)
        if self._utilized:
            columns.extend([labels.utilization, *([labels.busy] if self._task.tables.shares_node.any() else [])])
        if task.max_nodes is not None:
            columns.append(labels.nodes.astype(float))
        if task.max_segments is not None:
            columns.append(labels.segments.astype(float))
        if task.min_segments > 1:
            columns.append(-np.minimum(labels.segments, task.min_segments).astype(float))
        measure, used = np.stack(columns, axis=1), self._used(labels)
        last = self._cluster[labels.last]
        keep = _first_of_equal_use([last, *labels.taken.T, *labels.counts.T], measure)
        order = np.flatnonzero(keep)
        order = order[np.lexsort((used[order].sum(axis=1), *measure[order].T[::-1], last[order]))]
        starts = np.flatnonzero(np.diff(last[order], prepend=-2))
        for begin, finish in zip(starts, [*starts[1:], len(order)], strict=True):
            _sift(order[begin:finish], measure, used, keep)
        return labels.pick(keep)

    def _used(self, labels: Labels) -> NDArray[np.int8]:
        """Label by column: how many places are used from the head of each row of comparable classes up to each of its points."""
        dense = np.zeros((len(labels.last), len(self._row)), dtype=np.int8)
        if self._words:
            bits = np.unpackbits(np.ascontiguousarray(labels.taken).view(np.uint8), axis=1, bitorder="little")
            dense[:, self._position[self._single]] = bits[:, : len(self._single)]
        if len(self._several):
            dense[:, self._position[self._several]] = labels.counts
        some = np.flatnonzero(dense.any(axis=0))
        row, total = self._row[some], np.cumsum(dense[:, some], axis=1, dtype=np.int8)
        for begin in np.flatnonzero(np.diff(row, prepend=-1))[1:]:
            total[:, begin:] -= total[:, begin - 1 : begin]
        return total


def _first_of_equal_use(keys: list[NDArray[Any]], measure: Floats) -> Bools:
    """Of labels that are equal in all keys, drop those that are no better than the first (least) in anything."""
    order = np.lexsort((*measure.T[::-1], *keys))
    new = np.zeros(len(order), dtype=bool)
    new[0] = True
    for key in keys:
        sorted_key = key[order]
        new[1:] |= sorted_key[1:] != sorted_key[:-1]
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    keep = np.ones(len(order), dtype=bool)
    keep[order] = new | ~(measure[first] <= measure[order]).all(axis=1)
    return keep


def _sift(group: Ints, measure: Floats, used: NDArray[np.int8], keep: Bools) -> None:
    """Mark the dominated of one cluster; `group` is in ascending order, so only earlier ones can dominate (of equals the first)."""
    heads = group[:0]
    for begin in range(0, len(group), _BLOCK):
        block = group[begin : begin + _BLOCK]
        for others, earlier in ((heads, False), (block, True)):
            better = np.ones((len(others), len(block)), dtype=bool)
            for column in measure.T:
                better &= column[others][:, None] <= column[block][None, :]
            for count in used.T:
                better &= count[others][:, None] <= count[block][None, :]
            if earlier:
                better &= np.arange(len(others))[:, None] < np.arange(len(block))[None, :]
            keep[block[better.any(axis=0)]] = False
            block = block[keep[block]]
            if not len(block):
                break
        heads = np.concatenate([heads, block])[:_HEADS]
