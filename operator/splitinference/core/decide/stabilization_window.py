"""The stabilization window: after a mandatory move, optional moves wait until the new stages have been measured.

A mandatory move starts at once, often to nodes that were never measured. Until they are, the cost model can only estimate them, so a plan
that looks better may not be. The window ends when all stages were measured for as many windows as calibration needs, or when the plan has
served for `policy.stabilization`, since without requests nothing is measured. Both count from the end of the transition.

A violated SLO is a measurement, not an estimate. It waits for one measured window, because earlier figures include the move itself.
"""

from splitinference.core.cost.fitting.learn import ENOUGH_WINDOWS
from splitinference.core.decide.base.compare import Change
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy, Stabilizing, Traffic

SLO_WINDOWS = 1
"""Measured windows before a violated SLO counts."""


def start_window(memory: Memory, change: Change) -> Memory:
    """The memory after a mandatory decision. A first plan and a kept plan need no window, since nothing moved."""
    return memory if change in (Change.FIRST, Change.KEEP) else memory.model_copy(update={"stabilizing": Stabilizing()})


def update_window(inputs: DecisionInputs, policy: Policy, memory: Memory) -> Memory:
    """The memory with the window started once the plan serves, and without it once it is over."""
    window = memory.stabilizing
    if window is None or inputs.in_transition:
        return memory
    since = inputs.now if window.since is None else min(window.since, inputs.now)
    over = inputs.measured_windows >= ENOUGH_WINDOWS or inputs.now - since >= policy.stabilization
    return memory.model_copy(update={"stabilizing": None if over else Stabilizing(since=since)})


def hide_unsettled(inputs: DecisionInputs, memory: Memory) -> DecisionInputs:
    """The inputs without observations that do not count yet: step times of new stages, and latency during the move."""
    if memory.stabilizing is None:
        return inputs
    hidden = {"stages": (), **({"traffic": Traffic()} if inputs.measured_windows < SLO_WINDOWS else {})}
    return inputs.model_copy(update=hidden)
