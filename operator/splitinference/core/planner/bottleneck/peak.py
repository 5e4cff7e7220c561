"""The slowest stage or link and a weight of the peak utilization: thresholds on utilization over thresholds on occupancy.

With all segments closed that would use a node more than u, the least bottleneck B(u) grows as u falls. So over an interval of u
the objective is at least B of its upper end plus the weight of its lower end; intervals are split best first.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from splitinference.core.planner.bottleneck.bottleneck import least_bottleneck
from splitinference.core.planner.chain.bounds.relaxed import Step
from splitinference.core.planner.chain.chain import Chain
from splitinference.core.planner.chain.task import SLACK, Task
from splitinference.core.planner.chain.tell import SILENT, Tell

MOST_LEVELS = 64


def least_with_peak(task: Task, known: float, expired: Callable[[], bool], tell: Tell = SILENT) -> Chain:
    """The best chain for bottleneck + weight * peak utilization, on nodes without processors; `known`: the value of a known chain."""
    t, weight = task.tables, task.utilization_weight
    used = [t.utilization_from(a) for a in range(t.layers)]
    levels = np.unique(np.concatenate([u[mask] for u, mask in zip(used, task.allowed, strict=False)]))
    if not len(levels):
        return Chain(task, None, math.inf, math.inf, "no segment is possible")
    floors = levels
    if len(levels) > MOST_LEVELS:
        levels = np.quantile(levels, np.linspace(0.0, 1.0, MOST_LEVELS + 1))
        floors, levels = levels[:-1], levels[1:]
    best: tuple[Step, ...] | None = None
    value, left_open = known, math.inf
    open_intervals = [(-math.inf, 0, len(levels) - 1)]
    while open_intervals and open_intervals[0][0] < value * (1 - SLACK) and not expired():
        _, low, high = heapq.heappop(open_intervals)
        limit = float(levels[high]) * (1 + SLACK)
        allowed = [mask & (u <= limit) for mask, u in zip(task.allowed, used, strict=False)] + [task.allowed[-1]]
        found = least_bottleneck(replace(task, allowed=allowed, utilization_weight=0.0), math.inf, expired)
        if found.steps is not None:
            peak = max(float(used[s.start][s.place, s.end]) for s in found.steps)
            if found.value + weight * peak < value * (1 - SLACK):
                best, value = found.steps, found.value + weight * peak
                tell.chain(best)
        left_open = min(left_open, found.bound + weight * float(floors[high]))
        middle = (low + high) // 2
        for first, last in ((low, min(middle, high - 1)), (middle + 1, high - 1)):
            if first <= last:
                heapq.heappush(open_intervals, (found.bound + weight * float(floors[first]), first, last))
    bound = min([value, left_open, *(entry[0] for entry in open_intervals)])
    if best is None and math.isinf(known):
        return Chain(task, None, math.inf, bound, "thresholds on utilization")
    return Chain(task, best, value, bound, "thresholds on utilization over thresholds on occupancy")
