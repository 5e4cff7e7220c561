"""What passes share: metrics of a moment ago between resources, never twice for one, and a picture that is drawn when something changed."""

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from splitinference.controller.cluster_state.shared_snapshot import Sight
from splitinference.controller.cluster_state.snapshot import Sources, picture_of, read_snapshot
from splitinference.controller.ports import Listing, Sample, Samples
from splitinference.controller.runtime.solve_throttle import Reviews
from splitinference.settings import Settings
from tests.controller.cluster_state.read import a_pod
from tests.controller.objects import listed
from tests.controller.world import MIB, a_node

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings()
CHAT, CODE = ("team", "chat"), ("team", "code")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@dataclass(frozen=True)
class At:
    """A clock that stands still."""

    seconds: float = 0.0

    def now(self) -> datetime:
        return after(self.seconds)


@dataclass
class Counted:
    """Metrics that count how often they are asked."""

    asked: list[str] = field(default_factory=list)

    def __getattr__(self, name: str):
        def answer() -> Samples:
            self.asked.append(name)
            known = {"a": Sample(value=float(len(self.asked)), age_seconds=1)} if name == "node_cpu_cores" else {}
            return Samples(by_name=known)

        return answer

    @property
    def rounds(self) -> int:
        return self.asked.count("node_cpu_cores")


def test_one_reading_does_for_all_resources_of_the_moment():
    sight, metrics = Sight(SETTINGS), Counted()
    first = sight.measured(CHAT, (listed(), listed()), metrics, At())
    assert sight.measured(CODE, (listed(), listed()), metrics, At(1)) is first
    assert metrics.rounds == 1
    assert sight.measured(("team", "third"), (listed(), listed()), metrics, At(5)) is not first
    assert metrics.rounds == 2


def test_no_resource_sees_a_reading_twice():
    sight, metrics = Sight(SETTINGS), Counted()
    first = sight.measured(CHAT, (listed(), listed()), metrics, At())
    second = sight.measured(CHAT, (listed(), listed()), metrics, At())
    assert second is not first
    assert sight.measured(CODE, (listed(), listed()), metrics, At()) is second


@dataclass
class Slow(Counted):
    """Metrics that answer when they may."""

    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def __getattr__(self, name: str):
        if name == "node_cpu_cores":
            self.begun.set()
            assert self.go_on.wait(10)
        return super().__getattr__(name)


def test_while_the_next_is_read_the_reading_before_will_do_for_whom_it_is_new():
    """The pass that finds it no longer fresh does not wait either."""
    sight, slow = Sight(SETTINGS), Slow()
    first = sight.measured(CHAT, (listed(), listed()), Counted(), At())
    assert sight.measured(CODE, (listed(), listed()), slow, At(3)) is first
    assert slow.begun.wait(10), "the next is read beside the pass"
    assert sight.measured(("team", "third"), (listed(), listed()), slow, At(3)) is first
    slow.go_on.set()
    second = sight.measured(CHAT, (listed(), listed()), slow, At(3))
    assert second is not first, "who has seen it waits for the next"
    assert sight.measured(CODE, (listed(), listed()), slow, At(4)) is second
    assert slow.rounds == 1


def test_while_the_next_picture_is_drawn_passes_go_on_with_the_one_before(monkeypatch: pytest.MonkeyPatch):
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*given):
        begun.set()
        assert go_on.wait(10)
        return picture_of(*given)

    sight, there = Sight(SETTINGS), (listed(a_node("a")), listed())
    first = sight.measured(CHAT, there, Counted(), At())
    picture = sight.picture(*there, first)
    monkeypatch.setattr("splitinference.controller.cluster_state.shared_snapshot.picture_of", slowly)
    assert sight.measured(CODE, there, Counted(), At(3)) is first
    assert begun.wait(10)
    assert sight.measured(("team", "third"), there, Counted(), At(3)) is first, "what has no picture yet is not shown"
    assert sight.picture(*there, first) is picture
    go_on.set()
    second = sight.measured(CHAT, there, Counted(), At(3))
    assert second is not first
    monkeypatch.setattr(
        "splitinference.controller.cluster_state.shared_snapshot.picture_of", lambda *given: pytest.fail("it was drawn already")
    )
    assert sight.picture(*there, second).measured is second


def test_a_reading_that_breaks_is_followed_by_another():
    class Broken(Counted):
        def __getattr__(self, name: str):
            raise RuntimeError(name)

    sight = Sight(SETTINGS)
    with pytest.raises(RuntimeError):
        sight.measured(CHAT, (listed(), listed()), Broken(), At())
    assert sight.measured(CHAT, (listed(a_node("a")), listed()), Counted(), At()).node_cpu_cores.by_name["a"].value == 1


def test_the_picture_is_drawn_anew_when_nodes_pods_or_metrics_are_others():
    sight, metrics = Sight(SETTINGS), Counted()
    nodes, pods, measured = (
        listed(a_node("a")),
        listed(a_pod("s", "a", instance="chat")),
        sight.measured(CHAT, (listed(), listed()), metrics, At()),
    )
    first = sight.picture(nodes, pods, measured)
    assert sight.picture(nodes, pods, measured) is first
    later = sight.measured(CHAT, (nodes, pods), metrics, At(3))
    second = sight.picture(nodes, pods, later)
    assert second is not first
    assert sight.picture(nodes, pods, measured) is first, "for a pass that still has the metrics of before"
    assert sight.picture(nodes, pods, later) is second
    assert sight.picture(nodes, listed(), measured) is not first
    assert sight.picture(listed(a_node("a"), a_node("b")), listed(), measured).standing.usable == {"a", "b"}


def test_a_shared_picture_gives_each_resource_its_own_snapshot():
    sight, metrics = Sight(SETTINGS), Counted()
    nodes = listed(a_node("a", mib=1000), a_node("b", mib=1000))
    pods = listed(a_pod("s1", "a", "200Mi", "chat"), a_pod("s2", "b", "300Mi", "code"))
    measured = sight.measured(CHAT, (listed(), listed()), metrics, At())
    picture = sight.picture(nodes, pods, measured)
    for owner in (CHAT, CODE):
        for held in ({}, {"b": 50 * MIB}, {"gone": 1}):
            sources = {"now": NOW, "nodes": nodes, "pods": pods, "measured": measured, "held": held, "owner": owner}
            assert read_snapshot(Sources(**sources, picture=picture), SETTINGS) == read_snapshot(Sources(**sources), SETTINGS)
    free = {
        owner: [
            node.memory_free_bytes // MIB
            for node in read_snapshot(Sources(NOW, nodes, pods, measured, {}, owner, picture), SETTINGS).snapshot.nodes
        ]
        for owner in (CHAT, CODE)
    }
    assert free == {CHAT: [1000, 700], CODE: [800, 1000]}


def test_one_resource_reviews_at_a_time_and_after_it_there_is_a_pause():
    reviews = Reviews()
    assert reviews.begin(NOW, confirming=False)
    assert not reviews.begin(NOW, confirming=False)
    assert not reviews.begin(NOW, confirming=True), "not even to confirm"
    reviews.end(NOW, after(2), solved=True)
    assert not reviews.begin(after(7), confirming=False)
    assert reviews.begin(after(7), confirming=True), "what has to be confirmed in time waits for no pause"
    reviews.end(after(7), after(7), solved=True)
    assert reviews.begin(after(7), confirming=False), "what took no time asks for no pause"


def test_a_look_without_a_solve_asks_for_no_pause():
    reviews = Reviews()
    assert reviews.begin(NOW, confirming=False)
    reviews.end(NOW, after(5), solved=False)
    assert reviews.begin(after(5), confirming=False)


def test_what_plans_hold_is_added_up_once_and_each_resource_sees_what_others_hold():
    sight, metrics = Sight(SETTINGS), Counted()
    nodes, pods = listed(a_node("a"), a_node("b")), listed(a_pod("s1", "a", instance="code"))
    standing = sight.picture(nodes, pods, sight.measured(CHAT, (listed(), listed()), metrics, At())).standing
    segments = [{"name": "s1", "node": "a", "memoryBytes": 5}, {"name": "s2", "node": "b", "memoryBytes": 7}]
    code = {"metadata": {"namespace": "team", "name": "code"}, "status": {"plan": {"segments": segments}}}
    resources = listed({"metadata": {"namespace": "team", "name": "chat"}}, code)
    held = sight.held(resources, standing)
    assert sight.held(resources, standing) is held
    assert held.by_others_than(CHAT) == {"b": 7}, "the pod of s1 is there"
    assert held.by_others_than(CODE) == {}
    assert sight.held(listed(resources[0]), standing).by_others_than(CHAT) == {}
    gone = sight.picture(nodes, listed(), sight.measured(CODE, (listed(), listed()), metrics, At())).standing
    assert sight.held(resources, gone).by_others_than(CHAT) == {"a": 5, "b": 7}


def test_a_resources_own_view_of_a_node_is_kept_while_node_and_pods_are_the_same():
    sight, metrics = Sight(SETTINGS), Counted()
    nodes, pods = listed(a_node("a", mib=1000), a_node("b", mib=1000)), listed(a_pod("s1", "a", "200Mi", "chat"))
    measured = sight.measured(CHAT, (listed(), listed()), metrics, At())
    standing = sight.picture(nodes, pods, measured).standing
    own = standing.ground_for(CHAT, "a")
    assert own is not None
    assert (own.own_bytes, own.free_bytes) == (200 * MIB, 1000 * MIB)
    assert standing.ground_for(CHAT, "a") is own
    assert standing.ground_for(CHAT, "gone") is None
    elsewhere = sight.picture(nodes, listed(*pods, a_pod("s2", "b", "300Mi", "code")), measured).standing
    assert elsewhere.ground_for(CHAT, "a") is own, "what is new is on another node"
    here = sight.picture(nodes, listed(*pods, a_pod("s2", "a", "300Mi", "code")), measured).standing
    now = here.ground_for(CHAT, "a")
    assert now is not None
    assert now.free_bytes == 700 * MIB


def test_what_is_kept_goes_by_generations_and_not_by_which_object_it_is():
    """A store that makes its lists anew at each call, as it must for several namespaces, gives no reason to draw anew."""
    sight = Sight(SETTINGS)
    nodes, pods = listed(a_node("a")), listed(a_pod("s1", "a", instance="chat"))
    measured = sight.measured(CHAT, (nodes, pods), Counted(), At())
    picture = sight.picture(nodes, pods, measured)
    again = Listing([a_node("a")], nodes.generation), Listing([a_pod("s1", "a", instance="chat")], pods.generation)
    assert sight.picture(*again, measured.model_copy()) is picture
    resources = listed({"metadata": {"namespace": "team", "name": "chat"}})
    held = sight.held(resources, picture.standing)
    assert sight.held(Listing(list(resources), resources.generation), picture.standing) is held


def test_a_view_is_kept_by_content_when_all_objects_are_listed_anew():
    sight = Sight(SETTINGS)
    measured = sight.measured(CHAT, (listed(), listed()), Counted(), At())
    first = sight.picture(listed(a_node("a"), a_node("b")), listed(a_pod("s1", "a", instance="chat")), measured).standing
    own = first.ground_for(CHAT, "a")
    second = sight.picture(listed(a_node("a"), a_node("b", mib=5)), listed(a_pod("s1", "a", instance="chat")), measured).standing
    assert second.ground_for(CHAT, "a") is own
    assert second.grounds[0] is first.grounds[0]
    assert second.grounds[1] is not first.grounds[1]


def test_many_threads_may_ask_for_their_own_views_at_once():
    sight = Sight(SETTINGS)
    nodes = [a_node(f"n{number}") for number in range(40)]
    pods = [a_pod(f"s{number}", f"n{number}", "100Mi", f"r{number % 5}") for number in range(40)]
    measured = sight.measured(CHAT, (listed(), listed()), Counted(), At())
    wrong: list[object] = []

    def ask(owner: int) -> None:
        for turn in range(10):
            more = [a_pod(f"t{turn}", "n0", "1Mi", "others")]
            standing = sight.picture(listed(*nodes), listed(*pods, *more), measured).standing
            for number in range(40):
                ground = standing.ground_for(("team", f"r{owner}"), f"n{number}")
                if ground is None or ground.own_bytes != (100 * MIB if number % 5 == owner else 0):
                    wrong.append((owner, number, ground))

    threads = [threading.Thread(target=ask, args=(owner,)) for owner in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
