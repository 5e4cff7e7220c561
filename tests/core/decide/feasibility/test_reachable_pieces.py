"""Which plans are tried where the best one cannot be reached: what the solver is asked, how often, and which of them is taken."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from splitinference.core.cost import objective_value, predict
from splitinference.core.decide.base.compare import gain, move_seconds
from splitinference.core.decide.base.policy import Policy
from splitinference.core.decide.base.validated_solver import DryRun, Solver
from splitinference.core.decide.feasibility.reachable_plans import best_reachable
from splitinference.core.transition.state import Shortage, ShortOf
from splitinference.core.transition.steps import Blocked, Done
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo
from splitinference.core.values.result import BindingConstraint, Infeasible, Limits, Outcome, Solved
from splitinference.core.values.room import Room
from tests.core.planning import MIB, a_node, a_plan, a_problem, inputs, text_of

POLICY = Policy(load_bytes_per_s=1e9)
BEST = "c[0:2] d[2:4]"
SERVES = "a[0:2] b[2:4]"


def world(**gflops: float) -> Problem:
    return a_problem(*(a_node(name, mib=250, gflops=gflops.get(name, 100.0)) for name in "abcd"))


class Scripted:
    """A solver that answers as it is told, and keeps how much memory it was asked to stay within, by node in MiB."""

    def __init__(self, answer: Callable[[dict[str, int]], str | None]) -> None:
        self.answer, self.asked, self.pinned = answer, list[dict[str, int]](), list[list[str]]()

    def __call__(self, problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        room = {node.name: node.memory_free_bytes // MIB for node in problem.snapshot.nodes if node.memory_free_bytes != 250 * MIB}
        self.asked.append(room)
        self.pinned.append([pin.node for pin in problem.constraints.pins])
        if (text := self.answer(room)) is None:
            return Infeasible(reasons=(BindingConstraint(name="x", message="nothing fits", relaxation=""),))
        plan = a_plan(text)
        return Solved(plan=plan, bound=0.0, gap=0.0, optimal=True, seconds=0.0, explanation=("as told",))


def short(*nodes: tuple[str, int], of: ShortOf = ShortOf.MEMORY) -> Blocked:
    return Blocked(why="no room", short=tuple(Shortage(node=n, resource=of, needed=220 * MIB, free=mib * MIB) for n, mib in nodes))


def reached(
    solver: Scripted,
    ends: DryRun,
    problem: Problem | None = None,
    serving: str | None = None,
    *,
    held: dict[str, int] | None = None,
    policy: Policy = POLICY,
) -> Plan | None:
    problem = problem or world()
    known = inputs(
        problem, None, serving=None if serving is None else a_plan(serving), held_bytes={n: m * MIB for n, m in (held or {}).items()}
    )
    return best_reachable(a_plan(BEST, problem), problem, known, policy, Solver(solver, Limits(seconds=1), ends))


def never(plan: Plan) -> Done | Blocked:
    return short(("c", 30))


def test_short_nodes_are_asked_with_what_they_hold_then_with_what_is_free_and_at_last_all_fit_beside_what_is_there():
    solver = Scripted(lambda _: None)
    assert reached(solver, never, held={"c": 100, "a": 70}) is None
    assert solver.asked == [{"c": 100}, {"c": 30}, {"a": 180, "c": 150}]


def test_of_several_short_nodes_each_is_tried_alone_and_all_together():
    solver = Scripted(lambda _: None)
    assert reached(solver, lambda _: short(("c", 30), ("d", 40)), held={"c": 100}) is None
    assert solver.asked[:-1] == [{"c": 100, "d": 40}, {"c": 30}, {"d": 40}, {"c": 30, "d": 40}]


@pytest.mark.parametrize("of", [ShortOf.CPU, ShortOf.DEVICE, ShortOf.NODE])
def test_a_node_that_is_short_of_anything_but_memory_gets_nothing_new(of):
    solver = Scripted(lambda _: None)
    assert reached(solver, lambda _: short(("c", 30), of=of)) is None
    assert solver.asked == [{"c": 0}, {}]


def test_a_node_that_is_short_of_both_has_what_is_least():
    both = Blocked(why="x", short=(*short(("c", 30)).short, *short(("c", 5), of=ShortOf.CPU).short))
    solver = Scripted(lambda _: None)
    assert reached(solver, lambda _: both) is None
    assert solver.asked == [{"c": 0}, {}]


def test_what_was_asked_is_not_asked_again_and_does_not_hide_what_was_not():
    """The plan for c within what it holds is short of d, too: that limit of c alone was asked before, that of d beside it was not."""

    def ends(plan: Plan) -> Blocked:
        return short(("c", 30)) if text_of(plan) == BEST else short(("c", 30), ("d", 40))

    solver = Scripted(lambda room: "a[0:2] d[2:4]" if room == {"c": 100} else None)
    assert reached(solver, ends, held={"c": 100}) is None
    assert solver.asked[:2] == [{"c": 100}, {"c": 30}]
    assert solver.asked[2:-1] == [{"c": 100, "d": 40}, {"c": 30, "d": 40}]


def test_limits_are_tightened_in_at_most_eight_solves():
    """Each plan is short of another amount, so there would be no end."""
    left = iter(range(200, 0, -1))
    solver = Scripted(lambda _: "a[0:2] d[2:4]")
    assert reached(solver, lambda _: short(("c", next(left)))) is None
    assert len(solver.asked) == 8 + 1, "and one with what fits beside what is there"


@pytest.mark.parametrize("serving", [None, SERVES])
def test_the_plan_that_serves_is_tried_with_the_segments_that_work_in_place(serving):
    solver = Scripted(lambda _: None)
    assert reached(solver, lambda plan: short(), serving=serving) is None
    assert (["a", "b"] in solver.pinned) is (serving is not None)


def test_of_what_serves_only_what_may_stay_is_kept():
    there = world()
    gone = there.model_copy(update={"snapshot": there.snapshot.model_copy(update={"nodes": there.snapshot.nodes[1:]})})
    solver = Scripted(lambda _: None)
    assert reached(solver, lambda plan: short(), gone, SERVES) is None
    assert ["b"] in solver.pinned


def only(*texts: str) -> DryRun:
    return lambda plan: Done() if text_of(plan) in texts else short()


@pytest.mark.parametrize("text", ["b[0:2] c[2:4]", "c[0:2] a[2:4]", "b[0:2] a[2:4]", "d[0:2] a[2:4]"])
def test_the_same_cuts_on_the_same_and_spare_nodes_in_another_order_are_tried(text):
    found = reached(Scripted(lambda _: None), only(text), serving=SERVES)
    assert found is not None
    assert text_of(found) == text
    assert found.prediction == predict(found, world())
    assert found.value == objective_value(found, world())
    assert (found.bound, found.gap, found.optimal) == (None, None, False)
    assert found.explanation == ("the same split points on nodes in another order: the best reachable plan found, not proven best",)


def test_nodes_of_one_segment_are_not_put_in_another_order():
    """With several nodes for a segment, or on a device, an order of nodes says nothing."""
    on_device = a_plan(SERVES)
    segments = (on_device.segments[0].model_copy(update={"processor": "x.y/gpu/0"}), on_device.segments[1])
    on_device = on_device.model_copy(update={"pipelines": (on_device.pipelines[0].model_copy(update={"segments": segments}),)})
    known = inputs(world(), None, serving=on_device)
    found = best_reachable(
        a_plan(BEST, world()), world(), known, POLICY, Solver(Scripted(lambda _: None), Limits(seconds=1), only("b[0:2] a[2:4]"))
    )
    assert found is None


def test_of_those_that_can_be_reached_the_best_is_taken_with_its_move():
    """d is the quickest, b the slowest."""
    problem = world(b=40, c=60, d=120)
    found = reached(Scripted(lambda _: None), only("a[0:2] c[2:4]", "b[0:2] a[2:4]", "a[0:2] d[2:4]"), problem, SERVES)
    assert found is not None
    assert text_of(found) == "a[0:2] d[2:4]"


@pytest.mark.parametrize(("more", "expected"), [(-1e-4, "a[0:2] d[2:4]"), (1e-4, "a[0:2] b[2:4]")])
def test_a_better_plan_must_be_worth_its_longer_move(more, expected):
    """The time over which a move must pay lies this much, as a share of the objective, about where both plans are equal."""
    problem = inputs(world(d=150), a_plan(SERVES)).problem
    stay, move = a_plan(SERVES), a_plan("a[0:2] d[2:4]")
    least = objective_value(a_plan(BEST), problem)
    further = gain(least, objective_value(move, problem), problem) - gain(least, objective_value(stay, problem), problem)
    longer = move_seconds(move, problem, POLICY) - move_seconds(stay, problem, POLICY)
    policy = POLICY.model_copy(update={"payback": timedelta(seconds=longer / (further + more))})
    found = reached(Scripted(lambda _: None), only(SERVES, "a[0:2] d[2:4]"), problem, SERVES, policy=policy)
    assert found is not None
    assert text_of(found) == expected


def test_a_plan_that_leaves_room_goes_before_a_better_one_that_does_not():
    room = Room(what="a gateway", memory_bytes=240 * MIB, labels={"gateway": "here"})
    nodes = tuple(
        node.model_copy(update={"labels": {"gateway": "here"} if node.name == "d" else {}}) for node in world(d=150).snapshot.nodes
    )
    problem = a_problem(*nodes, rooms=(room,))
    found = reached(Scripted(lambda _: None), only("a[0:2] d[2:4]", "b[0:2] a[2:4]"), problem, SERVES)
    assert found is not None
    assert text_of(found) == "b[0:2] a[2:4]"


def test_an_slo_that_no_reachable_plan_keeps_does_not_keep_one_from_serving():
    problem = world().model_copy(update={"slo": Slo(time_per_output_token_ms=0.001)})
    found = reached(Scripted(lambda _: None), only("b[0:2] a[2:4]"), problem, SERVES)
    assert found is not None
    assert text_of(found) == "b[0:2] a[2:4]"
