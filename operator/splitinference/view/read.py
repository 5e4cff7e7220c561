"""A SplitInference as Kubernetes JSON → `ResourceView`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from splitinference.view.json_values import items, mapping, number, numbers, text, texts, whole
from splitinference.view.model import (
    ConditionView,
    DecisionView,
    LinkView,
    PipelineView,
    PlanView,
    ProposalView,
    ResourceView,
    SegmentView,
    TrafficView,
)

Json = Mapping[str, Any]
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
LAYERS = "splitinference.dev/layers"
MIB = 2.0**20
_GOOD_WHEN_FALSE = ("Progressing", "Reconciling", "Stalled")


def read_all(resources: Iterable[Json], pods: Iterable[Json] = (), routes: Iterable[Json] = ()) -> tuple[ResourceView, ...]:
    """As `read`, of many; `pods` and `routes` (ConfigMaps) of any of them."""
    all_pods, all_routes = list(pods), list(routes)
    return tuple(read(resource, all_pods, all_routes) for resource in resources)


def read(resource: Json, pods: Iterable[Json] = (), routes: Iterable[Json] = ()) -> ResourceView:
    """One resource. `pods`: of its namespace, to find what is not in the plan; `routes`: ConfigMaps, to find what serves during a move."""
    about, spec, status = (mapping(resource.get(key)) for key in ("metadata", "spec", "status"))
    namespace, name = text(about.get("namespace")), text(about.get("name"))
    written = mapping(status.get("plan"))
    observed = mapping(status.get("observed"))
    observed = observed if written and observed.get("revision") == written.get("revision") else {}
    plan = _plan(written, observed, mapping(status.get("calibration"))) if written else None
    mine = _segments_of_pods(namespace, name, pods)
    serving = _serving(_route_names(namespace, name, routes), plan, mine)
    move, calibration, kept = (mapping(status.get(key)) for key in ("transition", "calibration", "adaptation"))
    planned = {segment.name for segment in plan.segments} if plan else set()
    return ResourceView(
        namespace=namespace,
        name=name,
        uid=text(about.get("uid")),
        generation=whole(about.get("generation")),
        observed_generation=whole(status.get("observedGeneration")),
        mode=text(mapping(spec.get("adaptation")).get("mode")),
        goal=text(mapping(spec.get("objective")).get("goal")),
        model=text(mapping(spec.get("model")).get("id")),
        plan=plan,
        serving=serving,
        serving_nodes=text(status.get("nodes")),
        leaving=tuple(segment for segment in mine.values() if segment.name not in planned),
        proposal=_proposal(mapping(status.get("proposal")), plan),
        proven=text(status.get("segments")),
        predicted=text(status.get("predicted")),
        latency=text(status.get("latency")),
        endpoint=text(status.get("endpoint")),
        traffic=_traffic(observed) if observed else None,
        transition_from=text(move.get("from")),
        transition_to=text(move.get("to")),
        steps=texts(move.get("steps")),
        waiting=texts(move.get("waiting")),
        conditions=tuple(_condition(found) for found in items(status.get("conditions"))),
        decisions=tuple(_decision(found) for found in items(status.get("decisions"))),
        error_percent=number(calibration.get("errorPercent")),
        uncalibrated_error_percent=number(calibration.get("uncalibratedErrorPercent")),
        paid=whole(kept.get("paid")),
        unpaid=whole(kept.get("unpaid")),
    )


def _plan(written: Json, observed: Json = {}, calibration: Json = {}) -> PlanView:  # noqa: B006 - never changed
    stages = mapping(observed.get("stages"))
    by_pipeline: dict[int, list[tuple[SegmentView, Json]]] = {}
    for entry in items(written.get("segments")):
        number_of = whole(entry.get("pipeline"))
        found = by_pipeline.setdefault(number_of, [])
        found.append((_segment(entry, len(found), mapping(stages.get(text(entry.get("name")))), calibration), entry))
    return PlanView(
        revision=text(written.get("revision")),
        pipelines=tuple(_pipeline(at, found, stages) for at, found in sorted(by_pipeline.items())),
        predicted=numbers(written.get("predicted")),
        value=number(written.get("value")),
        bound=number(written.get("bound")),
        gap=number(written.get("gap")),
        optimal=written.get("optimal") is True,
        explanation=texts(written.get("explanation")),
    )


def _pipeline(at: int, found: Sequence[tuple[SegmentView, Json]], stages: Json) -> PipelineView:
    links = []
    for index, (segment, entry) in enumerate(found):
        after = found[index + 1][0] if index + 1 < len(found) else None
        links.append(
            LinkView(
                source=segment.name,
                target=after.name if after else "",
                source_node=segment.node,
                target_node=after.node if after else "",
                predicted_ms=number(entry.get("linkMs")),
                observed_ms=number(mapping(stages.get(segment.name)).get("linkMs")),
            )
        )
    return PipelineView(number=at, segments=tuple(segment for segment, _ in found), links=tuple(links))


def _segment(entry: Json, stage: int, seen: Json, calibration: Json) -> SegmentView:
    """`predicted_ms` is for the node as it is now, once stage times were compared; before that as it was when the plan was made."""
    name, node = text(entry.get("name")), text(entry.get("node"))
    now = number(mapping(mapping(calibration.get("stages")).get(name)).get("predictedMs"))
    memory = number(entry.get("memoryBytes"))
    return SegmentView(
        name=name,
        pipeline=whole(entry.get("pipeline")),
        stage=stage,
        start=whole(entry.get("start")),
        end=whole(entry.get("end")),
        node=node,
        processor=text(entry.get("processor")),
        phase=text(entry.get("phase")),
        weight_mib=number(entry.get("weightMiB")),
        kv_mib=number(entry.get("kvMiB")),
        memory_mib=None if memory is None else memory / MIB,
        predicted_ms=number(entry.get("predictedMs")) if now is None else now,
        prefill_ms=number(entry.get("prefillMs")),
        observed_ms=number(seen.get("computeMs")),
        queue_ms=number(seen.get("queueMs")),
        batch=number(seen.get("batch")),
        factor=number(mapping(mapping(calibration.get("nodes")).get(node)).get("factor")),
    )


def _segments_of_pods(namespace: str, name: str, pods: Iterable[Json]) -> dict[str, SegmentView]:
    """This resource's segments that have a pod, by name."""
    found = {}
    for pod in pods:
        about = mapping(pod.get("metadata"))
        labels = mapping(about.get("labels"))
        if about.get("namespace") != namespace or labels.get(INSTANCE) != name or labels.get(COMPONENT) != "segment":
            continue
        start, _, end = text(labels.get(LAYERS)).partition("-")
        if start.isdecimal() and end.isdecimal():
            phase = "Leaving" if about.get("deletionTimestamp") else ""
            node = text(mapping(pod.get("spec")).get("nodeName"))
            segment = text(about.get("name"))
            found[segment] = SegmentView(name=segment, start=int(start), end=int(end), node=node, phase=phase)
    return found


def _route_names(namespace: str, name: str, routes: Iterable[Json]) -> list[list[str]]:
    """Names of the segments on the serving route, pipeline by pipeline; empty where the route is not given or cannot be read."""
    for config_map in routes:
        about = mapping(config_map.get("metadata"))
        if about.get("namespace") == namespace and about.get("name") == f"{name}-route":
            try:
                document = mapping(json.loads(mapping(config_map.get("data")).get("route.json", "")))
            except (TypeError, ValueError):
                return []
            pipelines = document.get("pipelines")
            found = pipelines if isinstance(pipelines, list) else []
            return [[text(hop.get("segment")) for hop in items(pipeline)] for pipeline in found]
    return []


def _serving(names: list[list[str]], plan: PlanView | None, pods: Mapping[str, SegmentView]) -> tuple[PipelineView, ...]:
    """The chains of the route, where they are not those of the plan."""
    planned = {segment.name: segment for segment in plan.segments} if plan else {}
    if not names or (plan and names == [[s.name for s in pipeline.segments] for pipeline in plan.pipelines]):
        return ()
    chains = []
    for at, chain in enumerate(names):
        segments = [planned.get(name) or pods.get(name) or SegmentView(name=name, phase="Missing") for name in chain]
        placed = [segment.model_copy(update={"pipeline": at, "stage": stage}) for stage, segment in enumerate(segments)]
        chains.append(_pipeline(at, [(segment, {}) for segment in placed], {}))
    return tuple(chains)


def _proposal(written: Json, plan: PlanView | None) -> ProposalView | None:
    """The offer. Its segments have the phases of the present plan's; those that would be made have the phase New."""
    if not written.get("revision"):
        return None
    phases = {segment.name: segment.phase for segment in plan.segments} if plan else {}
    segments = [{**entry, "phase": phases.get(text(entry.get("name")), "New")} for entry in items(written.get("segments"))]
    written = {**written, "segments": segments}
    words = {key: text(written.get(key)) for key in ("time", "reason", "message")}
    return ProposalView(plan=_plan(written), source=text(written.get("from")), **words)


def _traffic(observed: Json) -> TrafficView:
    return TrafficView(
        requests=whole(observed.get("requests")),
        failed=whole(observed.get("failed")),
        window_seconds=number(observed.get("windowSeconds")),
        tokens_per_second=number(observed.get("tokensPerSecond")),
        kv_reserved=number(observed.get("kvReserved")),
        first_token_ms=numbers(observed.get("timeToFirstTokenMs")),
        next_token_ms=numbers(observed.get("timePerOutputTokenMs")),
    )


def _condition(found: Json) -> ConditionView:
    kind, status = text(found.get("type")), text(found.get("status"))
    return ConditionView(
        kind=kind,
        status=status,
        reason=text(found.get("reason")),
        message=text(found.get("message")),
        since=text(found.get("lastTransitionTime")),
        good=status == ("False" if kind in _GOOD_WHEN_FALSE else "True"),
    )


def _decision(found: Json) -> DecisionView:
    words = {key: text(found.get(key)) for key in ("time", "transition", "reason", "message", "revision")}
    return DecisionView(**words, outcome=dict(mapping(found.get("outcome"))))
