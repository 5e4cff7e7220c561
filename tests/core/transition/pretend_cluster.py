"""A pretend cluster for walks: targets written as text, segments that become ready when told, memory that is really taken."""

import re
from dataclasses import dataclass, field

from splitinference.core.transition.state import NamedSegment, Observed, ObservedSegment, OldRoute, Phase, Route, Target
from splitinference.core.transition.steps import Action, CreateSegment, Cutover, DeleteSegment

MIB_PER_LAYER = 10
MILLICORES = 100
MIB = 1024 * 1024


def a_segment(text: str, family: str = "m") -> NamedSegment:
    """`b[4:8]`: layers 4 to 8 on node b, 10 MiB for each layer."""
    found = re.fullmatch(r"([a-z]+)\[(\d+):(\d+)\]", text)
    assert found, text
    node, start, end = found[1], int(found[2]), int(found[3])
    return NamedSegment(
        name=f"{family}-{start}-{end}-{node}",
        start=start,
        end=end,
        node=node,
        memory_bytes=(end - start) * MIB_PER_LAYER * MIB,
        millicores=MILLICORES,
        family=family,
    )


def a_target(text: str, family: str = "m") -> Target:
    """`a[0:4] b[4:8] | c[0:8]`: two pipelines."""
    return Target(pipelines=tuple(tuple(a_segment(part, family) for part in pipeline.split()) for pipeline in text.split("|")))


@dataclass
class Cluster:
    """Segments, the route and what is in flight on older ones. `room_mib` is per node; `room_segments` how many its CPU admits."""

    room_mib: dict[str, int]
    room_segments: dict[str, int] = field(default_factory=dict)
    segments: dict[str, ObservedSegment] = field(default_factory=dict)
    serving: Route | None = None
    old: dict[str, tuple[Route, bool]] = field(default_factory=dict)

    def observed(self) -> Observed:
        """What the walk sees."""
        return Observed(
            segments=dict(self.segments),
            serving=self.serving,
            old_routes=tuple(OldRoute(revision=r, names=route.names, in_flight=busy) for r, (route, busy) in self.old.items()),
            room_bytes={node: mib * MIB for node, mib in self.room_mib.items()},
            room_millicores={node: count * MILLICORES + 50 for node, count in self.room_segments.items()},
        )

    def apply(self, action: Action) -> None:
        """Do it, as a cluster would: creating twice and deleting twice are harmless; memory cannot be taken twice."""
        match action:
            case CreateSegment(segment=segment):
                if segment.name not in self.segments:
                    held = self.observed().held_bytes(segment.node)
                    assert held + segment.memory_bytes <= self.room_mib[segment.node] * MIB, (
                        f"{segment.node} has no room for {segment.name}"
                    )
                    beside = sum(1 for other in self.segments.values() if other.node == segment.node)
                    assert beside < self.room_segments.get(segment.node, 99), f"{segment.node} has no cores for {segment.name}"
                    self.segments[segment.name] = ObservedSegment(**segment.model_dump(), phase=Phase.STARTING)
            case Cutover(route=route):
                assert all(self.segments[name].phase is Phase.PROVEN for name in route.names), "cut over to a route that is not ready"
                if self.serving is not None and self.serving != route:
                    self.old[self.serving.revision] = (self.serving, True)
                self.old.pop(route.revision, None)
                self.serving = route
            case DeleteSegment(name=name):
                self.set(name, Phase.LEAVING)

    def set(self, name: str, phase: Phase | None) -> None:
        """The segment gets into this phase; None: it is gone."""
        if name not in self.segments:
            return
        if phase is None:
            del self.segments[name]
        else:
            self.segments[name] = self.segments[name].model_copy(update={"phase": phase})

    def progress(self) -> None:
        """Everything that is under way gets one phase further; what drains has drained."""
        after = {Phase.STARTING: Phase.READY, Phase.READY: Phase.PROVEN, Phase.LEAVING: None}
        for name, segment in list(self.segments.items()):
            if segment.phase in after:
                self.set(name, after[segment.phase])
        self.old = {revision: (route, False) for revision, (route, _) in self.old.items()}


def serving(text: str, room_mib: dict[str, int], family: str = "m") -> Cluster:
    """A cluster where this plan serves, wholly proven."""
    target = a_target(text, family)
    segments = {name: ObservedSegment(**s.model_dump(), phase=Phase.PROVEN) for name, s in target.segments.items()}
    return Cluster(room_mib=dict(room_mib), segments=segments, serving=target.route)
