"""The solver against brute force, on every goal and constraint of a chain."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.cost import goal_value, objective_value, violations
from splitinference.core.planner import Infeasible, Limits, Solved
from splitinference.core.planner.solver import solve
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Objective, Problem, Slo
from tests.core.planner_problems import all_chains, as_brute_force, best_in_order, best_value, problems, single_goals, valid_plans
from tests.examples import examples

SETTINGS = examples(60)


@examples(25)
@given(problems(single_goals(), layers=3, nodes=3))
def test_brute_force_leaves_out_no_valid_chain(problem: Problem) -> None:
    plans = (Plan(model_digest=problem.profile.digest, pipelines=(chain,)) for chain in all_chains(problem))
    assert {plan.revision for plan in plans if not violations(plan, problem)} == {plan.revision for plan in valid_plans(problem)}


@SETTINGS
@given(problems(single_goals(), layers=6))
def test_the_solver_finds_what_brute_force_finds(problem: Problem) -> None:
    answer = as_brute_force(problem)
    assert answer is None or answer.plan.value == objective_value(answer.plan, problem)


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


@SETTINGS
@given(
    problems(st.just(Objective(goal=Goal.COST)), layers=5),
    st.sampled_from([1.0001, 1.1, 1.3, 2.0]),
    st.booleans(),
    st.sampled_from([(3.7, 0.8, 0.5), (0.1, 0.73, 1.234567)]),
)
def test_the_cheapest_plan_that_keeps_a_tight_slo(problem: Problem, times: float, both: bool, prices: tuple[float, ...]) -> None:
    nodes = tuple(n.model_copy(update={"cost_per_hour": prices[i % 3]}) for i, n in enumerate(problem.snapshot.nodes))
    problem = problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})
    quickest = solve(problem.model_copy(update={"objective": Objective(), "slo": Slo()}), Limits(seconds=60))
    if not isinstance(quickest, Solved) or quickest.plan.prediction is None:
        return
    kept = quickest.plan.prediction
    first = kept.time_to_first_token_ms * times if both else None
    problem = problem.model_copy(
        update={"slo": Slo(time_per_output_token_ms=kept.time_per_output_token_ms * times, time_to_first_token_ms=first)}
    )
    answer = solve(problem, Limits(seconds=60))
    assert isinstance(answer, Solved)
    assert answer.optimal
    assert answer.plan.value == pytest.approx(best_value(problem), rel=1e-6, abs=1e-9)


@SETTINGS
@given(problems(st.sampled_from([5.0, 100.0, 1000.0]).map(lambda w: Objective(goal=Goal.BOTTLENECK, move_weight=w)), layers=5), st.data())
def test_moves_are_weighed_against_the_slowest_stage(problem: Problem, data: st.DataObject) -> None:
    layers, names = len(problem.profile.layers), [n.name for n in problem.snapshot.nodes]
    cuts = sorted({0, data.draw(st.integers(0, layers)), layers})
    serving = tuple((a, b, data.draw(st.sampled_from(names))) for a, b in pairwise(cuts))
    problem = problem.model_copy(update={"serving": serving})
    expected, answer = best_value(problem), solve(problem, Limits(seconds=60))
    if expected is None:
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Solved)
    assert answer.optimal
    assert answer.plan.value == pytest.approx(expected, rel=1e-6, abs=1e-9)
