"""The plan as status.plan keeps it, and back: a plan survives a restart of the operator there, with what it was made for."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from splitinference.controller.api.spec import Rejected, Resource
from splitinference.controller.cluster_state.pods import requested_millicores
from splitinference.controller.cluster_state.segment_pods import family_of
from splitinference.controller.kube_values.device_images import resource_of
from splitinference.controller.ports import Builder, SegmentObjects
from splitinference.core.transition.state import NamedSegment, Phase, Target
from splitinference.core.values.plan import Pipeline, Plan, Prediction, Segment, StagePrediction
from splitinference.core.values.profile import LinkEncoding, Profile

MIB = 1024 * 1024

_PREDICTED = {
    "timeToFirstTokenMs": "time_to_first_token_ms",
    "timePerOutputTokenMs": "time_per_output_token_ms",
    "latencyMs": "latency_ms",
    "bottleneckMs": "bottleneck_ms",
    "tokensPerSecond": "tokens_per_s",
    "peakUtilization": "peak_utilization",
    "ingressMs": "ingress_ms",
}
_SPENT = {"costPerHour": "cost_per_hour", "watts": "watts", "joulesPerToken": "energy_joules_per_token"}
"""Figures that plans of before do not have."""


def asked_for(spec: Mapping[str, Any], profile: Profile) -> str:
    """Hash of all that a plan is made for: the model's content and the spec, but for how to answer to change, by which operator, and
    adapters, which come and go within the memory that is planned for them.

    One pipeline is what resources had before they could ask for several: asking for it is no other specification.
    """
    passed = ("adaptation", "operatorClass", "scaling", "adapters")
    content = {key: value for key, value in spec.items() if key not in passed and (key, value) != ("replicas", 1)}
    if isinstance(segments := content.get("segments"), Mapping):  # no memory for adapters is what resources had before there were any
        content["segments"] = {key: value for key, value in segments.items() if (key, value) != ("adapterMemoryMiB", 0)}
    return hashlib.sha256(json.dumps([profile.digest, profile.dtype, content], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Planned:
    """A plan, the resource as it was when the plan was made, its specification as the status keeps it, and the hash of what was asked."""

    plan: Plan
    resource: Resource
    spec: Mapping[str, Any]
    asked: str


@dataclass(frozen=True)
class Built:
    """A plan as named segments, with the objects to make them."""

    target: Target
    objects: Mapping[str, SegmentObjects] = field(default_factory=dict)


def build(planned: Planned, profile: Profile, builder: Builder) -> Built:
    """The plan's segments by name."""
    objects: dict[str, SegmentObjects] = {}
    pipelines: list[tuple[NamedSegment, ...]] = []
    assert planned.plan.prediction is not None  # noqa: S101 - a plan without its stages' memory is never kept
    stages = iter(planned.plan.prediction.stages)
    for pipeline in planned.plan.pipelines:
        named = []
        for segment, stage in zip(pipeline.segments, stages, strict=False):
            made = builder.segment(planned.resource, profile, segment, stage.memory_bytes, stage.kv_bytes)
            objects[made.name] = made
            named.append(
                NamedSegment(
                    name=made.name,
                    start=segment.start,
                    end=segment.end,
                    node=segment.node,
                    memory_bytes=made.memory_bytes,
                    millicores=requested_millicores(made.pod),
                    family=family_of(made.pod),
                    processor=segment.processor,
                    device=resource_of(segment.processor),
                )
            )
        pipelines.append(tuple(named))
    return Built(target=Target(pipelines=tuple(pipelines)), objects=objects)


def write_plan(planned: Planned, built: Built, phases: Mapping[str, Phase]) -> dict[str, Any]:
    """status.plan, with the phase of each segment."""
    plan = planned.plan
    prediction = plan.prediction
    assert prediction is not None  # noqa: S101 - as above
    segments = []
    stages = iter(prediction.stages)
    for number, (pipeline, named) in enumerate(zip(plan.pipelines, built.target.pipelines, strict=True)):
        for segment, name, stage in zip(pipeline.segments, named, stages, strict=False):
            segments.append(
                {
                    "name": name.name,
                    "pipeline": number,
                    "start": segment.start,
                    "end": segment.end,
                    "node": segment.node,
                    **({"processor": segment.processor} if segment.processor else {}),
                    **({"linkEncoding": segment.link_encoding.value.capitalize()} if segment.link_encoding else {}),
                    "weightMiB": round(stage.weight_bytes / MIB, 1),
                    "kvMiB": round(stage.kv_bytes / MIB, 1),
                    "weightBytes": stage.weight_bytes,
                    "kvBytes": stage.kv_bytes,
                    "memoryBytes": stage.memory_bytes,
                    **({"nodeMemoryBytes": name.memory_bytes} if name.device else {}),
                    "predictedMs": round(stage.decode_ms, 3),
                    "prefillMs": round(stage.prefill_ms, 3),
                    "linkMs": round(stage.link_ms, 3),
                    "utilization": round(stage.utilization, 4),
                    "phase": phases[name.name].value if name.name in phases else "Missing",
                }
            )
    written: dict[str, Any] = {
        "revision": built.target.route.revision,
        "modelDigest": plan.model_digest,
        "segments": segments,
        "predicted": {name: round(getattr(prediction, attribute), 4) for name, attribute in {**_PREDICTED, **_SPENT}.items()},
        "optimal": plan.optimal,
        "explanation": list(plan.explanation),
        "asked": planned.asked,
        "madeFor": dict(planned.spec),
    }
    figures = {"value": plan.value, "bound": plan.bound, "gap": plan.gap}
    return written | {name: round(value, 6) for name, value in figures.items() if value is not None}


def read_plan(status: Mapping[str, Any], resource_of: Callable[[Mapping[str, Any]], Resource | Rejected]) -> Planned | None:
    """The plan in the status; None where there is none, or none that can be read: then one is made. `resource_of`: the resource with the
    specification that is given."""
    written = status.get("plan") or {}
    try:
        pipelines: dict[int, list[Segment]] = {}
        for s in written["segments"]:
            encoding = LinkEncoding(s["linkEncoding"].lower()) if "linkEncoding" in s else None
            segment = Segment(start=s["start"], end=s["end"], node=s["node"], processor=s.get("processor", ""), link_encoding=encoding)
            pipelines.setdefault(int(s["pipeline"]), []).append(segment)
        plan = Plan(
            model_digest=written["modelDigest"],
            pipelines=tuple(Pipeline(segments=tuple(found), share=1.0 / len(pipelines)) for _, found in sorted(pipelines.items())),
            prediction=Prediction(
                **{attribute: written["predicted"][name] for name, attribute in _PREDICTED.items()},
                **{attribute: written["predicted"].get(name, 0.0) for name, attribute in _SPENT.items()},
                stages=tuple(_stage(s) for s in written["segments"]),
            ),
            value=written.get("value"),
            bound=written.get("bound"),
            gap=written.get("gap"),
            optimal=bool(written.get("optimal")),
            explanation=tuple(written.get("explanation") or ()),
        )
        resource = resource_of(dict(written["madeFor"]))
        return None if isinstance(resource, Rejected) else Planned(plan, resource, written["madeFor"], str(written["asked"]))
    except (KeyError, TypeError, ValueError, ValidationError):
        return None


def _stage(segment: Mapping[str, Any]) -> StagePrediction:
    return StagePrediction(
        weight_bytes=segment["weightBytes"],
        kv_bytes=segment["kvBytes"],
        memory_bytes=segment["memoryBytes"],
        prefill_ms=segment["prefillMs"],
        decode_ms=segment["predictedMs"],
        link_ms=segment["linkMs"],
        utilization=segment["utilization"],
    )
