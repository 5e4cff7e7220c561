"""Actions of a walk, done: each may run twice, and each stands alone."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from splitinference.controller.api.spec import Resource
from splitinference.controller.manifests.route import Stored, cut_over, read_route
from splitinference.controller.plan_io.adapter_status import read_adapters, served
from splitinference.controller.plan_io.plan_status import Built
from splitinference.controller.ports import NameTakenError, Ports, RefusedError
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.controller.reconcile.status.report import describe
from splitinference.core.transition.steps import Action, CreateSegment, Cutover, DeleteSegment

log = logging.getLogger(__name__)


@dataclass
class Walker:
    """Takes steps for one resource, which is as it was when the plan was made. `drain_seconds`: for how long old routes may go on;
    `refused`: what the API server did not take; `taken`: the objects of others that have a name of ours."""

    ports: Ports
    resource: Resource
    drain_seconds: float
    built: Built
    seen: Seen
    refused: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def take(self, actions: Iterable[Action]) -> Stored | None:
        """Do them. Returns the route as it is stored afterwards."""
        stored = self.seen.stored
        for action in actions:
            log.info("%s/%s: %s", *self.seen.owner, describe(action))
            try:
                stored = self._do(action, stored)
            except NameTakenError as error:
                self.taken.append(str(error))
            except RefusedError as error:
                self.refused.append(f"{describe(action)}: refused: {error}")
        return stored

    def _do(self, action: Action, stored: Stored | None) -> Stored | None:
        cluster, namespace = self.ports.cluster, self.seen.owner[0]
        match action:
            case CreateSegment(segment=segment):
                made = self.built.objects[segment.name]
                cluster.apply(made.service)
                cluster.create(made.pod)
            case DeleteSegment(name=name):
                cluster.delete("Pod", namespace, name)
                if name not in self.built.objects:
                    cluster.delete("Service", namespace, name)
            case Cutover(route=route):
                adapters = served(read_adapters(self.seen.status))
                data = cut_over(stored, route, self._models(stored), self.drain_seconds, self.seen.now, adapters=adapters)
                config_map = self.ports.builder.route(self.resource, data)
                cluster.apply(config_map)
                return read_route(config_map)
        return stored

    def _models(self, stored: Stored | None) -> dict[str, str]:
        """The Triton model of each segment that a route may name."""
        models = dict(stored.models) if stored else {}
        models |= {pod.name: pod.model for pod in self.seen.segments}
        return models | {name: made.model for name, made in self.built.objects.items()}
