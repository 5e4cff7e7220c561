"""A model that nobody asks for, or that gives way to one of a higher priority, is unloaded: the route says that it sleeps, what is under
way ends, then its segments are deleted.

The plan stays, and with it the names of the segments: when a request comes, the same segments start again, or a plan that was made anew
meanwhile because a node was lost.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from splitinference.controller.api.spec import Resource
from splitinference.controller.identity import owner_of_body
from splitinference.controller.manifests.route import asleep
from splitinference.controller.plan_io.adapter_status import read_adapters, served
from splitinference.controller.ports import Manifest, Ports
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.core.transition.state import Phase
from splitinference.core.transition.steps import DeleteSegment, Done, Steps

UNUSED = "no request has come for a while; the next one starts it again"


_HOLD_SECONDS = 5.0
"""So long a request of a model without spec.scaling is held: it is not known when the model serves again."""
_FULL_PASS_EVERY = timedelta(seconds=10)


@dataclass(frozen=True)
class Sleep:
    """A resource that was unloaded and at rest after a full pass at `since`.

    Until the next full pass only its gateway is asked, once a second, since a client may wait for the model. A hundred unloaded models then
    cost a hundred small requests a second, not a hundred passes.
    """

    since: datetime
    spec: Manifest
    annotations: Manifest

    @staticmethod
    def of(body: Manifest, now: datetime) -> "Sleep":
        return Sleep(now, body.get("spec") or {}, body["metadata"].get("annotations") or {})

    def goes_on(self, body: Manifest, ports: Ports) -> bool:
        """Whether no full pass is due, nothing else is asked for, and no client waits. A gateway that cannot be asked needs a full pass."""
        if self != Sleep.of(body, self.since) or not timedelta(0) <= ports.clock.now() - self.since < _FULL_PASS_EVERY:
            return False
        report = ports.gateways.routes(owner_of_body(body))
        return report is not None and not (report.held or report.queued) and not any(each.in_flight for each in report.routes.values())


@dataclass(frozen=True)
class Unloading:
    """One pass on the way to no pipeline. `start_seconds`: what a client is told that a start takes; `why` segments are
    deleted, in words."""

    ports: Ports
    resource: Resource
    seen: Seen
    start_seconds: float
    why: str = UNUSED

    def steps(self) -> Steps | Done:
        """What is done now; the route is written here, before anything is deleted."""
        seen, limits = self.seen, self.resource.spec.scaling
        if not seen.asleep:
            hold = limits.hold.total_seconds() if limits is not None else _HOLD_SECONDS
            data = asleep(self.start_seconds, hold, served(read_adapters(seen.status)))
            self.ports.cluster.apply(self.ports.builder.route(self.resource, data))
            return Steps(waiting=("the gateway learns that the model is unloaded",))
        there = [segment for segment in seen.observed.segments.values() if segment.phase is not Phase.LEAVING]
        if not there:
            return Steps(waiting=("segments end",)) if seen.observed.segments else Done()
        if (why := self._under_way()) is not None:
            return Steps(waiting=(why,))
        return Steps(actions=tuple(DeleteSegment(name=segment.name, why=self.why) for segment in there))

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
