"""Nodes that are left out before planning are never missed."""

import pytest
from hypothesis import HealthCheck, given, settings

from splitinference.core.cost import violations
from splitinference.core.planner.columns.presolve import needed_nodes
from splitinference.core.planner.solver import quick_plans
from splitinference.core.values.cluster import Snapshot
from splitinference.core.values.problem import Problem
from tests.core.planner_problems import a_node, a_profile, best_value, problems, single_goals

SETTINGS = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(problems(single_goals(), layers=2, nodes=6))
def test_without_the_nodes_that_are_left_out_the_best_chain_is_as_good(problem: Problem) -> None:
    fewer = needed_nodes(problem, many=0)
    whole, part = best_value(problem), best_value(fewer)
    assert part == (None if whole is None else pytest.approx(whole, rel=1e-9))


def test_of_many_nodes_in_the_order_of_their_speed_only_as_many_are_left_as_a_chain_can_have_segments() -> None:
    nodes = tuple(a_node(f"n{i}", gflops=10.0 + i) for i in range(300))
    problem = Problem(profile=a_profile(), snapshot=Snapshot(nodes=nodes))
    assert [node.name for node in needed_nodes(problem).snapshot.nodes] == [f"n{i}" for i in range(295, 300)]


def test_a_large_problem_has_a_valid_plan_before_the_search_begins() -> None:
    nodes = tuple(a_node(f"n{i}", gflops=10.0 + i, free_mib=150) for i in range(300))
    problem = Problem(profile=a_profile(), snapshot=Snapshot(nodes=nodes))
    plan = next(quick_plans(problem))
    assert plan is not None
    assert violations(plan, problem) == ()
