"""Room that a plan leaves for pods that are no segments: a reason to plan again, and what the solver is asked then."""

from datetime import timedelta

import pytest

from splitinference.core.cost import objective_value
from splitinference.core.cost.checks.room import lacking
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Memory, Policy
from splitinference.core.decide.base.triggers import Reason, check
from splitinference.core.decide.base.validated_solver import MOST_NODES, Solver, always_reachable
from splitinference.core.decide.decide import decide
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Objective, Problem
from splitinference.core.values.result import Infeasible, Limits, Outcome, Solved, TimedOut
from splitinference.core.values.room import Room, SecondCopies
from tests.core.planning import MIB, START, Exhaustive, a_node, a_plan, a_problem, a_profile, inputs, text_of

POLICY = Policy(window=timedelta(seconds=20), review=timedelta(hours=1), load_bytes_per_s=1e9)
LIMITS = Limits(seconds=1)
WAITS = Room(what="a second gateway", memory_bytes=100 * MIB, waits="it waits for memory on every node")
LATER = WAITS.model_copy(update={"waits": ""})
"""The pod may come at any time."""


def problem(*rooms: Room, a: int = 250, b: int = 250, c: int = 250, **more) -> Problem:
    """Nodes with so many MiB. Two layers take 220 MiB with their margin."""
    return a_problem(a_node("a", mib=a), a_node("b", mib=b), a_node("c", mib=c, gflops=50), rooms=rooms, **more)


PLAN = a_plan("a[0:2] b[2:4]", problem())


def reason(given: Problem, plan: Plan = PLAN, **more) -> tuple[Reason, str] | None:
    found, _ = check(inputs(given, plan, 1, **more), POLICY, Memory(reviewed=START))
    return None if found is None else (found.reason, found.message)


# --- the reason -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free_on_c", "missing"), [(99, True), (100, False), (101, False)])
def test_a_pod_that_waits_is_a_reason_where_the_plan_leaves_it_no_room(free_on_c, missing):
    expected = (Reason.ROOM_MISSING, "a second gateway needs 100 MiB: it waits for memory on every node")
    assert reason(problem(WAITS, c=free_on_c)) == (expected if missing else None)


def test_a_size_that_is_no_whole_number_of_mib_is_rounded_up():
    room = WAITS.model_copy(update={"memory_bytes": 100 * MIB + 1})
    assert reason(problem(room, c=100)) == (Reason.ROOM_MISSING, "a second gateway needs 101 MiB: it waits for memory on every node")


def test_room_that_nobody_waits_for_is_no_reason():
    assert reason(problem(LATER, c=50)) is None


def test_of_several_rooms_only_those_are_named_that_a_pod_waits_for():
    other = WAITS.model_copy(update={"what": "the verifier", "memory_bytes": 120 * MIB})
    assert reason(problem(LATER, WAITS, other, c=50)) == (
        Reason.ROOM_MISSING,
        "the verifier needs 120 MiB: it waits for memory on every node; a second gateway needs 100 MiB: it waits for memory on every node",
    )


def test_a_transition_under_way_may_give_the_room():
    assert reason(problem(WAITS, c=50), in_transition=True) is None


# --- what the solver is asked ---------------------------------------------------------------------------------------------------------


def best(given: Problem, solve=None) -> Plan | Keep:
    return Solver(solve or Exhaustive(), LIMITS).best(given, None)


def found(given: Problem, solve=None) -> Plan:
    plan = best(given, solve)
    assert isinstance(plan, Plan)
    return plan


def test_without_rooms_or_where_the_best_plan_leaves_them_there_is_one_solve():
    for given in (problem(), problem(LATER, c=100)):
        solver = Exhaustive()
        assert text_of(found(given, solver)) == "a[0:2] b[2:4]"
        assert len(solver.asked) == 1


def test_the_best_plan_that_leaves_the_room_goes_before_a_better_one_that_does_not():
    """Only a or b could have the room; c is slow, and without the room nobody would use it."""
    given = problem(LATER.model_copy(update={"memory_bytes": 240 * MIB}), c=230)
    plan = found(given)
    assert lacking(plan, given) == ()
    assert sorted(text_of(plan)) != sorted("a[0:2] b[2:4]")
    assert "c" in text_of(plan)
    assert plan.explanation[-1] in ("240 MiB stay free on a for a second gateway", "240 MiB stay free on b for a second gateway")
    assert plan.value == objective_value(plan, given)
    assert plan.optimal
    assert plan.bound == pytest.approx(plan.value)
    assert plan.gap == pytest.approx(0.0, abs=1e-9)


def test_cores_are_said_with_the_memory():
    room = LATER.model_copy(update={"memory_bytes": 240 * MIB, "millicores": 1500})
    given = problem(room, c=230)
    assert "240 MiB and 1.5 cores stay free on" in found(given).explanation[-1]


def test_where_no_plan_leaves_room_the_best_of_all_serves_and_says_what_it_lacks():
    rooms = (
        LATER.model_copy(update={"memory_bytes": 251 * MIB}),
        LATER.model_copy(update={"memory_bytes": 252 * MIB, "what": "the verifier"}),
    )
    plan = found(problem(*rooms))
    assert text_of(plan) == "a[0:2] b[2:4]"
    assert plan.explanation[-2:] == (
        "no plan leaves 252 MiB on a node that may have the verifier",
        "no plan leaves 251 MiB on a node that may have a second gateway",
    )


def test_a_plan_of_a_solver_that_proves_nothing_is_not_called_proven():
    """The solver ends in time only for the first question."""
    exhaustive = Exhaustive()

    def tired(asked: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        first = not exhaustive.asked
        outcome = exhaustive(asked, limits, hint)
        return (
            outcome
            if first or not isinstance(outcome, Solved)
            else TimedOut(best=outcome.plan.model_copy(update={"bound": None}), bound=0.0)
        )

    plan = found(problem(LATER.model_copy(update={"memory_bytes": 240 * MIB}), c=230), tired)
    assert "stay free on" in plan.explanation[-1]
    assert (plan.bound, plan.gap, plan.optimal) == (None, None, False)


def test_where_one_node_was_not_tried_to_the_end_the_bound_is_that_of_the_best_plan_of_all():
    exhaustive, asked_first = Exhaustive(), []

    def late_on_a(asked: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        outcome = exhaustive(asked, limits, hint)
        asked_first.append(outcome)
        lessened = {node.name: node.memory_free_bytes // MIB for node in asked.snapshot.nodes}
        return TimedOut(best=None, bound=0.0) if lessened["a"] == 10 else outcome

    given = problem(LATER.model_copy(update={"memory_bytes": 240 * MIB}), c=230)
    plan = found(given, late_on_a)
    first = asked_first[0]
    assert isinstance(first, Solved)
    assert plan.bound == first.bound
    assert plan.value is not None
    assert plan.bound is not None
    assert plan.gap == pytest.approx((plan.value - plan.bound) / plan.value)
    assert plan.gap > 0.01
    assert not plan.optimal


@pytest.mark.parametrize("goal", [Goal.LATENCY, Goal.THROUGHPUT])
@pytest.mark.parametrize(("speeds", "expected", "keeps"), [((100, 70), "a[0:2] c[2:4]", "b"), ((70, 100), "b[0:2] c[2:4]", "a")])
def test_of_several_plans_that_leave_room_the_best_by_the_objective_is_taken(goal, speeds, expected, keeps):
    """Each node in turn gives the room; c is too small to have it. The less is better for a latency, the more for a throughput."""
    nodes = (*(a_node(name, mib=250, gflops=speed) for name, speed in zip("ab", speeds, strict=True)), a_node("c", mib=230, gflops=80))
    given = a_problem(*nodes, rooms=(LATER.model_copy(update={"memory_bytes": 240 * MIB}),), objective=Objective(goal=goal))

    def solve(asked: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        kept = next((node.name for node in asked.snapshot.nodes if node.memory_free_bytes < 100 * MIB), "")
        plan = a_plan({"": "a[0:2] b[2:4]", "a": "b[0:2] c[2:4]", "b": "a[0:2] c[2:4]"}[kept])
        value = objective_value(plan, asked)
        return Solved(plan=plan, bound=value, gap=0.0, optimal=True, seconds=0.0, explanation=("solved",))

    plan = found(given, solve)
    assert lacking(plan, given) == ()
    assert text_of(plan) == expected
    assert plan.explanation == ("solved", f"240 MiB stay free on {keeps} for a second gateway")
    assert plan.bound == pytest.approx(objective_value(plan, given))
    assert plan.optimal


TRUSTED = SecondCopies(trusted={"trusted": "true"})


@pytest.mark.parametrize(
    ("nodes", "copies", "solves"),
    [
        (MOST_NODES - 1, None, MOST_NODES - 1),
        (MOST_NODES, None, MOST_NODES),
        (MOST_NODES + 1, None, MOST_NODES),
        (MOST_NODES + 1, TRUSTED, MOST_NODES // 2),
    ],
)
def test_so_many_nodes_are_tried_and_half_as_many_where_plans_are_judged_by_two_kinds_of_room(nodes, copies, solves):
    """Each of the nodes has one layer and could have the room instead of it. None of the further solves finds a plan."""
    profile = a_profile(layers=nodes)
    given = a_problem(
        *(a_node(f"n{n}", mib=250) for n in range(nodes)),
        profile=profile,
        rooms=(LATER.model_copy(update={"memory_bytes": 200 * MIB}),),
        second_copies=copies,
    )
    asked: list[Problem] = []

    def solve(problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        asked.append(problem)
        if len(asked) > 1:
            return Infeasible(reasons=())
        plan = a_plan(" ".join(f"n{n}[{n}:{n + 1}]" for n in range(nodes)))
        return Solved(plan=plan, bound=1.0, gap=0.0, optimal=True, seconds=0.0, explanation=())

    assert "no plan leaves 200 MiB on a node that may have a second gateway" in found(given, solve).explanation
    assert len(asked) == 1 + solves


# --- the decision ---------------------------------------------------------------------------------------------------------------------


def decided(given: Problem, dry_run=always_reachable) -> Adopt | Keep:
    return decide(inputs(given, PLAN, 100), POLICY, Memory(reviewed=START), Exhaustive(), LIMITS, dry_run=dry_run)[0]


def test_the_next_plan_leaves_the_room_even_where_new_cuts_are_the_only_way():
    room = WAITS.model_copy(update={"memory_bytes": 240 * MIB})
    given = problem(room, a=250, b=250, c=230)
    decision = decided(given)
    assert isinstance(decision, Adopt)
    assert decision.reason is Reason.ROOM_MISSING
    assert decision.mandatory
    assert lacking(decision.plan, given) == ()


def test_where_no_plan_leaves_the_room_the_present_one_stays_and_the_message_says_so():
    given = problem(WAITS.model_copy(update={"memory_bytes": 251 * MIB}))
    decision = decided(given)
    assert isinstance(decision, Keep)
    assert decision.reason is Kept.INFEASIBLE
    assert decision.message == (
        "a second gateway needs 251 MiB: it waits for memory on every node; no plan that can be reached leaves room for a second gateway"
    )


def test_a_plan_that_leaves_room_and_cannot_be_reached_is_not_adopted():
    room = WAITS.model_copy(update={"memory_bytes": 240 * MIB})
    decision = decided(problem(room, c=230), dry_run=lambda plan: Blocked(why="no room"))
    assert isinstance(decision, Keep)
