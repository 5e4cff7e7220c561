"""Budgets for cost and power: the solver against brute force, and what it says where nothing meets them."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.cost import objective_value, violations
from splitinference.core.planner import Infeasible, Limits, Solved
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem
from tests.core.planner_problems import all_chains, problems, single_goals
from tests.core.planning import a_node, a_problem, a_profile
from tests.examples import examples

LIMITS = Limits(seconds=60)
COSTS, POWERS = st.sampled_from([None, 0.9, 2.0, 4.1]), st.sampled_from([None, 250.0, 420.0])
FIGURES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.37, 3.0]), min_size=4, max_size=4)


def with_budgets(problem: Problem, prices: list[float], watts: list[float], cost: float | None, power: float | None) -> Problem:
    """The problem with these prices and this power of its nodes, and budgets."""
    nodes = tuple(
        node.model_copy(update={"cost_per_hour": prices[i % 4], "busy_watts": 100 * (1 + watts[i % 4])})
        for i, node in enumerate(problem.snapshot.nodes)
    )
    bounds = problem.constraints.model_copy(update={"max_cost_per_hour": cost, "max_watts": power})
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes}), "constraints": bounds})


def plans_of(problem: Problem) -> list[Plan]:
    """Every valid plan of one chain, judged by the cost model alone."""
    plans = (Plan(model_digest=problem.profile.digest, pipelines=(chain,)) for chain in all_chains(problem))
    return [plan for plan in plans if not violations(plan, problem)]


@examples(20)
@given(
    problems(single_goals(), layers=4, nodes=3), FIGURES, FIGURES, st.sampled_from([None, 0.9, 2.0, 4.1]), st.sampled_from([None, 250, 420])
)
def test_within_a_budget_the_solver_finds_what_brute_force_finds(
    problem: Problem, prices: list[float], watts: list[float], cost: float | None, power: float | None
) -> None:
    problem = with_budgets(problem, prices, watts, cost, power)
    expected = min((objective_value(plan, problem) for plan in plans_of(problem)), default=None)
    answer = solve(problem, LIMITS)
    if expected is None:
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Solved)
    assert violations(answer.plan, problem) == ()
    assert answer.plan.value == pytest.approx(expected, rel=1e-6, abs=1e-9)


@examples(4)
@given(FIGURES, st.sampled_from([1.0, 2.4, 5.0]), st.sampled_from([Goal.BOTTLENECK, Goal.COST, Goal.LATENCY]))
def test_two_pipelines_keep_one_budget_together(prices: list[float], cost: float, goal: Goal) -> None:
    nodes = [a_node(f"n{i}", mib=260, gflops=50.0 * (i + 1), utilization=0.1 * i) for i in range(4)]
    problem = a_problem(*nodes, profile=a_profile(3), objective=Objective(goal=goal), constraints=Constraints(pipelines=2))
    problem = with_budgets(problem, prices, [0.0] * 4, cost, None)
    chains = all_chains(problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"pipelines": 1})}))
    halves = [chain.model_copy(update={"share": 0.5}) for chain in chains]
    plans = (Plan(model_digest=problem.profile.digest, pipelines=pair) for pair in combinations(halves, 2))
    expected = min((objective_value(plan, problem) for plan in plans if not violations(plan, problem)), default=None)
    answer = solve(problem, LIMITS)
    if expected is None:
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Solved)
    assert violations(answer.plan, problem) == ()
    assert answer.plan.value == pytest.approx(expected, rel=1e-6, abs=1e-9)


def priced(*figures: tuple[float, float]) -> tuple[Node, ...]:
    """Nodes of which two are needed: price per hour and watts of each."""
    return tuple(
        a_node(f"n{i}", mib=300, cost_per_hour=price, idle_watts=watts / 2, busy_watts=watts) for i, (price, watts) in enumerate(figures)
    )


def test_a_budget_that_nothing_meets_says_the_least_that_would() -> None:
    nodes = priced((1.0, 100.0), (2.0, 200.0), (5.0, 50.0))
    answer = solve(a_problem(*nodes, constraints=Constraints(max_cost_per_hour=2.5)), LIMITS)
    assert isinstance(answer, Infeasible)
    assert {reason.name: reason.relaxation for reason in answer.reasons}["max-cost"] == "3 per hour instead of 2.5 per hour"
    answer = solve(a_problem(*nodes, constraints=Constraints(max_watts=149.0)), LIMITS)
    assert isinstance(answer, Infeasible)
    assert {reason.name: reason.relaxation for reason in answer.reasons}["max-watts"] == "150 W instead of 149 W"


def test_the_cheapest_plan_within_a_budget_of_power() -> None:
    nodes = priced((1.0, 900.0), (1.0, 100.0), (2.0, 100.0))
    answer = solve(a_problem(*nodes, objective=Objective(goal=Goal.COST), constraints=Constraints(max_watts=300)), LIMITS)
    assert isinstance(answer, Solved)
    assert answer.plan.prediction is not None
    assert answer.plan.prediction.cost_per_hour == 3.0
    assert answer.plan.prediction.watts == 200.0


@pytest.mark.parametrize(
    ("more", "unknown", "words"),
    [
        ({"objective": Objective(goal=Goal.COST)}, {"price_known": False}, "its price is not known"),
        ({"constraints": Constraints(max_cost_per_hour=9.0)}, {"price_known": False}, "its price is not known"),
        ({"constraints": Constraints(max_watts=900.0)}, {"busy_watts": 0.0}, "its power is not known"),
    ],
)
def test_a_node_whose_figure_is_not_known_is_left_with_that_reason(more: dict[str, object], unknown: dict[str, object], words: str) -> None:
    first, *others = priced((1.0, 100.0), (1.0, 100.0), (1.0, 100.0))
    problem = a_problem(first.model_copy(update={"flops_per_s": 9e13, **unknown}), *others, **more)
    answer = solve(problem, LIMITS)
    assert isinstance(answer, Solved)
    assert {segment.node for segment in answer.plan.segments} == {"n1", "n2"}
    assert any(line.startswith("n0 left") and words in line for line in answer.plan.explanation)


def test_throughput_has_no_budget() -> None:
    with pytest.raises(ValueError, match="a budget for cost or power"):
        a_problem(*priced((1.0, 1.0)), objective=Objective(goal=Goal.THROUGHPUT), constraints=Constraints(max_watts=5))
