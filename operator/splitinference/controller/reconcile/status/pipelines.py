"""Pipelines in the status: which of them serve, what the scale subresource shows, and the condition Scaled."""

from collections.abc import Mapping, Sequence
from typing import Any

from splitinference.controller.api.conditions import Condition, Kind
from splitinference.controller.manifests.pod_parts import labels
from splitinference.controller.manifests.segment import SEGMENT
from splitinference.core.decide.base.decision import Adopt, Keep
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.transition.state import Names, Phase, Route, Target

Phases = Mapping[str, Phase]


def whole(route: Route | None, phases: Phases) -> tuple[Names, ...]:
    """The serving pipelines of which every segment is proven."""
    return tuple(names for names in (route.pipelines if route else ()) if all(phases.get(name) is Phase.PROVEN for name in names))


def scale_of(instance: str, route: Route | None, phases: Phases) -> dict[str, Any]:
    """What the scale subresource shows: the pipelines that serve, and a selector of one pod for each, the pod of the first segment. An
    autoscaler divides by the number of pods that it selects, so more than one for each pipeline would mislead it."""
    first = sorted(names[0] for names in (route.pipelines if route else ()))
    selector = ",".join(f"{key}={value}" for key, value in sorted(labels(instance, SEGMENT).items()))
    if first:
        selector += f",splitinference.dev/segment in ({','.join(first)})"
    return {"replicas": len(whole(route, phases)), "selector": selector}


def pipelines_of(target: Target, route: Route | None, phases: Phases) -> list[dict[str, Any]]:
    """status.pipelines: the plan's pipelines, in the order of their numbers."""
    serving = set(whole(route, phases))
    return [
        {
            "number": number,
            "nodes": ",".join(segment.node for segment in pipeline),
            "segments": f"{sum(phases.get(segment.name) is Phase.PROVEN for segment in pipeline)}/{len(pipeline)}",
            "serves": tuple(segment.name for segment in pipeline) in serving,
        }
        for number, pipeline in enumerate(target.pipelines)
    ]


def scaled(asked: int, planned: int, serving: int, decision: Adopt | Keep | None, before: Sequence[Mapping[str, Any]]) -> Condition | None:
    """Whether as many pipelines serve as are requested; None where one is requested and the plan has one."""
    if asked == planned == 1:
        return None
    kind = Kind.SCALED
    if planned < asked:
        message = f"{asked} pipelines are requested, the plan has {planned}"
        return Condition(kind=kind, holds=False, reason="InsufficientCapacity", message=f"{message}: {_why(decision, before)}")
    if serving < asked:
        return Condition(kind=kind, holds=False, reason="PipelinesNotServing", message=f"{serving} of {asked} pipelines serve")
    if planned > asked or serving > asked:
        message = f"{serving} pipelines serve, {asked} are requested; the others are drained"
        return Condition(kind=kind, holds=False, reason="PipelinesDraining", message=message)
    return Condition(kind=kind, holds=True, reason="AllPipelinesServe", message=f"{serving} pipelines serve")


def _why(decision: Adopt | Keep | None, before: Sequence[Mapping[str, Any]]) -> str:
    """Why there are not more: as the last attempt says it."""
    match decision:
        case Keep(trigger=trigger, message=message) if trigger is not None and trigger.reason is Reason.PIPELINES_MISSING and message:
            return message.removeprefix(f"{trigger.message}; ")
        case Adopt(message=message):
            return message
    known = next(
        (str(c.get("message", "")) for c in before if c.get("type") == Kind.SCALED and c.get("reason") == "InsufficientCapacity"), ""
    )
    return known.partition(": ")[2] or "another attempt comes when nodes or their memory change"
