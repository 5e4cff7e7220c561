"""A good chain at once, before anything is searched: down the priced relaxation without coming back, then mended step by step.

What it finds is only as good as it is; the bound and the proof come from elsewhere. A good value early is worth much to them: it
closes labels, leaves out classes and sets the length of the steps of the prices.
"""

import math

from splitinference.core.planner.chain.bounds.dual import crowded, down, keeps_counts, sum_along
from splitinference.core.planner.chain.bounds.relaxed import Step
from splitinference.core.planner.chain.quick.local_search import mended
from splitinference.core.planner.chain.task import SLACK, Multipliers, Task

MOST_MENDED = 16
"""Chains of more segments are only cut anew: to try their pairs would take longer than it saves."""
MOST_CLASSES = 300


def dive(task: Task, prices: Multipliers) -> tuple[tuple[Step, ...] | None, float]:
    """A valid chain for a task that is a sum, and its value; None and inf where the way down ends at a place without continuation."""
    t = task.tables
    if not task.is_a_sum or t.shares_node.any() or crowded(task):
        return None, math.inf
    plain = task.plain
    found = down(task, task.under(prices))
    if found is None:
        return None, math.inf
    best, value = None, math.inf
    if _valid(task, found):
        best, value = found, sum_along(plain, found)
    if len(found) <= MOST_MENDED and t.count <= MOST_CLASSES:
        for chain in mended(plain, found):
            total = sum_along(plain, chain)
            if total < value and _valid(task, chain):
                best, value = chain, total
    return best, value


def _valid(task: Task, steps: tuple[Step, ...]) -> bool:
    within = all(sum_along(arrays, steps) <= r.limit * (1 + SLACK) for arrays, r in zip(task.sums, task.resources, strict=True))
    return within and keeps_counts(task, steps)
