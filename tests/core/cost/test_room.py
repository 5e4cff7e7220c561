"""Room that a plan leaves for pods that are no segments."""

import pytest

from splitinference.core.cost.checks.room import lacking, reserving
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.planner.solver import solve
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import Limits
from splitinference.core.values.room import Room
from tests.core.planning import MIB, Exhaustive, a_node, a_plan, a_problem, text_of


def a_room(mib: int = 100, **more) -> Room:
    return Room(what="the new gateway of a rollout", memory_bytes=mib * MIB, **more)


def best(problem: Problem, solver=None) -> Plan:
    found = Solver(solver or Exhaustive(), Limits(seconds=5)).best(problem, None)
    assert isinstance(found, Plan), found
    return found


# Four layers of 110 MiB with their margin: a and b hold two each, c is slower and holds two.
TIGHT = a_problem(a_node("a", mib=230), a_node("b", mib=230), a_node("c", mib=230, gflops=50))


def with_rooms(problem: Problem, *rooms: Room) -> Problem:
    return problem.model_copy(update={"rooms": rooms})


@pytest.mark.parametrize("solver", [Exhaustive(), solve], ids=["every plan", "solver"])
def test_a_plan_leaves_room_where_one_exists(solver):
    assert text_of(best(TIGHT, solver)) in ("a[0:2] b[2:4]", "b[0:2] a[2:4]")
    found = best(with_rooms(TIGHT, a_room(100, labels={})), solver)
    assert not lacking(found, with_rooms(TIGHT, a_room(100)))


def test_room_on_a_node_that_the_plan_does_not_use_costs_nothing():
    """The best plan is taken as it is, and the solver is asked once."""
    every = Exhaustive()
    found = best(with_rooms(TIGHT, a_room(200)), every)
    assert set(text_of(found).replace("[", " ").split()) & {"a", "b"} == {"a", "b"}
    assert len(every.asked) == 1
    assert not any("stay free" in line for line in found.explanation)


ONLY_A = {"zone": "front"}


def labelled(problem: Problem, **labels: dict[str, str]) -> Problem:
    nodes = tuple(n.model_copy(update={"labels": labels.get(n.name, {})}) for n in problem.snapshot.nodes)
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})


def test_the_pod_may_only_be_on_nodes_with_its_labels():
    """The room must be on a, so a slower plan with c is made, and says why."""
    problem = with_rooms(labelled(TIGHT, a=ONLY_A), a_room(150, labels=ONLY_A))
    found = best(problem)
    assert {s.node for s in found.segments} == {"b", "c"}
    assert found.explanation[-1] == "150 MiB stay free on a for the new gateway of a rollout"
    assert found.value > best(TIGHT).value


def test_the_best_of_all_nodes_that_could_have_the_room_is_taken():
    """Every plan of every place of the room, tried by hand."""
    nodes = [a_node(name, mib=230, gflops=g, labels=ONLY_A) for name, g in (("a", 100), ("b", 90), ("c", 50))]
    problem = with_rooms(a_problem(*nodes, a_node("d", mib=230, gflops=80)), a_room(150, labels=ONLY_A))
    solver = Exhaustive()
    found = best(problem, solver)
    assert not lacking(found, problem)
    assert {s.node for s in found.segments} == {"a", "b"}, "c keeps the room"
    tight = with_rooms(a_problem(*(n.model_copy(update={"memory_free_bytes": 345 * MIB}) for n in nodes[:2])), a_room(150, labels=ONLY_A))
    found = best(tight)
    assert not lacking(found, tight)
    assert sorted(s.end - s.start for s in found.segments) == [1, 3]


def test_where_no_plan_leaves_room_it_serves_all_the_same_and_says_so():
    problem = with_rooms(a_problem(a_node("a", mib=230), a_node("b", mib=230)), a_room(100, millicores=50))
    found = best(problem)
    assert lacking(found, problem) == problem.rooms
    assert found.explanation[-1] == ("no plan leaves 100 MiB and 0.05 cores on a node that may have the new gateway of a rollout")


def test_cores_count_beside_those_that_segments_request():
    """c has memory and cores for a segment or the pod, but not for both."""
    nodes = [a_node(name, mib=900, gflops=g, millicores_free=120) for name, g in (("a", 100), ("b", 90))]
    problem = with_rooms(a_problem(*nodes), a_room(100, millicores=50, segment_millicores=100))
    used = {s.node for s in best(problem).segments}
    assert len(used) == 1
    assert not lacking(best(problem), problem)
    both = a_plan("a[0:2] b[2:4]", problem)
    assert lacking(both, problem) == problem.rooms
    assert all("kept for" in next(n for n in p.snapshot.nodes if n.name == name).excluded for name, p in reserving(both, problem))


def test_a_node_that_is_no_place_for_pods_is_no_place_for_the_room():
    plan = a_plan("a[0:2] b[2:4]", TIGHT)
    for bad in ({"ready": False}, {"excluded": "it leaves"}):
        nodes = tuple(n.model_copy(update=bad) if n.name == "c" else n for n in TIGHT.snapshot.nodes)
        problem = TIGHT.model_copy(update={"snapshot": TIGHT.snapshot.model_copy(update={"nodes": nodes}), "rooms": (a_room(),)})
        assert lacking(plan, problem) == problem.rooms


def test_two_rooms_are_never_the_same_bytes():
    plan = a_plan("a[0:2] b[2:4]", TIGHT)
    assert lacking(plan, with_rooms(TIGHT, a_room(100), a_room(120))) == ()
    assert lacking(plan, with_rooms(TIGHT, a_room(100), a_room(140))) == (a_room(100),)
