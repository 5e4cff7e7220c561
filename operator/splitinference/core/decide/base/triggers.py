"""Reasons to plan again: an ordered list of pure checks. Each has a name and a message with its numbers.

Mandatory reasons count at once. Optional ones must hold over the policy's window. An unknown value is never zero and never a reason.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum

from splitinference.core.cost import predict, violations
from splitinference.core.cost.checks.eligible import forbidden, unusable
from splitinference.core.cost.checks.room import lacking
from splitinference.core.cost.site import sites
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Mode, Policy, sustained
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Plan, Segment
from splitinference.core.values.value import Value


class Reason(StrEnum):
    """Names of triggers, in the order in which they are checked."""

    NO_PLAN = "NoPlan"
    SPEC_CHANGED = "SpecChanged"
    NODE_LOST = "NodeLost"
    VERIFICATION_FAILED = "VerificationFailed"
    SEGMENT_FAILED = "SegmentFailed"
    PREEMPTED = "Preempted"
    MEMORY_PRESSURE = "MemoryPressure"
    PRIVACY_CHANGED = "PrivacyChanged"
    ROOM_MISSING = "RoomMissing"
    TRANSITION_BLOCKED = "TransitionBlocked"
    APPROVED = "Approved"
    PIPELINES_MISSING = "PipelinesMissing"
    SLO_VIOLATED = "SloViolated"
    UTILIZATION_SHIFTED = "UtilizationShifted"
    LINK_DEGRADED = "LinkDegraded"
    BETTER_PLAN = "BetterPlan"


class Trigger(Value):
    """A reason to plan again."""

    reason: Reason
    message: str
    mandatory: bool


def check(inputs: DecisionInputs, policy: Policy, memory: Memory) -> tuple[Trigger | None, Memory]:
    """The first reason to plan again, and the memory after the checks."""
    if inputs.plan is None:
        return Trigger(reason=Reason.NO_PLAN, message="there is no plan yet", mandatory=True), memory
    for reason, applies in _MANDATORY:
        message = applies(inputs, inputs.plan)
        if message:
            return Trigger(reason=reason, message=message, mandatory=True), memory
    blocked, memory = _transition_blocked(inputs, policy, memory)
    if blocked is not None:
        return blocked, memory
    if policy.mode is Mode.FROZEN:
        return None, memory.model_copy(update={"watches": {k: w for k, w in memory.watches.items() if k == Reason.TRANSITION_BLOCKED}})
    return _optional(inputs, inputs.plan, policy, memory)


def pipelines_missing(inputs: DecisionInputs) -> Trigger | None:
    """A settled plan has fewer pipelines than are requested, because no more fitted when it was made."""
    if inputs.plan is None or inputs.in_transition or (has := len(inputs.plan.pipelines)) >= inputs.problem.constraints.pipelines:
        return None
    message = f"the plan has {has} of {inputs.problem.constraints.pipelines} pipelines"
    return Trigger(reason=Reason.PIPELINES_MISSING, message=message, mandatory=True)


# --- mandatory -----------------------------------------------------------------------------------------------------------------------


def _spec_changed(inputs: DecisionInputs, _: Plan) -> str:
    if inputs.plan_spec_digest == inputs.spec_digest:
        return ""
    return "the spec has changed since the plan was made"


def _nodes_of(plan: Plan, inputs: DecisionInputs) -> Mapping[str, Node]:
    """The plan's nodes that are there, by name."""
    return inputs.problem.snapshot.named({name for segment in plan.segments for name in segment.nodes})


def _node_lost(inputs: DecisionInputs, plan: Plan) -> str:
    nodes = _nodes_of(plan, inputs)
    found = []
    for where, segment in _stages(plan):
        for name in segment.nodes:
            why = "it no longer exists" if name not in nodes else unusable(nodes[name], inputs.problem)
            if why:
                found.append(f"{where} runs on {name}, which cannot be used: {why}")
            elif segment.processor not in {site.processor for site in sites(nodes[name])}:
                what = f"processor {segment.processor}" if segment.processor else "CPU"
                found.append(f"{where} runs on {name}, which has no {what} for it: the processor is gone, or others use it")
    return "; ".join(found)


def _verification_failed(inputs: DecisionInputs, plan: Plan) -> str:
    return _on_nodes(plan, inputs.distrusted, "cannot be trusted")


def _segment_failed(inputs: DecisionInputs, plan: Plan) -> str:
    return _on_nodes(plan, inputs.quarantined, "keeps failing")


def _preempted(inputs: DecisionInputs, plan: Plan) -> str:
    return _on_nodes(plan, inputs.preempted, "gives way")


def _on_nodes(plan: Plan, named: Mapping[str, str], what: str) -> str:
    """The stages on nodes that are named, with why; empty where there is none."""
    return "; ".join(
        f"{where} on {name} {what}: {named[name]}" for where, segment in _stages(plan) for name in segment.nodes if name in named
    )


def _memory_pressure(inputs: DecisionInputs, plan: Plan) -> str:
    found = [
        f"{where} on {name}: {inputs.pressured[name]}"
        for where, segment in _stages(plan)
        for name in segment.nodes
        if name in inputs.pressured
    ]
    found += [violation.message for violation in violations(plan, inputs.problem) if violation.constraint == "memory"]
    return "; ".join(found)


def _privacy_changed(inputs: DecisionInputs, plan: Plan) -> str:
    nodes = _nodes_of(plan, inputs)
    found = []
    for where, segment in _stages(plan):
        for name in segment.nodes:
            reasons = {forbidden(nodes[name], layer, inputs.problem.constraints) for layer in range(*segment.held)}
            found += [f"{where} on {name}: {reason}" for reason in sorted(filter(None, reasons))]
    return "; ".join(found)


def _room_missing(inputs: DecisionInputs, plan: Plan) -> str:
    """A pod of ours that is no segment waits for room that the plan leaves on no node. A transition under way may give it."""
    if inputs.in_transition or not any(room.waits for room in inputs.problem.rooms):
        return ""
    return "; ".join(f"{room.what} needs {-(-room.memory_bytes // 2**20)} MiB: {room.waits}"
                     for room in lacking(plan, inputs.problem) if room.waits)  # fmt: skip


def _transition_blocked(inputs: DecisionInputs, policy: Policy, memory: Memory) -> tuple[Trigger | None, Memory]:
    """The transition has been blocked for a while, and the cooldown after the last abandoned transition is over. If nothing serves, neither
    the cooldown nor the budget of moves counts."""
    watch, memory = memory.watching(Reason.TRANSITION_BLOCKED, inputs.blocked is not None, policy, inputs.now)
    if inputs.blocked is None or watch is None or inputs.now - watch.since < policy.retry:
        return None, memory
    pause = policy.cooldown if inputs.served else policy.retry
    if memory.detoured is not None and inputs.now - memory.detoured < pause:
        return None, memory
    if inputs.served and _moves_within_an_hour(inputs) >= policy.moves_per_hour:
        return None, memory
    held = (inputs.now - watch.since).total_seconds()
    message = f"the transition has been blocked for {held:.0f} s: {inputs.blocked.why}"
    return Trigger(reason=Reason.TRANSITION_BLOCKED, message=message, mandatory=True), memory


_MANDATORY: tuple[tuple[Reason, Callable[[DecisionInputs, Plan], str]], ...] = (
    (Reason.SPEC_CHANGED, _spec_changed),
    (Reason.NODE_LOST, _node_lost),
    (Reason.VERIFICATION_FAILED, _verification_failed),
    (Reason.SEGMENT_FAILED, _segment_failed),
    (Reason.PREEMPTED, _preempted),
    (Reason.MEMORY_PRESSURE, _memory_pressure),
    (Reason.PRIVACY_CHANGED, _privacy_changed),
    (Reason.ROOM_MISSING, _room_missing),
)


def _stages(plan: Plan) -> Iterator[tuple[str, Segment]]:
    many = len(plan.pipelines) > 1
    for number, pipeline in enumerate(plan.pipelines):
        for stage, segment in enumerate(pipeline.segments):
            yield (f"pipeline {number} stage {stage}" if many else f"stage {stage}"), segment


# --- optional ------------------------------------------------------------------------------------------------------------------------

Observation = tuple[str, bool | None, str]
"""Key of a watch; whether the reason holds (None: unknown); the message with `{held}` for its duration."""


def _optional(inputs: DecisionInputs, plan: Plan, policy: Policy, memory: Memory) -> tuple[Trigger | None, Memory]:
    keys: set[str] = {Reason.BETTER_PLAN, Reason.TRANSITION_BLOCKED}
    first: Trigger | None = None
    corroborated = _slowdown_confirmed(inputs, plan, policy)
    for reason, observe in _OPTIONAL:
        for key, holds, message in observe(inputs, plan, policy):
            keys.add(key)
            watch, memory = memory.watching(key, holds, policy, inputs.now)
            if first is None and holds and watch is not None and sustained(watch, policy, inputs.now, corroborated=corroborated):
                held = (inputs.now - watch.since).total_seconds()
                first = Trigger(reason=reason, message=message.format(held=f"for {held:.0f} s"), mandatory=False)
    memory = memory.model_copy(update={"watches": {key: watch for key, watch in memory.watches.items() if key in keys}})
    if not may_move(inputs, policy):
        return None, memory
    if memory.stabilizing is not None and (first is None or first.reason is not Reason.SLO_VIOLATED):
        return None, memory
    since = None if memory.reviewed is None else inputs.now - memory.reviewed
    confirming = Reason.BETTER_PLAN in memory.watches
    retry = min(policy.retry, policy.spacing) if confirming else policy.retry
    if first is not None and (since is None or since >= retry):
        return first, memory
    pause = policy.spacing if confirming else policy.review
    if first is None and inputs.may_review and (since is None or since >= pause):
        message = f"the review for a better plan is due, every {policy.review.total_seconds():.0f} s"
        return Trigger(reason=Reason.BETTER_PLAN, message=message, mandatory=False), memory
    return None, memory


def _slowdown_confirmed(inputs: DecisionInputs, plan: Plan, policy: Policy) -> bool:
    """Whether two independent measurements agree that the plan has slowed down: the latency that the gateway measured violates the SLO, and
    the cost model predicts from node and link metrics that the plan is slower than planned. Either alone may be noise."""
    if plan.prediction is None or not any(holds for _, holds, _ in _slo_violated(inputs, plan, policy)):
        return False
    return predict(plan, inputs.problem).time_per_output_token_ms > (1 + policy.min_gain) * plan.prediction.time_per_output_token_ms


def may_move(inputs: DecisionInputs, policy: Policy) -> bool:
    """Whether an optional move may start: no transition in progress, cooldown over, budget of the hour not used up."""
    if inputs.in_transition:
        return False
    if inputs.moves and inputs.now - inputs.moves[-1] < policy.cooldown:
        return False
    return _moves_within_an_hour(inputs) < policy.moves_per_hour


def _moves_within_an_hour(inputs: DecisionInputs) -> int:
    return sum(1 for moved in inputs.moves if (inputs.now - moved).total_seconds() < 3600)


def _slo_violated(inputs: DecisionInputs, _plan: Plan, _policy: Policy) -> Iterator[Observation]:
    slo, traffic = inputs.problem.slo, inputs.traffic
    for name, limit, value in (
        ("time to first token", slo.time_to_first_token_ms, traffic.time_to_first_token_ms),
        ("time per output token", slo.time_per_output_token_ms, traffic.time_per_output_token_ms),
    ):
        if limit is not None:
            holds = value > limit if value is not None and traffic.requests > 0 else None
            yield f"{Reason.SLO_VIOLATED}/{name}", holds, f"p95 {name} {value or 0:.0f} ms {{held}} (limit {limit:.0f} ms)"


def _utilization_shifted(inputs: DecisionInputs, plan: Plan, policy: Policy) -> Iterator[Observation]:
    nodes = _nodes_of(plan, inputs)
    for where, segment in _stages(plan):
        for name in segment.nodes:
            used = nodes[name].utilization
            holds = None if used is None else used > policy.utilization_limit
            waits = used is not None and (nodes[name].waiting or 0.0) >= used > 0
            why = "lost to waiting for a processor" if waits else "used by others"
            message = f"{where} on {name}: {(used or 0) * 100:.0f} % {why} {{held}} (limit {policy.utilization_limit * 100:.0f} %)"
            yield f"{Reason.UTILIZATION_SHIFTED}/{name}", holds, message


def _link_degraded(inputs: DecisionInputs, plan: Plan, policy: Policy) -> Iterator[Observation]:
    """Links that became slower than planned. A link is unknown while a node at one end is over its limit: the hop waits for a processor."""
    if plan.prediction is None:
        return
    now = predict(plan, inputs.problem)
    nodes = _nodes_of(plan, inputs)
    over = {name for name, node in nodes.items() if (node.utilization or 0.0) > policy.utilization_limit}
    places = list(_stages(plan))
    following = [segment.nodes for _, segment in places[1:]] + [()]
    for (where, segment), after, planned, present in zip(places, following, plan.prediction.stages, now.stages, strict=True):
        slower = present.link_ms - planned.link_ms
        degraded = present.link_ms > policy.link_factor * planned.link_ms and slower > policy.link_floor_ms
        holds = None if degraded and not over.isdisjoint((*segment.nodes, *after)) else degraded
        figures = f"{present.link_ms:.1f} ms per token {{held}} (planned {planned.link_ms:.1f} ms)"
        message = f"the link after {where} on {segment.node} takes {figures}"
        yield f"{Reason.LINK_DEGRADED}/{segment.start}/{segment.node}", holds, message


_OPTIONAL: tuple[tuple[Reason, Callable[[DecisionInputs, Plan, Policy], Iterator[Observation]]], ...] = (
    (Reason.SLO_VIOLATED, _slo_violated),
    (Reason.UTILIZATION_SHIFTED, _utilization_shifted),
    (Reason.LINK_DEGRADED, _link_degraded),
)
