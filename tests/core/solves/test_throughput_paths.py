"""Throughput under the SLO and limits on segments: each path keeps them, and the paths together carry as much as brute force finds."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ortools.linear_solver.python import model_builder

from splitinference.core.cost import objective_value, violations
from splitinference.core.cost.evaluate import evaluate
from splitinference.core.planner import Infeasible, Limits, Solved
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import Link, LinkQuality, Network, Snapshot
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem, Slo, Workload
from tests.core.planner_problems import a_node, a_profile, all_chains
from tests.core.solves.test_throughput_mixes import unequal
from tests.examples import examples

THIN = LinkQuality(bandwidth_bytes_per_s=3e6, rtt_ms=40.0)
WIDE = LinkQuality(bandwidth_bytes_per_s=1e9, rtt_ms=0.2)


def small(free_mib: list[int], gbps: list[float], slow: list[tuple[int, int]], slo: Slo, most: int | None = None) -> Problem:
    nodes = tuple(a_node(f"n{k}", free_mib=free, gbps=speed) for k, (free, speed) in enumerate(zip(free_mib, gbps, strict=True)))
    links = tuple(Link(source=f"n{a}", target=f"n{b}", quality=THIN) for a, b in slow if a != b)
    return Problem(
        profile=a_profile((60, 60, 60)),
        snapshot=Snapshot(nodes=nodes, network=Network(default=WIDE, links=links)),
        workload=Workload(prompt_tokens=16, output_tokens=8, max_context_tokens=256),
        objective=Objective(goal=Goal.THROUGHPUT),
        constraints=Constraints(max_segments=most),
        slo=slo,
    )


def best_by_brute_force(problem: Problem) -> float | None:
    """Tokens per second of the best choice of one run for each place, over all paths that keep their limits; None if there is none."""
    single = problem.model_copy(update={"objective": Objective(goal=Goal.LATENCY)})
    usable = [c for c in all_chains(single) if not violations(Plan(model_digest=problem.profile.digest, pipelines=(c,)), single)]
    layers, names = len(problem.profile.layers), [node.name for node in problem.snapshot.nodes]
    runs = [None, *((a, b) for a in range(layers) for b in range(a + 1, layers + 1))]
    taken = {chain: evaluate(Plan(model_digest=problem.profile.digest, pipelines=(chain,)), problem).load for chain in usable}
    best: float | None = None
    for chosen in product(runs, repeat=len(names)):
        holds = dict(zip(names, chosen, strict=True))
        paths = [c for c in usable if all(holds[s.node] == (s.start, s.end) for s in c.segments)]
        if not paths:
            continue
        model = model_builder.Model()
        flow = [model.new_num_var(0.0, math.inf, "") for _ in paths]
        rows: dict[object, list[tuple[model_builder.Variable, float]]] = {}
        for variable, path in zip(flow, paths, strict=True):
            for key, ms in (*taken[path].place_ms.items(), *taken[path].link_ms.items()):
                rows.setdefault(key, []).append((variable, ms))
        for terms in rows.values():
            model.add(model_builder.LinearExpr.weighted_sum([v for v, _ in terms], [ms for _, ms in terms]) <= 1.0)
        model.maximize(model_builder.LinearExpr.sum(flow))
        solver = model_builder.Solver("glop")
        assert solver.solve(model) == model_builder.SolveStatus.OPTIMAL
        best = max(best or 0.0, 1e3 * problem.workload.batch * solver.objective_value)
    return best


@examples(40)
@given(
    st.lists(st.sampled_from([90, 150, 400]), min_size=3, max_size=3),
    st.lists(st.sampled_from([5.0, 20.0, 50.0]), min_size=3, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=3),
    st.sampled_from([Slo(time_per_output_token_ms=t) for t in (10.0, 20.0, 45.0, 80.0)] + [Slo(time_to_first_token_ms=60.0)]),
    st.sampled_from([None, None, 2]),
)
def test_it_carries_what_brute_force_finds(
    free_mib: list[int], gbps: list[float], slow: list[tuple[int, int]], slo: Slo, most: int | None
) -> None:
    problem = small(free_mib, gbps, slow, slo, most)
    expected, answer = best_by_brute_force(problem), solve(problem, Limits(seconds=60))
    if expected is None:
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Solved)
    assert violations(answer.plan, problem) == ()
    assert answer.plan.value == pytest.approx(expected, rel=1e-5)
    assert answer.optimal
    assert answer.bound >= expected * (1 - 1e-6)


def test_a_path_that_breaks_the_slo_carries_nothing() -> None:
    """One node holds all; each hop takes 40 ms. Without the SLO three nodes carry most, with it one node alone does."""
    everywhere = [(a, b) for a in range(3) for b in range(3)]
    problem = small([400, 90, 150], [20.0, 20.0, 20.0], everywhere, Slo())
    free = solve(problem, Limits(seconds=60))
    tight = solve(problem.model_copy(update={"slo": Slo(time_per_output_token_ms=25.0)}), Limits(seconds=60))
    assert isinstance(free, Solved)
    assert isinstance(tight, Solved)
    assert {s.node for s in free.plan.segments} == {"n0", "n1", "n2"}
    assert {s.node for s in tight.plan.segments} == {"n0"}
    assert tight.plan.value is not None
    assert free.plan.value is not None
    assert tight.plan.value < free.plan.value


def test_many_places_keep_the_slo_and_stay_under_the_bound() -> None:
    loose = unequal(12)
    plain = solve(loose, Limits(seconds=60))
    assert isinstance(plain, Solved)
    quickest = solve(loose.model_copy(update={"objective": Objective(goal=Goal.LATENCY)}), Limits(seconds=60))
    assert isinstance(quickest, Solved)
    assert quickest.plan.prediction is not None
    limit = 1.15 * quickest.plan.prediction.time_per_output_token_ms
    problem = loose.model_copy(update={"slo": Slo(time_per_output_token_ms=limit)})
    answer = solve(problem, Limits(seconds=60))
    assert isinstance(answer, Solved)
    assert violations(answer.plan, problem) == ()
    assert answer.plan.value == objective_value(answer.plan, problem)
    assert answer.plan.value is not None
    assert plain.plan.value is not None
    assert answer.plan.value <= answer.bound * (1 + 1e-9)
    alone = Plan(model_digest=loose.profile.digest, pipelines=quickest.plan.pipelines)
    assert answer.plan.value >= objective_value(alone, problem), "the quickest chain alone keeps the SLO too"


def test_an_slo_that_nothing_keeps_is_said() -> None:
    answer = solve(unequal(24).model_copy(update={"slo": Slo(time_per_output_token_ms=0.01)}), Limits(seconds=60))
    assert isinstance(answer, Infeasible)
    assert any("output token" in reason.message or "slo" in reason.name for reason in answer.reasons), answer.reasons


def test_the_judge_counts_only_the_paths_that_a_plan_names() -> None:
    problem = small([400, 400, 400], [20.0, 20.0, 20.0], [], Slo(time_per_output_token_ms=100.0))
    one = Plan(model_digest=problem.profile.digest, pipelines=(Pipeline(segments=(Segment(start=0, end=3, node="n0"),)),))
    both = Plan(
        model_digest=problem.profile.digest,
        pipelines=tuple(Pipeline(segments=(Segment(start=0, end=3, node=n),), share=0.5) for n in ("n0", "n1")),
    )
    assert objective_value(both, problem) == pytest.approx(2 * objective_value(one, problem))
