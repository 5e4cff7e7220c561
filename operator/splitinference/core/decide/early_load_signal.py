"""Notices load on a node earlier than metrics do. A mean over one minute shows a change fully after a minute; decode steps show it at once.

Steps that are clearly slower than predicted, in several observations in a row, show that others use more of the node than the metrics say
yet, if the metrics begin to rise too. The snapshot then gets the utilization that the steps imply. It is only ever raised, and the usual
thresholds, windows and confirmations apply to it.

Not counted: queueing (it is not part of a step's compute), batches (their steps were not computed alone), few or old steps, nodes whose
calibration factor was not measured, and nodes whose use by others is unknown.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from splitinference.core.cost.fitting.calibrate import TELLING_MS, decode_compute_ms
from splitinference.core.cost.site import LEAST_SHARE
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Slowed, StageTime
from splitinference.core.values.problem import Problem

SLOWER = 1.5
"""A stage is clearly slower if it takes at least this many times its predicted time."""
STILL_SLOWER = 1.2
"""A slow stage counts as slow until it takes less than this many times its predicted time (hysteresis)."""
ENOUGH_OBSERVATIONS = 3
SPACING = timedelta(seconds=2)
"""Least time between two observations that count."""
FRESH = timedelta(seconds=15)
"""Steps older than this do not count."""
RISEN = 0.03
"""The metric must have risen by this much. A node that is slow for another reason, such as heat, is left to calibration."""
SHOWN = timedelta(seconds=90)
"""After this time a mean over a minute shows the whole change."""
LEFT = SHOWN
"""A node that the plan left keeps its last observation for this long."""
LEAST_STEPS = 3
"""Fewer steps do not count. A stage that is ten times slower has few of them."""


def with_early_load(inputs: DecisionInputs, memory: Memory) -> tuple[DecisionInputs, Memory]:
    """The inputs with the utilization that stages imply, and the memory after it."""
    ratios = slower(inputs.problem, inputs.stages)
    if not ratios and not memory.slowed:
        return inputs, memory
    used = {node.name: node.utilization for node in inputs.problem.snapshot.nodes if node.utilization is not None}
    slowed = {name: seen for name, ratio in ratios.items() if (seen := _seen(memory.slowed.get(name), ratio, used[name], inputs.now))}
    serving = {name for segment in (inputs.plan.segments if inputs.plan else ()) for name in segment.nodes}
    for name, was in memory.slowed.items():
        keeps = FRESH if name in serving else LEFT
        if name not in ratios and was.observations >= ENOUGH_OBSERVATIONS and timedelta(0) <= inputs.now - was.last < keeps:
            slowed[name] = was
    implied = {name: seen.implied for name, seen in slowed.items() if name in used and _counts(seen, used[name])}
    return inputs.model_copy(update={"problem": _with(inputs.problem, implied)}), memory.model_copy(update={"slowed": slowed})


def _seen(was: Slowed | None, ratio: float, used: float, now: datetime) -> Slowed | None:
    """The record of a node after one more observation. None if the observation does not count."""
    if was is not None and not timedelta(0) <= now - was.last < FRESH:
        was = None  # observations with a gap between them are not in a row
    if ratio < (SLOWER if was is None else STILL_SLOWER):
        return None
    implied = round(1.0 - max(LEAST_SHARE, 1.0 - used) / ratio, 4)
    if was is None:
        return Slowed(since=now, last=now, observations=1, metric=used, implied=implied)
    if now - was.last < SPACING:
        return was
    return was.model_copy(update={"last": now, "observations": was.observations + 1, "implied": implied})


def _counts(seen: Slowed, used: float) -> bool:
    """Whether others slow the node down, and only lately: the metric has begun to rise and has not had time to show everything."""
    return seen.observations >= ENOUGH_OBSERVATIONS and used - seen.metric >= RISEN and seen.last - seen.since < SHOWN


def slower(problem: Problem, stages: Iterable[StageTime]) -> Mapping[str, float]:
    """For each node with enough steps: measured compute time divided by the predicted one. The least of its stages counts."""
    nodes = {node.name: node for node in problem.snapshot.nodes}
    found: dict[str, float] = {}
    for stage in stages:
        node = nodes.get(stage.node)
        if node is None or node.utilization is None or not stage.learned:
            continue
        if stage.steps < LEAST_STEPS or stage.age_seconds > FRESH.total_seconds():
            continue
        predicted = decode_compute_ms(problem, stage.node, stage.processor, stage.start, stage.end)
        if predicted is not None and predicted >= TELLING_MS:
            ratio = stage.alone_ms / predicted
            found[stage.node] = min(ratio, found.get(stage.node, ratio))
    return found


def _with(problem: Problem, raised: Mapping[str, float]) -> Problem:
    """The problem with the utilization of these nodes raised to at least these values. Unknown utilization stays unknown."""
    if not raised:
        return problem
    nodes = tuple(
        node.model_copy(update={"utilization": max(node.utilization, raised[node.name])})
        if node.name in raised and node.utilization is not None
        else node
        for node in problem.snapshot.nodes
    )
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})
