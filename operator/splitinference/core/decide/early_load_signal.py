"""What stages that serve show of their nodes before metrics do: a mean over a minute shows a change fully after a minute, steps at once.

Where three of four steps of a stage, each computed alone, take clearly longer than the cost model says of the node as metrics have it, in
several observations in a row, and metrics begin to rise, others take more of the node than metrics say yet. The snapshot that is decided by
has the utilization then that the steps imply. It is only ever raised; thresholds, windows and confirmations hold for it as for any other.

What is no sign: queueing (it is not part of a step's compute), a batch (its steps did not compute alone), few steps, old ones, a node whose
factor was not measured yet, or whose use by others is not known.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from splitinference.core.cost.calibrate import TELLING_MS, decode_compute_ms
from splitinference.core.cost.site import LEAST_SHARE
from splitinference.core.decide.base.policy import Facts, Memory, Slowed, StageTime
from splitinference.core.values.problem import Problem

SLOWER = 1.5
"""So many times its prediction a stage must take to be clearly slower."""
STILL_SLOWER = 1.2
"""And so many times, to be slower still: what wavers around one threshold makes no sign come and go."""
ENOUGH_OBSERVATIONS = 3
SPACING = timedelta(seconds=2)
"""At least so long between two observations that count."""
FRESH = timedelta(seconds=15)
"""Steps are a sign for so long."""
RISEN = 0.03
"""And metrics must have begun to say the same: a node that is slower for another reason (heat, say) is for calibration to learn."""
SHOWN = timedelta(seconds=90)
"""By then a mean over a minute shows what there is to show."""
LEFT = SHOWN
"""A node that was left, where no steps are seen any more, counts as it was seen last for so long."""
LEAST_STEPS = 3
"""A stage that is ten times slower has few of them; the lower quartile of three is the least."""


def noticed(facts: Facts, memory: Memory) -> tuple[Facts, Memory]:
    """The facts with the utilization that stages imply, and the memory after looking."""
    ratios = slower(facts.problem, facts.stages)
    if not ratios and not memory.slowed:
        return facts, memory
    used = {node.name: node.utilization for node in facts.problem.snapshot.nodes if node.utilization is not None}
    slowed = {name: seen for name, ratio in ratios.items() if (seen := _seen(memory.slowed.get(name), ratio, used[name], facts.now))}
    serving = {name for segment in (facts.plan.segments if facts.plan else ()) for name in segment.nodes}
    for name, was in memory.slowed.items():
        keeps = FRESH if name in serving else LEFT
        if name not in ratios and was.observations >= ENOUGH_OBSERVATIONS and timedelta(0) <= facts.now - was.last < keeps:
            slowed[name] = was
    implied = {name: seen.implied for name, seen in slowed.items() if name in used and _counts(seen, used[name])}
    return facts.model_copy(update={"problem": _with(facts.problem, implied)}), memory.model_copy(update={"slowed": slowed})


def _seen(was: Slowed | None, ratio: float, used: float, now: datetime) -> Slowed | None:
    """What is remembered after one more observation of a node; None where it is no sign."""
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
    """Whether it is others who slow the node down, and only lately: then metrics begin to rise, and have not had the time to show all."""
    return seen.observations >= ENOUGH_OBSERVATIONS and used - seen.metric >= RISEN and seen.last - seen.since < SHOWN


def slower(problem: Problem, stages: Iterable[StageTime]) -> Mapping[str, float]:
    """By node: how many times its prediction the compute of its stages takes, where that can be said; of several stages the least."""
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
    """The problem with these nodes at least so busy; what is not known stays unknown."""
    if not raised:
        return problem
    nodes = tuple(
        node.model_copy(update={"utilization": max(node.utilization, raised[node.name])})
        if node.name in raised and node.utilization is not None
        else node
        for node in problem.snapshot.nodes
    )
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})
