"""Rules of privacy against what serves: which segments of a route see layers on nodes that must not have them, and what is done then.

Placing segments is the planner's work. This is for the time between a node losing its label and the new route: with `onViolation: Stop`
nothing is sent along a route that breaks a rule, neither the one that serves nor, where no plan keeps the rules, the plan's own.
"""

from collections.abc import Iterable, Mapping

from splitinference.controller.api.spec import OnViolation, Rejected, Resource, read_resource
from splitinference.controller.plan_io.plan_status import Built, Planned
from splitinference.controller.ports import Manifest
from splitinference.controller.reconcile.gather import Seen
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.core.cost.eligible import forbidden
from splitinference.core.transition.state import NamedSegment, Route
from splitinference.core.transition.steps import Action, Blocked, Cutover, Done, Steps
from splitinference.core.values.cluster import Node
from splitinference.core.values.problem import Constraints
from splitinference.core.values.profile import Profile

Words = tuple[str, ...]


def exposed(route: Route, segments: Mapping[str, NamedSegment], nodes: Iterable[Node], constraints: Constraints) -> Words:
    """Each segment of the route on a node that must not have one of its layers, in words; a node that is gone sees nothing."""
    trust = Constraints(trust=constraints.trust)
    if not trust.trust:
        return ()
    by_name = {node.name: node for node in nodes}
    found: list[str] = []
    for name in sorted(route.names & segments.keys()):
        segment = segments[name]
        if (node := by_name.get(segment.node)) is not None:
            reasons = {forbidden(node, layer, trust) for layer in range(segment.start, segment.end)}
            found += [f"{name} on {node.name}: {reason}" for reason in sorted(filter(None, reasons))]
    return tuple(found)


def promised_rules(planned: Planned, body: Manifest, profile: Profile) -> Constraints:
    """The rules that the plan was made for. One that came later is a wish for the next plan: while there is none, what serves goes on."""
    made_for = read_resource(planned.of(body))
    bounds = made_for if isinstance(made_for, Rejected) else plan_constraints.constraints(made_for.spec, len(profile.layers))
    return Constraints() if isinstance(bounds, Rejected) else bounds


def exposed_route(resource: Resource, seen: Seen, rules: Constraints) -> Words:
    """What is wrong with the serving route, where the resource wants it stopped then."""
    if resource.spec.privacy.on_violation is not OnViolation.STOP or seen.stored is None:
        return ()
    return exposed(seen.stored.route, seen.observed.segments, seen.reading.snapshot.nodes, rules)


def allowed(
    steps: Steps | Done | Blocked, seen: Seen, built: Built, resource: Resource, rules: Constraints
) -> tuple[Steps | Done | Blocked, Words]:
    """The steps without a cutover to a route that breaks a rule, where the resource wants none; and what kept them from it."""
    if resource.spec.privacy.on_violation is not OnViolation.STOP or not isinstance(steps, Steps):
        return steps, ()
    segments = {**seen.observed.segments, **built.target.segments}
    actions: list[Action] = []
    why: list[str] = []
    for action in steps.actions:
        broken = exposed(action.route, segments, seen.reading.snapshot.nodes, rules) if isinstance(action, Cutover) else ()
        why += broken
        actions += [] if broken else [action]
    return Steps(actions=tuple(actions), waiting=(*steps.waiting, *why)), tuple(why)
