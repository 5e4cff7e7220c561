"""Where the best plan has no room: the best plan that moves one segment only."""

import pytest

from splitinference.core.decide.base.policy import Policy
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.decide.optional import best_single_move
from splitinference.core.transition.steps import Blocked, Done
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo
from splitinference.core.values.result import Limits
from tests.core.planning import Exhaustive, a_node, a_plan, a_problem, text_of

POLICY = Policy(load_bytes_per_s=1e9)
SMALL = {"mib": 250}
IDLE = a_problem(*(a_node(name, **SMALL) for name in "abcd"))
BUSY = a_problem(a_node("a", utilization=0.8, **SMALL), a_node("b", utilization=0.9, **SMALL), *(a_node(name, **SMALL) for name in "cde"))
THREE = a_plan("a[0:1] b[1:3] c[3:4]", BUSY)


def moved(plan: Plan, current: Plan) -> int:
    return len({(s.start, s.end, s.node) for s in plan.segments} - {(s.start, s.end, s.node) for s in current.segments})


def single(problem: Problem, current: Plan, reaches=lambda plan: True) -> tuple[Plan | None, Exhaustive]:
    exhaustive = Exhaustive()
    solver = Solver(exhaustive, Limits(seconds=1), lambda plan: Done() if reaches(plan) else Blocked(why="no room"))
    return best_single_move(current, problem, POLICY, solver), exhaustive


def test_of_two_busy_nodes_the_one_is_left_that_gains_more():
    found, _ = single(BUSY, THREE)
    assert found is not None
    assert moved(found, THREE) == 1
    assert text_of(found) in ("a[0:1] d[1:3] c[3:4]", "a[0:1] e[1:3] c[3:4]")


def test_a_move_that_cannot_be_reached_is_none():
    found, _ = single(BUSY, THREE, lambda plan: plan.segments[1].node == "b")
    assert found is not None
    assert text_of(found) in ("d[0:1] b[1:3] c[3:4]", "e[0:1] b[1:3] c[3:4]")
    assert single(BUSY, THREE, lambda plan: False)[0] is None


def test_staying_wins_ties():
    """All nodes are alike, so no move is better than none."""
    assert single(IDLE, a_plan("c[0:2] d[2:4]", IDLE))[0] is None


def test_an_slo_that_no_single_move_keeps_does_not_prevent_one():
    found, exhaustive = single(BUSY.model_copy(update={"slo": Slo(time_per_output_token_ms=0.001)}), THREE)
    assert found is not None
    assert moved(found, THREE) == 1
    assert {problem.slo for problem in exhaustive.asked} == {Slo(time_per_output_token_ms=0.001), Slo()}


def test_an_slo_that_a_single_move_keeps_is_kept():
    """Each move is tried with the SLO first; without it, only if none keeps it."""
    slo = Slo(time_per_output_token_ms=20)
    found, exhaustive = single(BUSY.model_copy(update={"slo": slo}), THREE)
    assert found is not None
    assert {problem.slo for problem in exhaustive.asked} == {slo}


@pytest.mark.parametrize("pipelines", [2, 3])
def test_several_pipelines_are_left_alone(pipelines: int):
    many = a_plan("a[0:2] b[2:4]").model_copy(update={"pipelines": a_plan("a[0:2] b[2:4]").pipelines * pipelines})
    found, exhaustive = single(IDLE, many)
    assert (found, exhaustive.asked) == (None, [])


def test_a_stage_on_two_nodes_is_left_alone():
    plan = a_plan("a[0:2] b[2:4]", IDLE)
    last = plan.segments[1].model_copy(update={"replicas": ("c",)})
    twice = plan.model_copy(update={"pipelines": (plan.pipelines[0].model_copy(update={"segments": (plan.segments[0], last)}),)})
    found, exhaustive = single(IDLE, twice)
    assert (found, exhaustive.asked) == (None, [])


def test_cuts_that_are_not_allowed_any_more_cannot_be_kept():
    bounded = IDLE.model_copy(update={"constraints": IDLE.constraints.model_copy(update={"min_segments": 3})})
    found, exhaustive = single(bounded, a_plan("a[0:2] b[2:4]", IDLE))
    assert (found, exhaustive.asked) == (None, [])
