"""The stages that serve the plan now, with what their gateway saw of them: only then is a plan's prediction held against anything."""

from splitinference.controller.manifests.route import Stored
from splitinference.controller.plan_io.plan_status import Built, Planned
from splitinference.core.transition.state import Observed
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.profile import Profile
from splitinference.core.values.value import Value
from splitinference_protocol.report import GatewayReport, ObservedTraffic


class Stage(Value):
    """One segment of the serving route."""

    name: str
    node: str
    processor: str = ""
    start: int
    end: int

    @property
    def place(self) -> str:
        """`node`, or `node/processor`."""
        return f"{self.node}/{self.processor}" if self.processor else self.node


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


def serving_plan(observed: Observed, profile: Profile) -> Plan | None:
    """The serving route as a plan of this model, whatever the plan is now; None where a segment is gone or of another model."""
    if observed.serving is None or not observed.serving.names <= observed.segments.keys():
        return None
    found = [[observed.segments[name] for name in pipeline] for pipeline in observed.serving.pipelines]
    if any(not segment.family.startswith(f"{profile.digest[:8]}/") for pipeline in found for segment in pipeline):
        return None
    pipelines = (tuple(Segment(start=s.start, end=s.end, node=s.node, processor=s.processor) for s in pipeline) for pipeline in found)
    return Plan(
        model_digest=profile.digest,
        pipelines=tuple(Pipeline(segments=segments, share=1.0 / len(found)) for segments in pipelines),
    )
