"""A resource as the page draws it: the shared reading of it, its running requests, and which segments serve during a move."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitinference.ui.page.document import rounded, shortened
from splitinference.view import ResourceView, SegmentView
from splitinference.view.model import PipelineView

MOST_SEGMENTS = 2000


@dataclass(frozen=True)
class Load:
    """Requests of one resource now. None: not known."""

    running: int | None = None
    waiting: int | None = None


def resource_item(view: ResourceView, load: Load = Load(), spec: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The item of a resource. `spec`: as the API server has it, for the SLO and the privacy rules."""
    item = view.model_dump(mode="json", exclude={"uid", "labels"})
    plan = item.pop("plan")
    item["layers"] = max((s.end for s in view.plan.segments), default=0) if view.plan else 0
    if view.plan is not None:
        plan["pipelines"] = [_pipeline(p) for p in view.plan.pipelines]
    item["plan"] = plan
    item["serving"] = [_pipeline(p) for p in serving_chains(view)]
    item["leaving"] = [_segment(s) for s in view.leaving[:MOST_SEGMENTS]]
    item["running"], item["waitingRequests"] = load.running, load.waiting
    item["slo"] = dict((spec or {}).get("slo") or {})
    item["rules"] = [dict(rule) for rule in ((spec or {}).get("privacy") or {}).get("rules") or () if isinstance(rule, Mapping)]
    item["point"] = point_of(view, load)
    item["key"] = view.title
    cut: dict[str, Any] = shortened(item)
    return cut


def point_of(view: ResourceView, load: Load) -> dict[str, float | int | None]:
    """What is drawn over time: times per output token (observed: the median, or p95 where only that is known), rates, running requests."""
    predicted, traffic = (view.plan.predicted if view.plan else {}), view.traffic
    seen = traffic.next_token_ms if traffic else {}
    return {
        "predictedMs": rounded(predicted.get("timePerOutputTokenMs"), 2),
        "observedMs": rounded(seen.get("p50", seen.get("p95")), 2),
        "tokensPerSecond": rounded(traffic.tokens_per_second, 2) if traffic else None,
        "running": load.running,
    }


def serving_chains(view: ResourceView) -> tuple[PipelineView, ...]:
    """The chains that requests take. During a move these are found from the nodes of the route and the segments that are there; empty where
    nothing serves, or where that cannot be found out."""
    if view.serving:
        return view.serving
    if view.plan is None or not view.serving_nodes:
        return ()
    here = [*view.plan.segments, *view.leaving]
    chains = [_chain(number, chain.split(","), here) for number, chain in enumerate(view.serving_nodes.split(" | "))]
    return tuple(chain for chain in chains if chain is not None)


def _chain(number: int, nodes: Sequence[str], here: Sequence[SegmentView]) -> PipelineView | None:
    """Segments on these nodes in this order, each beginning where the one before it ends."""
    found: list[SegmentView] = []
    for stage, node in enumerate(nodes):
        start = found[-1].end if found else 0
        on = [s for s in here if s.node == node and s.start == start and s.phase not in ("Missing", "Starting")]
        # Of two that fit, the one of this pipeline.
        segment = min(on, key=lambda s: s.pipeline != number, default=None)
        if segment is None:
            return None
        found.append(segment.model_copy(update={"pipeline": number, "stage": stage}))
    return PipelineView(number=number, segments=tuple(found))


def _pipeline(pipeline: PipelineView) -> dict[str, Any]:
    hops = {link.source: link for link in pipeline.links}
    segments = []
    for segment in pipeline.segments[:MOST_SEGMENTS]:
        link = hops.get(segment.name)
        item = _segment(segment)
        item["hopMs"] = rounded(link.predicted_ms, 2) if link else None
        item["observedHopMs"] = rounded(link.observed_ms, 2) if link else None
        segments.append(item)
    return {"number": pipeline.number, "segments": segments}


def _segment(segment: SegmentView) -> dict[str, Any]:
    found = segment.model_dump(mode="json")
    return {key: rounded(value, 2) if isinstance(value, float) else value for key, value in found.items()}
