"""The stabilization window: after a move that had to be made, optional moves wait until the new stages have been measured.

Such a move is made at once, while nodes and metrics are still in disorder, to nodes that may never have been measured. What the cost model
says of them then is a guess, so a plan that looks better may not be. The window ends when the serving plan was measured for as many windows
as a node's factor needs to count, or when it has served for `policy.stabilization`: where no requests come, nothing is measured. Both count
from the end of the transition, so a slow machine needs no longer settings.

A broken SLO is no guess. It waits for one measured window, because figures of before that contain the move itself.
"""

from splitinference.core.cost.learn import ENOUGH_WINDOWS
from splitinference.core.decide.base.compare import Change
from splitinference.core.decide.base.policy import Facts, Memory, Policy, Stabilizing, Traffic

SLO_WINDOWS = 1
"""Windows to measure before a broken SLO counts."""


def begun(memory: Memory, change: Change) -> Memory:
    """The memory after a mandatory decision. A first plan has nothing before it that could be in disorder, and what stays was not moved."""
    return memory if change in (Change.FIRST, Change.KEEP) else memory.model_copy(update={"stabilizing": Stabilizing()})


def followed(facts: Facts, policy: Policy, memory: Memory) -> Memory:
    """The memory with the window begun when the plan serves, and without it when it is over."""
    window = memory.stabilizing
    if window is None or facts.walking:
        return memory
    since = facts.now if window.since is None else min(window.since, facts.now)
    over = facts.measured_windows >= ENOUGH_WINDOWS or facts.now - since >= policy.stabilization
    return memory.model_copy(update={"stabilizing": None if over else Stabilizing(since=since)})


def counting(facts: Facts, memory: Memory) -> Facts:
    """The facts without the observations that do not count yet: step times of the new stages, and what clients got during the move."""
    if memory.stabilizing is None:
        return facts
    hidden = {"stages": (), **({"traffic": Traffic()} if facts.measured_windows < SLO_WINDOWS else {})}
    return facts.model_copy(update=hidden)
