"""A model that nobody asks for is unloaded: the route says that it sleeps, what is under way ends, then its segments are deleted.

The plan stays, and with it the names of the segments: when a request comes, the same segments start again, or a plan that was made anew
meanwhile because a node was lost.
"""

from dataclasses import dataclass

from splitinference.controller.api.spec import Resource
from splitinference.controller.manifests.route import asleep
from splitinference.controller.plan_io.adapter_status import read_adapters, served
from splitinference.controller.ports import Ports
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.core.transition.state import Phase
from splitinference.core.transition.steps import DeleteSegment, Done, Steps

_WHY = "no request came for a while, and the first one starts it again"


@dataclass(frozen=True)
class Unloading:
    """One pass on the way to no pipeline. `start_seconds`: what a client is told that a start takes."""

    ports: Ports
    resource: Resource
    seen: Seen
    start_seconds: float

    def steps(self) -> Steps | Done:
        """What is done now; the route is written here, before anything is deleted."""
        seen, limits = self.seen, self.resource.spec.scaling
        if not seen.asleep and limits is not None:
            data = asleep(self.start_seconds, limits.hold.total_seconds(), served(read_adapters(seen.status)))
            self.ports.cluster.apply(self.ports.builder.route(self.resource, data))
            return Steps(waiting=("the gateway learns that the model is unloaded",))
        there = [segment for segment in seen.observed.segments.values() if segment.phase is not Phase.LEAVING]
        if not there:
            return Steps(waiting=("segments end",)) if seen.observed.segments else Done()
        if (why := self._under_way()) is not None:
            return Steps(waiting=(why,))
        return Steps(actions=tuple(DeleteSegment(name=segment.name, why=_WHY) for segment in there))

    def _under_way(self) -> str | None:
        """What still uses the segments, in words. A gateway that cannot be asked may have requests under way."""
        report, gateways = self.seen.report, self.seen.gateways
        if report is None:
            running = any((pod.get("status") or {}).get("phase") == "Running" for pod in gateways)
            return "the gateway does not answer, so its requests in flight are unknown" if running else None
        if serving := [revision for revision, route in report.routes.items() if route.state == "serving"]:
            return f"the gateway still uses route {', '.join(serving)}"
        count = sum(route.in_flight for route in report.routes.values())
        return f"{count} requests are in flight" if count else None
