"""What the solver does before it searches: prices are a bound wherever they start, and quick chains are valid and cost what they say."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from splitinference.core.cost import objective_value, violations
from splitinference.core.planner.chain.bounds.dual import price, sum_along
from splitinference.core.planner.chain.bounds.relaxed import Step, complete, most_segments, path
from splitinference.core.planner.chain.equivalence import alike
from splitinference.core.planner.chain.quick.dive import dive
from splitinference.core.planner.chain.quick.local_search import Cuts, mended
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.chain.task import Multipliers, Task, task_of
from splitinference.core.planner.columns.columns import pipeline_of
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Objective, Problem
from tests.core.planner_problems import best_value, problems, valid_plans
from tests.examples import examples

SETTINGS = examples(60)


def sums() -> st.SearchStrategy[Objective]:
    """Goals that are sums over a chain."""
    return st.sampled_from([Goal.LATENCY, Goal.ENERGY, Goal.COST]).map(lambda goal: Objective(goal=goal))


def the_task(problem: Problem) -> Task:
    tables = Tables(problem)
    assume(tables.count > 0)
    return task_of(tables)


@SETTINGS
@given(problems(sums(), layers=5), st.lists(st.floats(0.0, 50.0), min_size=8, max_size=8), st.integers(1, 6))
def test_prices_are_a_bound_wherever_they_start(problem: Problem, first: list[float], rounds: int) -> None:
    task = the_task(problem)
    start = Multipliers(np.resize(np.array(first), task.tables.count), np.resize(np.array(first), len(task.resources)))
    found = price(task, math.inf, rounds, lambda: False, start)
    best = best_value(problem)
    assert found.bound <= (math.inf if best is None else best * (1 + 1e-6) + 1e-9)


@SETTINGS
@given(problems(sums(), layers=5), st.lists(st.floats(0.0, 50.0), min_size=8, max_size=8))
def test_a_dive_ends_in_a_valid_chain_or_in_none(problem: Problem, first: list[float]) -> None:
    task = the_task(problem)
    steps, value = dive(task, Multipliers(np.resize(np.array(first), task.tables.count), np.zeros(len(task.resources))))
    if steps is None:
        assert math.isinf(value)
        return
    plan = Plan(model_digest=problem.profile.digest, pipelines=(pipeline_of(task.tables, steps),))
    assert violations(plan, problem) == ()
    assert value == pytest.approx(objective_value(plan, problem))


@SETTINGS
@given(problems(sums(), layers=5))
def test_many_sequences_are_cut_as_one_alone(problem: Problem) -> None:
    task = the_task(problem)
    assume(not task.tables.shares_node.any())
    arrays, cuts = task.plain, Cuts(task.plain)
    for plan in valid_plans(problem)[:2]:
        places = np.array(
            [next(c for c, m in enumerate(task.tables.members) for _, s in m if s.node.name == x.node) for x in plan.segments]
        )
        steps = tuple(Step(x.start, x.end, int(c)) for x, c in zip(plan.segments, places, strict=True))
        value = float(cuts.values(np.stack([places, places]))[1])
        assert value <= sum_along(arrays, steps) * (1 + 1e-9) + 1e-9
        assert sum_along(arrays, cuts.chain(places)) == pytest.approx(value)
        for number in range(len(places)):
            for other in range(task.tables.count):
                changed = places.copy()
                changed[number] = other
                expected = float(cuts.values(changed[None])[0])
                assert float(cuts.exchanged(places, np.array([number]), np.array([other]))[0]) == pytest.approx(expected)
        better = [sum_along(arrays, chain) for chain in mended(arrays, steps)]
        assert better == sorted(better, reverse=True)


@SETTINGS
@given(problems(sums(), layers=5))
def test_no_chain_within_a_cost_has_more_segments_than_counted(problem: Problem) -> None:
    task = the_task(problem)
    arrays = task.plain
    least = complete(arrays)
    assume(math.isfinite(least.value))
    rows = alike(task, [task.plain, *task.sums], []).rows
    most = most_segments(arrays, least.value * (1 + 1e-9) + 1e-9, 8)
    assert most is not None
    assert most >= len(path(arrays, least))
    for plan in valid_plans(problem)[:60]:
        cost = objective_value(plan, problem)
        for within in (most_segments(arrays, cost * (1 + 1e-9) + 1e-9, 8), most_segments(arrays, cost * (1 + 1e-9) + 1e-9, 8, rows)):
            assert within is None or within >= len(plan.segments)
