"""Rules of privacy against what serves: which segments of a route see layers on nodes that must not have them, and what is done then.

Placing segments is the planner's work. This is for the time between a node losing its label and the new route: with `onViolation: Stop`
nothing is sent along a route that breaks a rule, neither the one that serves nor, where no plan keeps the rules, the plan's own.
"""

from splitinference.controller.api.spec import OnViolation, Rejected, Resource
from splitinference.controller.plan_io.plan_status import Planned
from splitinference.controller.reconcile.gather import Seen
from splitinference.controller.reconcile.plan_pass import Words, exposed
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.core.values.problem import Constraints
from splitinference.core.values.profile import Profile


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
