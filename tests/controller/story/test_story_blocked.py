"""Stories of walks without a way: what stands in the way is said, a plan that can be reached is taken, and what serves serves on."""

import pytest

from splitinference.core.planner import solve
from tests.controller.stories import busy_node, images, reasons, serving, small, upgraded
from tests.controller.world import Operator, World, a_body, a_node
from tests.core.planning import a_profile

BREAK_FIRST = {"window": "20s", "cooldown": "60s", "drain": "1s", "strategy": "BreakFirst"}


def full(*others: str) -> tuple[World, Operator]:
    """Two nodes with a segment each and no room for another beside it, and other nodes as they are."""
    return serving(small("a", "b", *others))


def test_an_upgrade_of_full_nodes_serves_on_says_the_numbers_and_what_would_help():
    world, _ = full()
    before, route = world.placement(), list(world.routes_seen)
    operator = upgraded(world)
    operator.run(60)
    assert (world.placement(), world.routes_seen) == (before, route)
    assert images(world) == ["splitinference/segment:0.1.0"] * 2
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Planned")["status"] == "True", "the plan is right, only its way is barred"
    progressing = world.condition("Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "Blocked")
    assert "needs 221 MiB, but a has 25 MiB free beside 221 MiB of present segments" in progressing["message"]
    assert progressing["message"].endswith("the strategy BreakFirst would delete the old segments first, one node at a time")
    assert world.condition("Stalled")["reason"] == "Blocked"
    assert reasons(world)[0] == "Blocked"
    assert "no plan can be reached from the serving segments" in world.status()["decisions"][0]["message"]
    assert reasons(world).count("Blocked") == 1
    assert len([e for e in world.events if e[1] == "Blocked"]) == 2, "the condition once, the decision once"


def test_a_walk_without_a_way_is_thought_about_less_and_less_often():
    world, _ = full()
    operator = upgraded(world)
    operator.run(24)
    early = len(operator.solver.asked)
    operator.run(120)
    assert early > 0
    assert len(operator.solver.asked) - early <= early, "ten minutes cost more than the first two"


def test_break_first_upgrades_full_nodes_one_at_a_time_and_serves_between():
    world, _ = full()
    operator = upgraded(world)
    operator.run(12)
    world.break_first = True
    world.change(adaptation=BREAK_FIRST)
    before = len(world.routes_seen)
    served = []
    for _ in range(20):
        operator.run(1)
        served.append(len([name for name in world.serving() if name in world.segments()]))
    assert images(world) == ["segment:next"] * 2
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Progressing")["reason"] == "Settled"
    assert len(world.routes_seen) == before + 2, "a route of one old and one new segment, and the plan's own"
    assert min(served) == 1, "both nodes were empty at the same time"
    assert 2 in served[served.index(1) : -5]


def test_an_upgrade_goes_over_a_spare_node_where_there_is_one():
    world, _ = full("c")
    operator = upgraded(world)
    operator.run(30)
    assert images(world) == ["segment:next"] * 2
    assert world.condition("Progressing")["reason"] == "Settled"
    assert reasons(world)[0] == "TransitionBlocked"
    message = world.status()["decisions"][0]["message"]
    assert message.startswith("the transition has been blocked for 15 s: segment [")
    assert "one node at a time; this is the best reachable plan; the best of all cannot be reached; predicted" in message


@pytest.mark.parametrize("count", [3, 4, 5])
def test_many_full_nodes_shift_by_one_towards_the_spare(count: int):
    world = World(small(*"abcdef"[: count + 1], mib=200))
    world.add(a_body(), a_profile(layers=count))
    operator = Operator(world, solve)
    operator.run(6)
    assert len(world.status()["plan"]["segments"]) == count
    world.settings = world.settings.model_copy(update={"segment_image": "segment:next"})
    operator = Operator(world, solve)
    for _ in range(40):
        operator.run(1)
        assert world.condition("Ready")["status"] == "True"
    assert images(world) == ["segment:next"] * count
    assert world.condition("Progressing")["reason"] == "Settled"


def roomy_but_slow() -> tuple[World, Operator]:
    """Two full nodes, and a slow one that could hold all."""
    nodes = {**small("a", "b"), "c": a_node("c", mib=900)}
    nodes["c"]["metadata"]["annotations"] = {"splitinference.dev/compute-gflops": "20"}
    world, operator = serving(nodes)
    assert "c[" not in world.placement()
    return world, operator


def test_a_lesser_plan_is_walked_to_where_the_best_for_a_changed_spec_has_no_room():
    world, operator = roomy_but_slow()
    world.change(segments={"memoryMarginPercent": 12})
    operator.run(8)
    assert world.placement().endswith(" c[2:4]")
    newest = world.status()["decisions"][0]
    assert newest["reason"] == "SpecChanged"
    assert "the best of all cannot be reached: segment [0, 2) needs 225 MiB, but a" in newest["message"]
    assert world.condition("Progressing")["reason"] == "Settled"
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Planned")["status"] == "True"


def test_memory_that_others_take_is_left_by_a_plan_that_fits_beside_what_serves():
    """The best without the pressed node would be the faster one of the others with more layers, which has no room for the surge."""
    nodes = {"a": a_node("a", mib=460), "b": a_node("b", mib=310), "c": a_node("c", mib=420)}
    nodes["c"]["metadata"]["annotations"] = {"splitinference.dev/compute-gflops": "30"}
    world, operator = serving(nodes, partition={"minSegments": 2})
    pressed = next(s["node"] for s in world.status()["plan"]["segments"] if s["node"] != "a")
    world.nodes[pressed]["status"]["conditions"][1]["status"] = "True"
    operator.run(12)
    assert f"{pressed}[" not in world.placement()
    assert reasons(world)[0] == "MemoryPressure"
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Progressing")["reason"] == "Settled"


def swapping() -> tuple[World, Operator]:
    """A move is under way whose pods are refused for now: the node with three layers is busy, and the two are to change places."""
    nodes = {"a": a_node("a", mib=700), "b": a_node("b", mib=700)}
    world, operator = serving(nodes, partition={"minSegments": 2})
    node = busy_node(world)
    world.refuse.add("Pod")
    world.busy[node] = 0.95
    operator.run(8)
    assert world.condition("Progressing")["reason"] == "Refused"
    return world, operator


def occupy(world: World) -> None:
    """Others take what a second segment would need, and leave what one needs."""
    for node in ("a", "b"):
        world.tenant(node, mib=290)


def leave(world: World) -> None:
    for node in ("a", "b"):
        world.tenant_gone(node)


def test_room_that_goes_while_a_move_is_under_way_ends_it_and_what_serves_is_the_plan_again():
    world, operator = swapping()
    moving_to, served = world.placement(), world.serving()
    occupy(world)
    world.refuse.clear()
    operator.run(2)
    assert world.condition("Progressing")["reason"] == "Blocked"
    assert "MiB, but b has" in world.condition("Progressing")["message"]
    assert reasons(world)[0] != "TransitionBlocked", "it is waited for a moment"
    operator.run(6)
    assert reasons(world)[0] == "TransitionBlocked"
    assert world.placement() != moving_to
    assert world.serving() == served
    assert world.condition("Progressing")["reason"] == "Settled"
    assert world.condition("Ready")["status"] == "True"


def test_room_that_comes_and_goes_does_not_make_the_plan_wander():
    world, operator = swapping()
    world.refuse.clear()
    occupy(world)
    operator.run(8)
    before, went = len(world.routes_seen), set()
    for _ in range(5):
        leave(world)
        operator.run(10)
        occupy(world)
        operator.run(10)
        went |= {s["end"] - s["start"] for s in world.status()["plan"]["segments"] if s["node"] == "a"}
    assert 3 not in went, "what stood in the way is a fact for ten minutes"
    assert len(world.routes_seen) <= before + 1
    assert reasons(world).count("TransitionBlocked") == 1
    leave(world)
    operator.run(40)
    assert [s["node"] for s in world.status()["plan"]["segments"] if s["end"] - s["start"] == 3] == ["a"], "and then no fact any more"


@pytest.mark.parametrize("cores", ["1800m", "1900m"])
def test_a_surge_asks_for_cores_as_the_scheduler_does(cores: str):
    """Memory for a second segment is there on both nodes, cores are not."""
    world, _ = serving({"a": a_node("a", mib=700), "b": a_node("b", mib=700)}, partition={"minSegments": 2})
    for node in ("a", "b"):
        world.tenant(node, cores=cores)
    operator = upgraded(world)
    before = world.segments()
    operator.run(20)
    fits = cores == "1800m"
    if not fits:
        assert world.segments() == before, "a pod was made that no scheduler takes"
        assert "requests 0.1 cores, but a has" in world.condition("Progressing")["message"]
    else:
        assert "segment:next" in images(world)
    assert world.condition("Ready")["status"] == "True"
    assert reasons(world).count("SegmentFailed") == 0


@pytest.mark.parametrize("spare", [True, False])
def test_a_pod_that_no_scheduler_takes_for_reasons_unknown_to_the_planner(spare: bool):
    """An upgrade finds a node closed to new pods, though the planner sees room for one. What serves there serves on meanwhile."""
    world, _ = serving({name: a_node(name, mib=700) for name in ("abc" if spare else "ab")}, partition={"minSegments": 2})
    closed = busy_node(world)
    world.closed.add(closed)
    operator = upgraded(world)
    served = world.serving()
    for _ in range(16):
        operator.run(1)
        assert world.condition("Ready")["status"] == "True"
    assert "SegmentFailed" in reasons(world) or "Infeasible" in reasons(world)
    said = next(d["message"] for d in world.status()["decisions"] if d["reason"] in ("SegmentFailed", "Infeasible"))
    assert "not scheduled: 0/3 nodes: Insufficient something that only the scheduler knows" in said
    if spare:
        assert images(world) == ["segment:next"] * 2
        assert f"{closed}[" not in world.placement()
        assert world.condition("Progressing")["reason"] == "Settled"
    else:
        assert world.serving() == served
        assert world.condition("Planned")["status"] == "False"
