"""Runs of a linear programme: for many unequal places they come near to what all could do together, and the judge takes them."""

import random

import pytest

from splitinference.core.cost import objective_value, violations
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.columns.fluid import most_steps_per_ms
from splitinference.core.planner.throughput.decomposition import plan_of_runs
from splitinference.core.planner.throughput.flows import Flows
from splitinference.core.planner.throughput.mixes import mixed
from splitinference.core.values.cluster import Snapshot
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem, TrustRule, Workload
from tests.core.planner_problems import a_node, a_profile


def unequal(count: int, constraints: Constraints | None = None) -> Problem:
    source = random.Random(7)
    nodes = tuple(
        a_node(f"n{i}", free_mib=source.choice([150, 300, 600]), gflops=source.uniform(50, 150), gbps=source.uniform(5, 15),
               utilization=source.uniform(0, 0.5), labels={"site": "own" if i % 3 else "other"})
        for i in range(count)
    )  # fmt: skip
    return Problem(profile=a_profile((40, *((60,) * 22), 50)), snapshot=Snapshot(nodes=nodes), workload=Workload(max_context_tokens=256),
                   objective=Objective(goal=Goal.THROUGHPUT), constraints=constraints or Constraints())  # fmt: skip


def test_runs_for_many_places_come_near_to_the_bound_and_make_a_validplan_of_runs() -> None:
    problem = unequal(80)
    flows = Flows(Tables(problem))
    best = max(mixed(flows, lambda: False), key=flows.value)
    assert len({place for place, _, _ in best}) == len(best), "a place holds one run"
    assert flows.value(best) >= most_steps_per_ms(flows.tables) / 1.15
    plan = plan_of_runs([(flows.places[p][1], a, b) for p, a, b in best], problem)
    assert plan is not None
    assert violations(plan, problem) == ()
    assert objective_value(plan, problem) == pytest.approx(1e3 * flows.value(best), rel=1e-6)
    assert sum(pipeline.share for pipeline in plan.pipelines) == pytest.approx(1.0)


def test_places_that_trust_keeps_from_layers_do_not_get_them() -> None:
    rules = (TrustRule(start=0, end=6, labels={"site": "own"}),)
    problem = unequal(60, Constraints(trust=rules))
    flows = Flows(Tables(problem))
    for runs in mixed(flows, lambda: False):
        assert all(flows.rate(run) > 0 for run in runs)
        plan = plan_of_runs([(flows.places[p][1], a, b) for p, a, b in runs], problem)
        assert plan is not None
        assert violations(plan, problem) == ()


def test_no_more_nodes_than_allowed() -> None:
    flows = Flows(Tables(unequal(60, Constraints(max_nodes=20))))
    assert all(len(runs) <= 20 for runs in mixed(flows, lambda: False))


def test_where_whole_places_cannot_cover_the_model_nothing_flows() -> None:
    flows = Flows(Tables(unequal(2)))
    assert all(flows.value(runs) == 0 for runs in mixed(flows, lambda: False))
