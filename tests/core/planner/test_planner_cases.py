"""Problems that the planner once got wrong, as files, with the answer that is right."""

import re
from itertools import combinations
from pathlib import Path

import pytest
from pydantic import ValidationError

from splitinference.core.cost import objective_value, violations
from splitinference.core.planner import Infeasible, Limits, Outcome, Solved
from splitinference.core.planner.solver import solve
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from tests.core.planner_problems import valid_chains

CASES = Path(__file__).parents[1] / "planner_cases"


def case(name: str) -> Problem:
    return Problem.model_validate_json((CASES / f"{name}.json").read_bytes())


def answer(name: str) -> Outcome:
    return solve(case(name), Limits(seconds=60))


def value(name: str) -> float:
    found = answer(name)
    assert isinstance(found, Solved)
    assert violations(found.plan, case(name)) == ()
    assert found.plan.value is not None
    assert found.plan.value <= found.bound * (1 + 1e-9)
    return found.plan.value


def test_throughput_has_a_plan_where_only_one_node_is_trusted() -> None:
    """The trusted node could hold everything: alone it gives its own rate, with the others more."""
    assert value("1-throughput-trust-no-plan") > 0


def test_throughput_over_a_line_of_nodes_is_planned() -> None:
    assert value("2-throughput-line-crash") == pytest.approx(0.954, rel=1e-3)


def test_throughput_places_by_the_flow_through_links() -> None:
    bottleneck = solve(case("3b-same-bottleneck"), Limits(seconds=60))
    assert isinstance(bottleneck, Solved)
    assert bottleneck.plan.prediction is not None
    assert value("3-throughput-ignores-links") >= bottleneck.plan.prediction.tokens_per_s * (1 - 1e-6)


def test_throughput_of_a_small_cluster_is_exact() -> None:
    assert value("4-throughput-25x") == pytest.approx(145.4998, rel=1e-4)


def test_two_pipelines_are_planned_for_the_latency_that_the_judge_counts() -> None:
    problem = case("5-two-pipelines-latency")
    plans = [
        Plan(model_digest=problem.profile.digest, pipelines=tuple(c.model_copy(update={"share": 0.5}) for c in pair))
        for pair in combinations(valid_chains(problem), 2)
    ]
    best = min(objective_value(plan, problem) for plan in plans if not violations(plan, problem))
    found = answer("5-two-pipelines-latency")
    assert isinstance(found, Solved)
    assert found.optimal
    assert found.plan.value == pytest.approx(best)


def test_more_tied_bytes_than_a_layer_has_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"layers\[1\].tied_bytes is 5000000000, expected at most 1000000000"):
        case("6-tied-bytes-negative-memory")


def test_the_advice_on_bandwidth_is_enough() -> None:
    problem, found = case("7-min-bandwidth-advice-rounded-up"), answer("7-min-bandwidth-advice-rounded-up")
    assert isinstance(found, Infeasible)
    advice = next(reason.relaxation for reason in found.reasons if reason.name == "min-bandwidth")
    figure = re.match(r"([0-9.e+-]+) B/s instead of", advice)
    assert figure
    bounds = problem.constraints.model_copy(update={"min_bandwidth_bytes_per_s": float(figure[1])})
    assert isinstance(solve(problem.model_copy(update={"constraints": bounds}), Limits(seconds=60)), Solved)


def test_reasons_are_found_within_the_time_and_say_what_is_enough() -> None:
    found = answer("8-infeasible-reported-timedout")
    assert isinstance(found, Infeasible)
    assert {reason.name for reason in found.reasons} == {"min-bandwidth", "memory"}
