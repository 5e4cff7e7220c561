"""The solver against brute force, on every goal and constraint of a chain."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitinference.core.cost import goal_value, objective_value, violations
from splitinference.core.problem import Goal, Objective, Problem
from splitinference.core.solve import Infeasible, Limits, Solved
from splitinference.core.solve.dispatch import solve
from tests.core.planner_problems import best_in_order, best_value, problems, single_goals

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(problems(single_goals(), layers=6))
def test_the_solver_finds_what_brute_force_finds(problem: Problem) -> None:
    expected = best_value(problem)
    answer = solve(problem, Limits(seconds=60))
    if expected is None:
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Solved)
    assert violations(answer.plan, problem) == ()
    assert answer.plan.value == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert answer.optimal
    assert answer.bound <= expected * (1 + 1e-9) + 1e-12
    assert answer.plan.value == objective_value(answer.plan, problem)


@SETTINGS
@given(
    problems(
        st.permutations([Goal.COST, Goal.LATENCY, Goal.BOTTLENECK, Goal.ENERGY]).map(lambda g: Objective(goal=g[0], then=g[1:3])), nodes=3
    )
)
def test_goals_in_order_are_each_best_among_the_best_before(problem: Problem) -> None:
    expected = best_in_order(problem)
    answer = solve(problem, Limits(seconds=60))
    if expected is None:
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Solved)
    assert answer.plan.prediction is not None
    goals = (problem.objective.goal, *problem.objective.then)
    assert [goal_value(answer.plan.prediction, g) for g in goals] == [pytest.approx(v, rel=1e-6, abs=1e-9) for v in expected]
