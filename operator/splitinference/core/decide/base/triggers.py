"""Why to solve again now: an ordered chain of pure checks, each with a reason and a message with its numbers.

Mandatory reasons count at once. Optional ones must hold over the policy's window; what is unknown is never zero and never a reason.
"""

from collections.abc import Callable, Iterator
from enum import StrEnum

from splitinference.core.cost import predict, violations
from splitinference.core.cost.eligible import forbidden, unusable
from splitinference.core.decide.base.policy import Facts, Memory, Mode, Policy, sustained
from splitinference.core.values.plan import Plan, Segment
from splitinference.core.values.value import Value


class Reason(StrEnum):
    """Names of triggers, in the order in which they are checked."""

    NO_PLAN = "NoPlan"
    SPEC_CHANGED = "SpecChanged"
    NODE_LOST = "NodeLost"
    VERIFICATION_FAILED = "VerificationFailed"
    SEGMENT_FAILED = "SegmentFailed"
    MEMORY_PRESSURE = "MemoryPressure"
    PRIVACY_CHANGED = "PrivacyChanged"
    WALK_BLOCKED = "WalkBlocked"
    SLO_VIOLATED = "SloViolated"
    UTILIZATION_SHIFTED = "UtilizationShifted"
    LINK_DEGRADED = "LinkDegraded"
    BETTER_PLAN = "BetterPlan"


class Trigger(Value):
    """A reason to solve again."""

    reason: Reason
    message: str
    mandatory: bool


def check(facts: Facts, policy: Policy, memory: Memory) -> tuple[Trigger | None, Memory]:
    """The first reason to solve again, and the memory after looking."""
    if facts.plan is None:
        return Trigger(reason=Reason.NO_PLAN, message="there is no plan yet", mandatory=True), memory
    for reason, look in _MANDATORY:
        message = look(facts, facts.plan)
        if message:
            return Trigger(reason=reason, message=message, mandatory=True), memory
    blocked, memory = _walk_blocked(facts, policy, memory)
    if blocked is not None:
        return blocked, memory
    if policy.mode is Mode.FROZEN:
        return None, memory.model_copy(update={"watches": {k: w for k, w in memory.watches.items() if k == Reason.WALK_BLOCKED}})
    return _optional(facts, facts.plan, policy, memory)


# --- mandatory -----------------------------------------------------------------------------------------------------------------------


def _spec_changed(facts: Facts, _: Plan) -> str:
    if facts.planned_for == facts.asked:
        return ""
    return "what is asked for has changed since the plan was made"


def _node_lost(facts: Facts, plan: Plan) -> str:
    nodes = {node.name: node for node in facts.problem.snapshot.nodes}
    found = []
    for where, segment in _places(plan):
        for name in segment.nodes:
            why = "it is gone" if name not in nodes else unusable(nodes[name], facts.problem)
            if why:
                found.append(f"{where} on {name}, which cannot be used: {why}")
    return "; ".join(found)


def _verification_failed(facts: Facts, plan: Plan) -> str:
    return "; ".join(
        f"{where} on {name} cannot be trusted: {facts.distrusted[name]}"
        for where, segment in _places(plan)
        for name in segment.nodes
        if name in facts.distrusted
    )


def _segment_failed(facts: Facts, plan: Plan) -> str:
    return "; ".join(
        f"{where} on {name} keeps failing: {facts.quarantined[name]}"
        for where, segment in _places(plan)
        for name in segment.nodes
        if name in facts.quarantined
    )


def _memory_pressure(facts: Facts, plan: Plan) -> str:
    found = [
        f"{where} on {name}: {facts.pressured[name]}"
        for where, segment in _places(plan)
        for name in segment.nodes
        if name in facts.pressured
    ]
    found += [violation.message for violation in violations(plan, facts.problem) if violation.constraint == "memory"]
    return "; ".join(found)


def _privacy_changed(facts: Facts, plan: Plan) -> str:
    nodes = {node.name: node for node in facts.problem.snapshot.nodes}
    found = []
    for where, segment in _places(plan):
        for name in segment.nodes:
            reasons = {forbidden(nodes[name], layer, facts.problem.constraints) for layer in range(*segment.held)}
            found += [f"{where} on {name}: {reason}" for reason in sorted(filter(None, reasons))]
    return "; ".join(found)


def _walk_blocked(facts: Facts, policy: Policy, memory: Memory) -> tuple[Trigger | None, Memory]:
    """The walk to the plan has had no way on for a while, and the last one to be given up is past its cooldown. Where nobody is served, the
    cooldown and the budget of moves do not count."""
    watch, memory = memory.watching(Reason.WALK_BLOCKED, facts.blocked is not None, policy, facts.now)
    if facts.blocked is None or watch is None or facts.now - watch.since < policy.retry:
        return None, memory
    pause = policy.cooldown if facts.served else policy.retry
    if memory.detoured is not None and facts.now - memory.detoured < pause:
        return None, memory
    if facts.served and _moves_within_an_hour(facts) >= policy.moves_per_hour:
        return None, memory
    held = (facts.now - watch.since).total_seconds()
    message = f"the walk to the plan has had no way on for {held:.0f} s: {facts.blocked.why}"
    return Trigger(reason=Reason.WALK_BLOCKED, message=message, mandatory=True), memory


_MANDATORY: tuple[tuple[Reason, Callable[[Facts, Plan], str]], ...] = (
    (Reason.SPEC_CHANGED, _spec_changed),
    (Reason.NODE_LOST, _node_lost),
    (Reason.VERIFICATION_FAILED, _verification_failed),
    (Reason.SEGMENT_FAILED, _segment_failed),
    (Reason.MEMORY_PRESSURE, _memory_pressure),
    (Reason.PRIVACY_CHANGED, _privacy_changed),
)


def _places(plan: Plan) -> Iterator[tuple[str, Segment]]:
    many = len(plan.pipelines) > 1
    for number, pipeline in enumerate(plan.pipelines):
        for stage, segment in enumerate(pipeline.segments):
            yield (f"pipeline {number} stage {stage}" if many else f"stage {stage}"), segment


# --- optional ------------------------------------------------------------------------------------------------------------------------

Seen = tuple[str, bool | None, str]
"""Key of a watch; whether the reason holds, None when that is not known; the message without its duration."""


def _optional(facts: Facts, plan: Plan, policy: Policy, memory: Memory) -> tuple[Trigger | None, Memory]:
    keys: set[str] = {Reason.BETTER_PLAN, Reason.WALK_BLOCKED}
    first: Trigger | None = None
    felt = _felt(facts, plan, policy)
    for reason, look in _OPTIONAL:
        for key, holds, message in look(facts, plan, policy):
            keys.add(key)
            watch, memory = memory.watching(key, holds, policy, facts.now)
            if first is None and holds and watch is not None and sustained(watch, policy, facts.now, felt=felt):
                held = (facts.now - watch.since).total_seconds()
                first = Trigger(reason=reason, message=message.format(held=f"for {held:.0f} s"), mandatory=False)
    memory = memory.model_copy(update={"watches": {key: watch for key, watch in memory.watches.items() if key in keys}})
    if not may_move(facts, policy):
        return None, memory
    if memory.stabilizing is not None and (first is None or first.reason is not Reason.SLO_VIOLATED):
        return None, memory
    since = None if memory.reviewed is None else facts.now - memory.reviewed
    confirming = Reason.BETTER_PLAN in memory.watches
    retry = min(policy.retry, policy.spacing) if confirming else policy.retry
    if first is not None and (since is None or since >= retry):
        return first, memory
    pause = policy.spacing if confirming else policy.review
    if first is None and facts.may_review and (since is None or since >= pause):
        message = f"a better plan is looked for every {policy.review.total_seconds():.0f} s"
        return Trigger(reason=Reason.BETTER_PLAN, message=message, mandatory=False), memory
    return None, memory


def _felt(facts: Facts, plan: Plan, policy: Policy) -> bool:
    """Whether clients feel that the plan no longer is what it was: their limits are broken, as the gateway saw, and the cost model says of
    what was measured on nodes and links that the plan is slower than it was made for. Either alone may be noise; both are not."""
    if plan.prediction is None or not any(holds for _, holds, _ in _slo_violated(facts, plan, policy)):
        return False
    return predict(plan, facts.problem).time_per_output_token_ms > (1 + policy.min_gain) * plan.prediction.time_per_output_token_ms


def may_move(facts: Facts, policy: Policy) -> bool:
    """Whether an optional move may be made now: none under way, past the cooldown, within the budget of an hour."""
    if facts.walking:
        return False
    if facts.moves and facts.now - facts.moves[-1] < policy.cooldown:
        return False
    return _moves_within_an_hour(facts) < policy.moves_per_hour


def _moves_within_an_hour(facts: Facts) -> int:
    return sum(1 for moved in facts.moves if (facts.now - moved).total_seconds() < 3600)


def _slo_violated(facts: Facts, _plan: Plan, _policy: Policy) -> Iterator[Seen]:
    slo, traffic = facts.problem.slo, facts.traffic
    for name, limit, value in (
        ("time to first token", slo.time_to_first_token_ms, traffic.time_to_first_token_ms),
        ("time per output token", slo.time_per_output_token_ms, traffic.time_per_output_token_ms),
    ):
        if limit is not None:
            holds = value > limit if value is not None and traffic.requests > 0 else None
            yield f"{Reason.SLO_VIOLATED}/{name}", holds, f"{name} {value or 0:.0f} ms {{held}} (limit {limit:.0f} ms)"


def _utilization_shifted(facts: Facts, plan: Plan, policy: Policy) -> Iterator[Seen]:
    nodes = {node.name: node for node in facts.problem.snapshot.nodes}
    for where, segment in _places(plan):
        for name in segment.nodes:
            used = nodes[name].utilization
            holds = None if used is None else used > policy.utilization_limit
            waits = used is not None and (nodes[name].waiting or 0.0) >= used > 0
            why = "lost to waiting for a processor" if waits else "by others"
            message = f"{where} on {name} at {(used or 0) * 100:.0f} % {why} {{held}} (limit {policy.utilization_limit * 100:.0f} %)"
            yield f"{Reason.UTILIZATION_SHIFTED}/{name}", holds, message


def _link_degraded(facts: Facts, plan: Plan, policy: Policy) -> Iterator[Seen]:
    """No link is judged while a node at one of its ends is over the limit: such a hop waits for a processor, not for the link."""
    if plan.prediction is None:
        return
    now = predict(plan, facts.problem)
    over = {node.name for node in facts.problem.snapshot.nodes if (node.utilization or 0.0) > policy.utilization_limit}
    places = list(_places(plan))
    following = [segment.nodes for _, segment in places[1:]] + [()]
    for (where, segment), after, planned, present in zip(places, following, plan.prediction.stages, now.stages, strict=True):
        slower = present.link_ms - planned.link_ms
        degraded = present.link_ms > policy.link_factor * planned.link_ms and slower > policy.link_floor_ms
        holds = None if degraded and not over.isdisjoint((*segment.nodes, *after)) else degraded
        figures = f"{present.link_ms:.1f} ms for a token {{held}} (planned {planned.link_ms:.1f} ms)"
        message = f"the link after {where} on {segment.node} takes {figures}"
        yield f"{Reason.LINK_DEGRADED}/{segment.start}/{segment.node}", holds, message


_OPTIONAL: tuple[tuple[Reason, Callable[[Facts, Plan, Policy], Iterator[Seen]]], ...] = (
    (Reason.SLO_VIOLATED, _slo_violated),
    (Reason.UTILIZATION_SHIFTED, _utilization_shifted),
    (Reason.LINK_DEGRADED, _link_degraded),
)
