"""The steps of a transition: make before break. Each step follows from the observed state alone; nothing is remembered between steps.

Tests assert these rules at every step of simulated transitions:
- Requests are cut over to a route only if all its segments are proven.
- A live segment of the serving route is not deleted, nor one of an older route with requests in flight. There are two exceptions, both only
  to make room for a missing segment: the strategy is BreakFirst, or the serving route has lost a segment that is not created again.
- Segments that are in both plans are not touched.
"""

from collections.abc import Sequence
from enum import StrEnum

from pydantic import Field

from splitinference.core.transition.state import NamedSegment, Names, Observed, Phase, Route, Shortage, ShortOf, Target
from splitinference.core.values.value import Value

LIVE = (Phase.STARTING, Phase.READY, Phase.PROVEN)
MIB = 1024 * 1024


class Strategy(StrEnum):
    """What to do if a node cannot hold the old and the new segment: wait for room (Surge), or delete the old one first (BreakFirst)."""

    SURGE = "Surge"
    BREAK_FIRST = "BreakFirst"


class CreateSegment(Value):
    """Create this segment."""

    segment: NamedSegment


class Cutover(Value):
    """Write this route. `whole`: it is the plan's own route, not an intermediate one: without a node to be freed or a lost segment, or with
    the pipelines that are ready."""

    route: Route
    whole: bool = True


class DeleteSegment(Value):
    """Delete this segment for the reason `why`."""

    name: str
    why: str


Action = CreateSegment | Cutover | DeleteSegment


class Steps(Value):
    """Independent actions to take now, and what the transition waits for, in words."""

    actions: tuple[Action, ...] = ()
    waiting: tuple[str, ...] = ()


class Done(Value):
    """The plan serves, and nothing is left to do."""


class Blocked(Value):
    """No action is possible, and nothing in progress will change that. The serving route stays. `short`: what is missing on which node."""

    why: str = Field(min_length=1)
    short: tuple[Shortage, ...] = ()


def next_steps(target: Target, observed: Observed, strategy: Strategy = Strategy.SURGE) -> Steps | Done | Blocked:
    """The next steps from `observed` towards `target`."""
    wanted = target.segments
    route = target.route
    if observed.serving != route and all(observed.is_in(name, Phase.PROVEN) for name in wanted):
        return Steps(actions=(Cutover(route=route),))
    if around := _route_without_lost_segments(target, observed):
        return Steps(actions=(Cutover(route=around, whole=False),))
    if wider := _route_with_new_pipelines(target, observed):
        return Steps(actions=(Cutover(route=wider, whole=False),))

    removals, draining = _obsolete(target, observed)
    failed = tuple(
        DeleteSegment(name=name, why=f"it failed: {observed.segments[name].why or 'no reason is known'}")
        for name in wanted
        if observed.is_in(name, Phase.FAILED)
    )
    creations, stuck = _creations(target, observed)
    waiting = tuple(
        _waiting_for(name, observed) for name in wanted if observed.is_in(name, Phase.STARTING, Phase.READY, Phase.LEAVING, Phase.FAILED)
    )
    actions: tuple[Action, ...] = (*failed, *removals, *creations)
    if actions:
        return Steps(actions=actions, waiting=(*waiting, *draining))
    if stuck:
        return _make_room(target, observed, stuck, strategy, (*waiting, *draining))
    if waiting or draining:
        return Steps(waiting=(*waiting, *draining))
    return Done()


def _waiting_for(name: str, observed: Observed) -> str:
    segment = observed.segments[name]
    doing = {
        Phase.STARTING: "is starting",
        Phase.READY: "is ready, and its probe is outstanding",
        Phase.LEAVING: "is being deleted and will be created again",
        Phase.FAILED: "failed",
    }[segment.phase]
    return f"{name} on {segment.node} {doing}" + (f": {segment.why}" if segment.why else "")


def _obsolete(target: Target, observed: Observed) -> tuple[tuple[DeleteSegment, ...], tuple[str, ...]]:
    """Segments that neither the plan nor a route in use needs; and, in words, those that stay for requests in flight."""
    serving = observed.serving.names if observed.serving else frozenset[str]()
    removals: list[DeleteSegment] = []
    draining: list[str] = []
    for name, segment in observed.segments.items():
        if name in target.segments or name in serving or segment.phase is Phase.LEAVING:
            continue
        users = [route for route in observed.old_routes if route.in_flight and name in route.names]
        if users and segment.phase is not Phase.FAILED:
            reasons = "; ".join(f"route {route.revision}" + (f" ({route.why})" if route.why else "") for route in users)
            draining.append(f"{name} on {segment.node} drains: {reasons}")
        else:
            removals.append(DeleteSegment(name=name, why="neither the plan nor a route in use needs it"))
    return tuple(removals), tuple(draining)


def _creations(target: Target, observed: Observed) -> tuple[tuple[CreateSegment, ...], tuple[NamedSegment, ...]]:
    """Missing segments that fit now, and those that do not. Nodes that hold segments to replace get one at a time."""
    wanted = target.segments
    creations: list[CreateSegment] = []
    stuck: list[NamedSegment] = []
    for name, segment in wanted.items():
        if name in observed.segments:
            continue
        node = segment.node
        others = [other for other in observed.segments.values() if other.node == node]
        shared = any(other.name not in wanted and other.phase in LIVE for other in others)
        before = [made.segment for made in creations if made.segment.node == node]
        starting = before or any(other.name in wanted and other.phase in (Phase.STARTING, Phase.READY) for other in others)
        if _shortages(segment, observed, before):
            stuck.append(segment)
        elif not (shared and starting):
            creations.append(CreateSegment(segment=segment))
    return tuple(creations), tuple(stuck)


def _shortages(segment: NamedSegment, observed: Observed, made: Sequence[NamedSegment] = ()) -> tuple[Shortage, ...]:
    """What the segment's node is short of, beside its present segments and those `made` in this step."""
    node = segment.node
    if node not in observed.room_bytes:
        return (Shortage(node=node, resource=ShortOf.NODE, needed=segment.memory_bytes),)
    free = observed.room_bytes[node] - observed.held_bytes(node) - sum(other.memory_bytes for other in made)
    found = [] if segment.memory_bytes <= free else [(ShortOf.MEMORY, segment.memory_bytes, free)]
    if node in observed.room_millicores:
        left = observed.room_millicores[node] - observed.held_millicores(node) - sum(other.millicores for other in made)
        found += [] if segment.millicores <= left else [(ShortOf.CPU, segment.millicores, left)]
    if segment.device:
        has = observed.room_devices.get(node, {}).get(segment.device, 0)
        left = has - observed.held_devices(node, segment.device) - sum(other.device == segment.device for other in made)
        found += [] if left >= 1 else [(ShortOf.DEVICE, 1, left)]
    return tuple(Shortage(node=node, resource=what, needed=needed, free=max(0, rest)) for what, needed, rest in found)


def _make_room(
    target: Target, observed: Observed, stuck: tuple[NamedSegment, ...], strategy: Strategy, waiting: tuple[str, ...]
) -> Steps | Blocked:
    """Missing segments do not fit, and no other step is left. First wait for what still starts, drains or leaves, as it may free memory."""
    leaving = tuple(f"{s.name} on {s.node} is being deleted" for s in observed.segments.values() if s.phase is Phase.LEAVING)
    lost = sorted(_lost(target, observed))
    if strategy is Strategy.BREAK_FIRST:
        # Requests that waited during the last deletion come first.
        moving_on = (f"{route.revision} ({route.why})" if route.why else route.revision for route in observed.old_routes if route.in_flight)
        waiting += tuple(f"requests are leaving route {route}" for route in moving_on)
    in_the_way = False
    for node in dict.fromkeys(segment.node for segment in stuck):
        blockers = _blockers(node, target, observed)
        if not blockers:
            continue
        in_the_way = True
        between = _route_without(blockers, target, observed)
        if between is not None:
            return Steps(actions=(Cutover(route=between, whole=False),), waiting=waiting)
        if waiting or leaving:
            continue
        if strategy is Strategy.BREAK_FIRST:
            why = f"{node} cannot hold it beside its successor, and the strategy is BreakFirst"
            return Steps(actions=tuple(DeleteSegment(name=name, why=why) for name in sorted(blockers)))
        if lost:
            why = f"the serving route has lost {lost[0]} and serves nothing; {node} needs the room for a new segment"
            return Steps(actions=tuple(DeleteSegment(name=name, why=why) for name in sorted(blockers)))
    if waiting or leaving:
        return Steps(waiting=(*waiting, *leaving))
    why = "; ".join(_no_room(segment, observed) for segment in stuck)
    why += "; the strategy BreakFirst would delete the old segments first, one node at a time" if in_the_way else ""
    return Blocked(why=why, short=tuple(shortage for segment in stuck for shortage in _shortages(segment, observed)))


def _blockers(node: str, target: Target, observed: Observed) -> frozenset[str]:
    """Live segments of the serving route on this node that the plan does not have."""
    serving = observed.serving.names if observed.serving else frozenset[str]()
    return frozenset(n for n in serving - target.segments.keys() if observed.is_in(n, *LIVE) and observed.segments[n].node == node)


def _lost(target: Target, observed: Observed) -> frozenset[str]:
    """Segments that the serving route has lost and that the plan does not create again. That route serves nothing."""
    serving = observed.serving.names if observed.serving else frozenset[str]()
    return frozenset(name for name in serving - target.segments.keys() if not observed.is_in(name, *LIVE))


def _route_without_lost_segments(target: Target, observed: Observed) -> Route | None:
    """An intermediate route if the serving one has lost a segment for good. None if it has not, or if there is no such route.

    So BreakFirst interrupts one node at a time: between two deletions old and new segments serve together.
    """
    lost = _lost(target, observed)
    return _route_without(lost, target, observed) if lost else None


def _route_with_new_pipelines(target: Target, observed: Observed) -> Route | None:
    """The serving pipelines and those of the plan that are proven and not in the route yet: no pipeline waits for another one to start.
    None if there is none to add."""
    serving = observed.serving.pipelines if observed.serving else ()
    new = [names for names in target.route.pipelines if names not in serving and all(observed.is_in(name, Phase.PROVEN) for name in names)]
    if not new:
        return None
    stay = [names for names in serving if all(observed.is_in(name, Phase.PROVEN) for name in names)]
    return Route(pipelines=(*stay, *new))


def _no_room(segment: NamedSegment, observed: Observed) -> str:
    node, words = segment.node, []
    where = f"segment [{segment.start}, {segment.end})"
    for short in _shortages(segment, observed):
        match short.resource:
            case ShortOf.NODE:
                return f"{where} needs {_mib(segment.memory_bytes, up=True)} MiB on {node}, but that node cannot be used now"
            case ShortOf.MEMORY:
                beside = f"{_mib(short.free, up=False)} MiB free beside {_mib(observed.held_bytes(node), up=True)} MiB"
                words.append(f"{where} needs {_mib(short.needed, up=True)} MiB, but {node} has {beside} of present segments")
            case ShortOf.CPU:
                beside = f"{short.free / 1000:g} free beside {observed.held_millicores(node) / 1000:g}"
                words.append(f"{where} requests {short.needed / 1000:g} cores, but {node} has {beside} of present segments")
            case ShortOf.DEVICE:
                beside = f"{short.free} free beside {observed.held_devices(node, segment.device)}"
                words.append(f"{where} requests a device of {segment.device}, but {node} has {beside} of present segments")
    return "; ".join(words)


def _mib(amount: int, *, up: bool) -> int:
    return -(-amount // MIB) if up else amount // MIB


def _route_without(blockers: frozenset[str], target: Target, observed: Observed) -> Route | None:
    """A route without `blockers`, made of proven segments of the plan and of the serving route. None if there is none.

    Each such route has fewer obsolete segments than the one before, so a transition makes finitely many of them.
    """
    assert observed.serving is not None  # noqa: S101 - blockers are segments of the serving route
    pipelines: list[Names] = []
    for pipeline in observed.serving.pipelines:
        if blockers.isdisjoint(pipeline):
            chosen: Names | None = pipeline if all(observed.is_in(name, Phase.PROVEN) for name in pipeline) else None
        else:
            usable = (set(pipeline) | target.segments.keys()) - blockers
            chosen = _path({name for name in usable if observed.is_in(name, Phase.PROVEN)}, target, observed)
        if chosen is not None and chosen not in pipelines:
            pipelines.append(chosen)
    for wanted in target.route.pipelines:
        if wanted not in pipelines and all(observed.is_in(name, Phase.PROVEN) for name in wanted):
            pipelines.append(wanted)
    return Route(pipelines=tuple(pipelines)) if pipelines else None


def _path(usable: set[str], target: Target, observed: Observed) -> Names | None:
    """The chain of usable segments that covers the model with most layers in the plan's own segments. None if no chain covers it."""
    layers = max(segment.end for segment in target.segments.values())
    family = next(iter(target.segments.values())).family
    best: dict[int, tuple[int, Names]] = {0: (0, ())}
    for segment in sorted((observed.segments[name] for name in usable), key=lambda s: (s.start, s.end, s.name)):
        if segment.start not in best or segment.family != family:
            continue
        gain, names = best[segment.start]
        gain += segment.end - segment.start if segment.name in target.segments else 0
        if segment.end not in best or gain > best[segment.end][0]:
            best[segment.end] = (gain, (*names, segment.name))
    return best[layers][1] if layers in best else None
