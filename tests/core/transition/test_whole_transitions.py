"""Whole walks from arbitrary situations, with the operator killed between any two writes, segments failing and targets changing midway."""

from dataclasses import dataclass, field

from hypothesis import event, given
from hypothesis import strategies as st

from splitinference.core.transition.state import Phase, Target
from splitinference.core.transition.steps import Action, Blocked, Cutover, DeleteSegment, Done, Steps, Strategy, next_steps
from tests.core.transition.pretend_cluster import Cluster, a_target, serving
from tests.examples import examples

NODES = ("a", "b", "c", "d")
LAYERS = 8


@st.composite
def plans(draw: st.DrawFn) -> str:
    """A plan of 8 layers over up to four nodes, each once."""
    cuts = sorted(draw(st.sets(st.integers(1, LAYERS - 1), max_size=3)))
    edges = [0, *cuts, LAYERS]
    nodes = draw(st.permutations(NODES))
    return " ".join(f"{node}[{start}:{end}]" for node, start, end in zip(nodes, edges[:-1], edges[1:], strict=False))


@dataclass
class Watcher:
    """Applies actions as the API server would, and asserts what must hold at each of them."""

    cluster: Cluster
    strategy: Strategy
    disturbed: bool = False
    cutovers: int = 0
    seen: set[str] = field(default_factory=set)

    def apply(self, action: Action, target: Target) -> None:
        """Check, then do."""
        cluster = self.cluster
        if isinstance(action, DeleteSegment):
            phase = cluster.segments[action.name].phase
            live = phase in (Phase.STARTING, Phase.READY, Phase.PROVEN)
            serves = cluster.serving is not None and action.name in cluster.serving.names
            in_flight = any(busy and action.name in route.names for route, busy in cluster.old.values())
            if live and serves:
                lost = [n for n in cluster.serving.names - target.segments.keys() if n not in cluster.segments or not self._live(n)]
                assert action.name not in target.segments
                assert self.strategy is Strategy.BREAK_FIRST or lost, f"{action.name} serves"
            assert not (live and in_flight), f"something is in flight on {action.name}"
        if isinstance(action, Cutover):
            self.cutovers += 1
        had_route = cluster.serving is not None
        cluster.apply(action)
        assert not had_route or cluster.serving is not None
        if self.strategy is Strategy.SURGE and not self.disturbed and cluster.serving is not None:
            assert all(cluster.segments[n].phase is Phase.PROVEN for n in cluster.serving.names), "the serving route is not wholly ready"

    def _live(self, name: str) -> bool:
        return self.cluster.segments[name].phase in (Phase.STARTING, Phase.READY, Phase.PROVEN)


def finish(watcher: Watcher, target: Target) -> Done | Blocked:
    """Undisturbed from here; returns how it ends. An end must come."""
    for _ in range(200):
        result = next_steps(target, watcher.cluster.observed(), watcher.strategy)
        if isinstance(result, Done | Blocked):
            return result
        assert result.actions or result.waiting
        for action in result.actions:
            watcher.apply(action, target)
        watcher.cluster.progress()
    raise AssertionError(f"no end: {watcher.cluster}")


def start(data: st.DataObject, roomy: bool) -> tuple[Cluster, str]:
    first = data.draw(plans(), label="first")
    room = {node: data.draw(st.integers(80, 200) if roomy else st.integers(0, 100), label=f"room {node}") for node in NODES}
    cluster = serving(first, room)
    for segment in cluster.segments.values():
        need = segment.memory_bytes // (1024 * 1024)
        cluster.room_mib[segment.node] = max(cluster.room_mib[segment.node], need)
    cluster.room_segments = {node: data.draw(st.integers(1, 3), label=f"cores {node}") for node in NODES if not roomy}
    return cluster, first


@examples(300)
@given(st.data())
def test_with_room_for_a_second_segment_every_walk_ends_done_and_serves_throughout(data):
    cluster, _ = start(data, roomy=True)
    for node in NODES:
        cluster.room_mib[node] = 2 * LAYERS * 10
    watcher = Watcher(cluster, Strategy.SURGE)
    target = a_target(data.draw(plans(), label="second"))
    assert finish(watcher, target) == Done()
    assert cluster.serving == target.route
    assert {name for name, s in cluster.segments.items() if s.phase is not Phase.LEAVING} == set(target.segments)
    assert watcher.cutovers <= 1


@examples(400)
@given(st.data(), st.sampled_from(Strategy))
def test_walks_with_little_room_end_and_never_break_what_serves(data, strategy):
    cluster, _ = start(data, roomy=False)
    watcher = Watcher(cluster, strategy)
    target = a_target(data.draw(plans(), label="second"))
    result = finish(watcher, target)
    event(f"{strategy}: {type(result).__name__}, {watcher.cutovers} cutovers")
    fits = all(segment.memory_bytes <= cluster.room_mib[segment.node] * 1024 * 1024 for segment in target.segments.values())
    if strategy is Strategy.BREAK_FIRST and fits:
        assert result == Done()
    if result == Done():
        assert cluster.serving == target.route
        assert {name for name, s in cluster.segments.items() if s.phase is not Phase.LEAVING} == set(target.segments)
    else:
        assert cluster.serving is not None


@examples(500)
@given(st.data(), st.sampled_from(Strategy))
def test_killed_failing_and_superseded_at_any_step_a_walk_still_ends(data, strategy):
    cluster, first = start(data, roomy=data.draw(st.booleans(), label="roomy"))
    watcher = Watcher(cluster, strategy)
    target = a_target(data.draw(plans(), label="second"))
    for _ in range(data.draw(st.integers(1, 25), label="disturbed steps")):
        result = next_steps(target, cluster.observed(), strategy)
        if isinstance(result, Steps):
            survived = data.draw(st.integers(0, len(result.actions)), label="writes before the operator is killed")
            for action in result.actions[:survived]:
                watcher.apply(action, target)
        match data.draw(st.sampled_from(["progress", "one", "fail", "vanish", "supersede", "drain", "nothing"]), label="event"):
            case "progress":
                cluster.progress()
            case "one" if cluster.segments:
                name = data.draw(st.sampled_from(sorted(cluster.segments)))
                after = {Phase.STARTING: Phase.READY, Phase.READY: Phase.PROVEN, Phase.LEAVING: None}
                phase = cluster.segments[name].phase
                cluster.set(name, after.get(phase, phase))
            case "fail" if cluster.segments:
                watcher.disturbed = True
                cluster.set(data.draw(st.sampled_from(sorted(cluster.segments))), Phase.FAILED)
            case "vanish" if cluster.segments:
                watcher.disturbed = True
                cluster.set(data.draw(st.sampled_from(sorted(cluster.segments))), None)
            case "supersede":
                target = a_target(data.draw(plans() | st.just(first), label="instead"))
            case "drain":
                cluster.old = {revision: (route, False) for revision, (route, _) in cluster.old.items()}
    result = finish(watcher, target)
    if result == Done():
        assert cluster.serving == target.route
        assert {name for name, s in cluster.segments.items() if s.phase is not Phase.LEAVING} == set(target.segments)
