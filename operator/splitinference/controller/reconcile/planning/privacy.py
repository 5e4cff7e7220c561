"""Rules of privacy against what serves: which segments of a route see layers on nodes that must not have them, and what is done then.

Placing segments is the planner's work. This is for the time between a node losing its label and the new route: with `onViolation: Stop`
nothing is sent along a route that breaks a rule, neither the one that serves nor, where no plan keeps the rules, the plan's own.
"""

import logging
from dataclasses import replace

from splitinference.controller.api.sections.privacy_spec import OnViolation
from splitinference.controller.api.spec import Rejected, Resource
from splitinference.controller.manifests.route import cut_over, read_route, withdrawn
from splitinference.controller.plan_io.adapter_status import read_adapters, served
from splitinference.controller.plan_io.plan_status import Planned
from splitinference.controller.ports import Ports
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.controller.reconcile.planning.plan_pass import Words, exposed, unexposed
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.core.transition.state import OldRoute
from splitinference.core.values.problem import Constraints
from splitinference.core.values.profile import Profile

log = logging.getLogger(__name__)


def promised_rules(planned: Planned, profile: Profile) -> Constraints:
    """The rules that the plan was made for. One that came later is a wish for the next plan: while there is none, what serves goes on."""
    bounds = plan_constraints.constraints(planned.resource.spec, len(profile.layers))
    return Constraints() if isinstance(bounds, Rejected) else bounds


def stops_exposed(resource: Resource) -> bool:
    """Whether the resource wants nothing sent along a route that breaks a rule."""
    return resource.spec.privacy.on_violation is OnViolation.STOP


def exposed_route(resource: Resource, seen: Seen, rules: Constraints) -> Words:
    """What is wrong with the serving route, where the resource wants it stopped then."""
    if not stops_exposed(resource) or seen.stored is None:
        return ()
    return exposed(seen.stored.route, seen.observed.segments, seen.reading.snapshot.nodes, rules)


def guarded(ports: Ports, resource: Resource, seen: Seen, rules: Constraints) -> Seen:
    """Nothing is sent any more where a rule of privacy is broken, if the resource wants it so: at once, before a new plan is made.
    Pipelines that keep the rules go on, and the requests of the others move to them."""
    if not (why_stopped := exposed_route(resource, seen, rules)) or seen.stored is None:
        return seen
    stored = seen.stored
    left = unexposed(stored.route, seen.observed.segments, seen.reading.snapshot.nodes, rules)
    if left is None:
        log.warning("%s/%s: the route is withdrawn: %s", *seen.owner, "; ".join(why_stopped))
        ports.cluster.apply(ports.builder.route(resource, withdrawn()))
        return seen.without_route()
    log.warning("%s/%s: pipelines are taken out of the route: %s", *seen.owner, "; ".join(why_stopped))
    written = ports.builder.route(
        resource, cut_over(stored, left, stored.models, 0.0, seen.now, adapters=served(read_adapters(seen.status)))
    )
    ports.cluster.apply(written)
    before = OldRoute(revision=stored.route.revision, names=stored.route.names, in_flight=True, why="it was replaced in this pass")
    observed = seen.observed.model_copy(update={"serving": left, "old_routes": (*seen.observed.old_routes, before)})
    return replace(seen, stored=read_route(written), observed=observed)
