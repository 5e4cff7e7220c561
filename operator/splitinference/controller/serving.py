"""The stages that serve the plan now, with what their gateway saw of them: only then is a plan's prediction held against anything."""

from splitinference.controller.planned import Built, Planned
from splitinference.controller.ports import GatewayReport, ObservedTraffic
from splitinference.controller.route import Stored
from splitinference.core.value import Value


class Stage(Value):
    """One segment of the serving route."""

    name: str
    node: str
    processor: str = ""
    start: int
    end: int


class Serving(Value):
    """The route that serves and what its gateway saw of it; `traffic` None: the gateway cannot be asked, or is at another route."""

    revision: str
    stages: tuple[Stage, ...]
    traffic: ObservedTraffic | None


def serving_stages(planned: Planned | None, built: Built | None, stored: Stored | None, report: GatewayReport | None) -> Serving | None:
    """The plan's stages if the serving route is the plan's own; None on the way to it."""
    if planned is None or built is None or stored is None or stored.route.revision != built.target.route.revision:
        return None
    stages = tuple(
        Stage(name=name.name, node=segment.node, processor=segment.processor, start=segment.start, end=segment.end)
        for pipeline, named in zip(planned.plan.pipelines, built.target.pipelines, strict=True)
        for segment, name in zip(pipeline.segments, named, strict=True)
    )
    traffic = report.observed if report is not None and report.revision == stored.route.revision else None
    return Serving(revision=stored.route.revision, stages=stages, traffic=traffic)
