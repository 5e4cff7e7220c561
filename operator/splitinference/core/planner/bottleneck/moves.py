"""The slowest stage or link and a weight of the GiB to move: thresholds on occupancy, and under each the chain that moves least.

With all segments and hops closed that take longer than T, the least weighted move M(T) grows as T falls. So over an interval of
thresholds the objective is at least its lower end plus M of its upper end; intervals are split best first.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from splitinference.core.planner.bottleneck.bottleneck import least_bottleneck, occupancies, occupancy_of
from splitinference.core.planner.chain.bounds.relaxed import Step
from splitinference.core.planner.chain.chain import WIDTHS, Chain, best_chain
from splitinference.core.planner.chain.criterion import sum_of
from splitinference.core.planner.chain.task import SLACK, Task
from splitinference.core.planner.chain.tell import SILENT, Tell


def least_with_moves(task: Task, known: float, expired: Callable[[], bool], tell: Tell = SILENT) -> Chain:
    """The best chain for bottleneck + weight * GiB moved; `known`: the value of a known chain (inf: none)."""
    quickest = least_bottleneck(replace(task, objective=sum_of(task.tables)), math.inf, expired)
    if quickest.steps is None:
        return replace(quickest, task=task)
    tell.chain(quickest.steps)
    tell.bound(quickest.bound)
    values = occupancies(task)
    first = int(np.searchsorted(values, quickest.bound * (1 - SLACK)))
    best: tuple[Step, ...] | None = None
    value, left_open = known, math.inf
    intervals = [(quickest.bound, 0, first, len(values) - 1)]
    while intervals and intervals[0][0] < value * (1 - SLACK) and not expired():
        floor, effort, low, high = heapq.heappop(intervals)
        below = replace(task.below(float(values[high])), occupancy_weight=0.0)
        found = best_chain(below, value - float(values[low]), expired, WIDTHS[: effort + 1])
        reached = high if effort == 0 else low
        if found.steps is not None:
            slowest = occupancy_of(task, found.steps)
            reached = min(reached, int(np.searchsorted(values, slowest * (1 - SLACK))))
            if slowest + found.value < value * (1 - SLACK):
                best, value = found.steps, slowest + found.value
                tell.chain(best)
        # Of the thresholds from `reached` to `high` none moves less than the one at `high`, and none is lower than `reached`.
        least = max(floor, found.bound + float(values[reached]))
        if found.proven or effort + 1 == len(WIDTHS):
            left_open = min(left_open, least)
        else:
            heapq.heappush(intervals, (least, effort + 1, reached, high))
        middle = (low + reached) // 2
        for begin, finish in ((low, min(middle, reached - 1)), (middle + 1, reached - 1)):
            if begin <= finish:
                heapq.heappush(intervals, (max(floor, found.bound + float(values[begin])), 0, begin, finish))
    bound = min([value, left_open, *(entry[0] for entry in intervals)])
    return Chain(task, best, value, bound, "least move under thresholds on occupancy")
