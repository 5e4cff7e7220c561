"""`spec.scaling` in a pass: what is known of the load, the number of pipelines for it, and how status.scaling keeps both.

The number that a pass decides is in the status first; the next pass plans for it, as if spec.replicas said it. While spec.scaling is there,
nobody else sets the number: spec.replicas is not used, and with it neither `kubectl scale` nor HorizontalPodAutoscalers. The condition
ScalingActive says so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from splitinference.controller.api.conditions import Condition, Kind
from splitinference.controller.api.spec import Resource
from splitinference.controller.ports import Manifest
from splitinference.controller.spec_to_core.policy import policy, scaling
from splitinference.core.cost.carry import carried
from splitinference.core.cost.evaluate import UnknownPlaceError
from splitinference.core.cost.start import starting_seconds
from splitinference.core.decide.scaling import Load, ScalingState, Why, scaled
from splitinference.core.values.plan import Pipeline, Plan
from splitinference.core.values.problem import Problem
from splitinference_protocol.report import GatewayReport

_EVERY = timedelta(seconds=10)
"""How often the load is looked at. The gateway's window is a minute."""
_DIGITS = 5


@dataclass(frozen=True)
class ScalingOutcome:
    """What a pass says of scaling: `status` is status.scaling; `changed`: the number is another than before; `start_seconds`: what a start
    of one pipeline takes."""

    status: Mapping[str, Any]
    condition: Condition
    changed: bool
    start_seconds: float


def with_number(body: Manifest) -> Manifest:
    """The resource with the number of pipelines that scaling decided in place of spec.replicas; the same object without spec.scaling."""
    spec = body.get("spec") or {}
    limits = spec.get("scaling")
    if not isinstance(limits, Mapping):
        return body
    return {**body, "spec": {**spec, "replicas": max(1, _number(body, limits))}}


def is_unloaded(body: Manifest) -> bool:
    """Whether scaling decided that no pipeline is needed."""
    limits = (body.get("spec") or {}).get("scaling")
    return isinstance(limits, Mapping) and limits.get("min") == 0 and _number(body, limits) == 0


def _number(body: Manifest, limits: Mapping[str, Any]) -> int:
    """The number decided, within the limits of now; before the first decision one, or the least."""
    least, most = limits.get("min", 1), limits.get("max", 1)
    decided = ((body.get("status") or {}).get("scaling") or {}).get("pipelines")
    number = decided if isinstance(decided, int) and not isinstance(decided, bool) else max(1, least)
    return int(min(most, max(least, number)))


def load_of(report: GatewayReport | None) -> Load | None:
    """What arrived and waits, by the gateways' report; None where they cannot be asked or do not say it.

    Of a filter before the segments, the share of rows that pass it counts: the pipelines do no more than that.
    """
    if report is None or (arrived := report.observed.arrived) is None:
        return None
    seen = report.observed
    passed = 1.0 if report.filter is None or report.filter.pass_rate is None else min(1.0, report.filter.pass_rate)
    return Load(
        requests_per_s=passed * arrived / seen.window_seconds,
        prompt_tokens=seen.prompt_tokens_mean,
        output_tokens=seen.output_tokens_mean,
        waiting=(report.queued or 0) + (report.held or 0),
        in_flight=sum(route.in_flight for route in report.routes.values()),
    )


def scaling_of(
    resource: Resource,
    replicas: int,
    status: Mapping[str, Any],
    *,
    plan: Plan | None,
    problem: Problem,
    report: GatewayReport | None,
    now: datetime,
) -> ScalingOutcome | None:
    """The number of pipelines for what is known of the load; None where the resource does not scale by itself. `replicas`: spec.replicas as
    it is written."""
    if resource.spec.scaling is None:
        return None
    before = status.get("scaling") or {}
    state, load = _read(before), load_of(report)
    seconds = _start_seconds(resource, plan, problem)
    urgent = state is not None and state.pipelines == 0 and load is not None and load.waiting > 0
    if state is not None and timedelta(0) <= now - state.at < _EVERY and not urgent:
        return ScalingOutcome(before, _condition(before, resource, replicas), changed=False, start_seconds=seconds)
    limits = scaling(resource.spec.scaling)
    made = scaled(limits, state, load, list(_carries(plan, problem, state)), now=now, start_seconds=seconds)
    # An observation that was not made is looked for again at once.
    kept = made.state if load is not None or state is None else made.state.model_copy(update={"at": now})
    written = {
        "pipelines": made.pipelines,
        "reason": made.reason.value,
        "message": made.message,
        "requestsPerSecond": _rounded(kept.level),
        "forecast": _rounded(made.forecast),
        "carries": _rounded(kept.carries or 0.0),
        "startSeconds": _rounded(seconds),
        "state": _as_json(kept),
    }
    changed = made.pipelines != before.get("pipelines")
    return ScalingOutcome(written, _condition(written, resource, replicas), changed, seconds)


def _condition(written: Mapping[str, Any], resource: Resource, replicas: int) -> Condition:
    reason, number = str(written.get("reason", "")), written.get("pipelines")
    limits = resource.spec.scaling
    words = [f"{number} pipelines are wanted", str(written.get("message", ""))]
    if limits is not None and number == limits.max and reason in (Why.LOAD_RISES, Why.STEADY):
        words.append(f"spec.scaling.max allows {limits.max}")
    if replicas != 1:
        words.append(f"spec.replicas is {replicas} and is not used: spec.scaling chooses the number")
    return Condition(kind=Kind.SCALING_ACTIVE, holds=None if reason == Why.LOAD_UNKNOWN else True, reason=reason, message="; ".join(words))


def _carries(plan: Plan | None, problem: Problem, state: ScalingState | None) -> Iterator[float]:
    """Requests per second of each planned pipeline, for requests as long as they are of late; a pipeline with a lost node carries none."""
    load = problem.workload
    if state is not None and state.prompt_tokens and state.output_tokens:
        prompt = min(load.max_context_tokens - 1, max(1, round(state.prompt_tokens)))
        output = min(load.max_context_tokens - prompt, max(1, round(state.output_tokens)))
        load = load.model_copy(update={"prompt_tokens": prompt, "output_tokens": output})
    asked = problem.model_copy(update={"workload": load})
    for pipeline in plan.pipelines if plan is not None else ():
        try:
            yield carried(pipeline, asked).requests_per_s
        except UnknownPlaceError:
            continue


def _start_seconds(resource: Resource, plan: Plan | None, problem: Problem) -> float:
    """Seconds until one more pipeline like the plan's serves: the slowest of them counts."""
    start, cold = policy(resource.spec.adaptation).start, problem.model_copy(update={"serving": ()})
    found = [0.0]
    for pipeline in plan.pipelines if plan is not None else ():
        alone = Plan(model_digest=problem.profile.digest, pipelines=(Pipeline(segments=pipeline.segments),))
        try:
            found.append(starting_seconds(alone, cold, start)[0])
        except KeyError:
            continue
    return max(found)


def _read(written: Mapping[str, Any]) -> ScalingState | None:
    """The state as the status keeps it; None where there is none, or none that can be read: then it begins anew."""
    try:
        return ScalingState.model_validate(written["state"])
    except (KeyError, TypeError, ValidationError):
        return None


def _as_json(state: ScalingState) -> dict[str, Any]:
    found: dict[str, Any] = state.model_dump(mode="json", exclude_none=True)
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in found.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
