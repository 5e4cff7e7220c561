"""Throughput where a stage's batch is what its memory holds beside the weights: rates by hand, and plans against brute force."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from splitinference.core.cost import violations
from splitinference.core.cost.flow import flow_over
from splitinference.core.cost.site import sites
from splitinference.core.cost.stage import batch_held, batch_levels, memory_bytes, stage_cost
from splitinference.core.planner import Infeasible, Limits, Solved
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import Snapshot
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem, Slo, Workload
from tests.core.planner_problems import a_node, a_profile
from tests.examples import examples

MIB = 2**20
SETTINGS = examples(25)


def a_problem(free: tuple[int, ...], batch: int = 8, layers: int = 3, **constraints: object) -> Problem:
    """Layers of 60 MiB with a KV of 2 MiB for each sequence of 64 tokens."""
    profile = a_profile((60,) * layers)
    held = [layer.model_copy(update={"kv_bytes_per_token": 2 * MIB // 64}) for layer in profile.layers]
    return Problem(
        profile=profile.model_copy(update={"layers": tuple(held)}),
        snapshot=Snapshot(nodes=tuple(a_node(f"n{i}", free_mib=mib, gflops=50.0 * (i + 1)) for i, mib in enumerate(free))),
        workload=Workload(prompt_tokens=16, output_tokens=16, max_context_tokens=64, batch=batch, batch_by_memory=True),
        objective=Objective(goal=Goal.THROUGHPUT),
        constraints=Constraints(memory_margin=0.0, **constraints),
    )


def test_levels_are_powers_of_two_and_the_largest_batch() -> None:
    assert [batch_levels(Workload(batch=batch)) for batch in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]


def test_the_batch_is_what_fits_beside_the_weights() -> None:
    """One layer: 60 MiB of weights and 2 MiB for each sequence; two layers: 120 and 4."""
    problem = a_problem((1000,), 6)
    net = problem.profile.runtime_bytes // MIB
    one, two = (0, 1), (0, 2)
    for free, (start, end), held in ((62, one, 1), (65, one, 2), (71, one, 4), (72, one, 6), (132, two, 2), (10, one, 1)):
        assert batch_held(problem, (free + net) * MIB, start, end) == held, free
    assert memory_bytes(problem, 0, 1) == (62 + net) * MIB, "one sequence must fit"


def test_a_smaller_batch_takes_more_steps() -> None:
    problem = a_problem((62, 1000), batch=8)
    small, large = (site for node in problem.snapshot.nodes for site in sites(node))
    net = problem.profile.runtime_bytes
    few = stage_cost(problem, type(small)(**{**small.__dict__, "memory_bytes": 62 * MIB + net}), 0, 1)
    plain = problem.model_copy(update={"workload": problem.workload.model_copy(update={"batch": 1, "batch_by_memory": False})})
    alone = stage_cost(plain, small, 0, 1)
    assert (few.decode_ms, few.steps) == (pytest.approx(alone.decode_ms), 8)
    assert few.occupancy_ms == pytest.approx(8 * alone.occupancy_ms)
    assert few.busy_ms_per_request == pytest.approx(alone.busy_ms_per_request)
    whole = stage_cost(problem, large, 0, 1)
    fixed = problem.model_copy(update={"workload": problem.workload.model_copy(update={"batch_by_memory": False})})
    assert whole == stage_cost(fixed, large, 0, 1)


@pytest.mark.parametrize("batch", [1, 6, 16])
def test_the_planners_tables_have_the_judges_figures(batch: int) -> None:
    problem = a_problem((80, 100, 150, 260, 700), batch=batch, layers=4)
    tables = Tables(problem)
    for part in (tables, tables.only([2, 0])):
        for a in range(4):
            occupancy, allowed = part.occupancy_from(a), part.allowed_from(a)
            for c, site in enumerate(part.sites):
                for b in range(a + 1, 5):
                    assert allowed[c, b] == (memory_bytes(problem, a, b) <= site.memory_bytes)
                    assert np.isclose(occupancy[c, b], stage_cost(problem, site, a, b).occupancy_ms)


@SETTINGS
@given(st.lists(st.sampled_from([66, 80, 130, 150, 200, 260]), min_size=1, max_size=3), st.sampled_from([1, 4, 6, 16]), st.booleans())
def test_throughput_is_the_best_flow_of_all_assignments(free: list[int], batch: int, partial: bool) -> None:
    problem = a_problem(tuple(free), batch=batch, partial_runs=partial)
    places = [site for node in problem.snapshot.nodes for site in sites(node)]
    runs = [
        [None, *((s, a, b) for a in range(3) for b in range(a + 1, 4) if memory_bytes(problem, a, b) <= s.memory_bytes)] for s in places
    ]
    best = max(flow_over([run for run in held if run], problem)[0] for held in product(*runs))
    answer = solve(problem, Limits(seconds=60))
    if best == 0:
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Solved)
    assert violations(answer.plan, problem) == ()
    assert answer.plan.value == pytest.approx(best)
    assert answer.optimal
    assert answer.plan.prediction is not None
    names = {node.name: next(iter(sites(node))).memory_bytes for node in problem.snapshot.nodes}
    stages = zip((s for pipeline in answer.plan.pipelines for s in pipeline.segments), answer.plan.prediction.stages, strict=True)
    assert all(stage.memory_bytes <= min(names[node] for node in segment.nodes) for segment, stage in stages)


def test_few_layers_on_a_node_can_be_worth_more_than_many() -> None:
    """Helix' point: a node that is full of weights has no room for a batch, so the plan leaves room where a fixed batch would not."""
    problem = a_problem((196, 196, 196), batch=16)
    found = solve(problem, Limits(seconds=60))
    assert isinstance(found, Solved)
    whole = flow_over([(site, 0, 3) for node in problem.snapshot.nodes for site in sites(node)], problem)[0]
    assert found.plan.value is not None
    assert found.plan.value > 1.5 * whole


def test_it_is_for_throughput_alone() -> None:
    problem = a_problem((300,))
    for change in ({"objective": Objective()}, {"slo": Slo(time_to_first_token_ms=5)}, {"constraints": Constraints(max_segments=2)}):
        with pytest.raises(ValidationError, match="batch_by_memory is for the throughput goal"):
            Problem.model_validate({**problem.model_dump(), **{name: value.model_dump() for name, value in change.items()}})
