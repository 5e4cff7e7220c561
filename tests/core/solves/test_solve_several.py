"""Several chains at once, and throughput, against brute force on small problems."""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.cost import objective_value, violations
from splitinference.core.cost.flow import flow_over
from splitinference.core.cost.site import sites
from splitinference.core.cost.stage import memory_bytes
from splitinference.core.planner import Infeasible, Limits, Solved
from splitinference.core.planner.bottleneck.bottleneck import occupancy_of
from splitinference.core.planner.chain.bounds.dual import uses_of
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.chain.task import task_of
from splitinference.core.planner.columns.columns import alone, pipelines_of, shared_stages
from splitinference.core.planner.columns.disjoint import least_apart, least_sum_apart
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import Snapshot, Taint
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Goal, Objective, Pin, Problem, Slo, TrustRule, Workload
from tests.core.planner_problems import a_node, a_profile, problems, single_goals, valid_chains
from tests.examples import examples

SETTINGS = examples(40)


@SETTINGS
@given(
    problems(single_goals(), layers=3, nodes=3),
    st.sampled_from([(2, 1, True), (2, 1, False), (1, 2, True), (2, 2, False)]),
)
def test_pipelines_and_shared_stages_are_as_good_as_brute_force(problem: Problem, shape: tuple[int, int, bool]) -> None:
    wanted = {"pipelines": shape[0], "max_stage_nodes": shape[1], "disjoint_pipelines": shape[2]}
    problem = problem.model_copy(update={"constraints": problem.constraints.model_copy(update=wanted)})
    values = []
    for chosen in combinations(valid_chains(problem), shape[0]):
        pipelines = tuple(chain.model_copy(update={"share": 1 / len(chosen)}) for chain in chosen)
        plan = Plan(model_digest=problem.profile.digest, pipelines=pipelines)
        if not violations(plan, problem):
            values.append(objective_value(plan, problem))
    answer = solve(problem, Limits(seconds=60))
    if not values:
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Solved)
    assert answer.plan.value == pytest.approx(min(values), rel=1e-5, abs=1e-6)
    assert answer.bound <= min(values) + 1e-6
    assert violations(answer.plan, problem) == ()


@SETTINGS
@given(problems(st.sampled_from([Goal.LATENCY, Goal.BOTTLENECK]).map(lambda goal: Objective(goal=goal)), layers=3, nodes=4))
def test_two_chains_apart_are_bounded_and_share_no_place(problem: Problem) -> None:
    wanted = {"pipelines": 2, "min_segments": 1, "max_segments": None, "max_nodes": None, "utilization_ceiling": None}
    problem = problem.model_copy(update={"constraints": problem.constraints.model_copy(update=wanted), "slo": Slo(), "serving": ()})
    tables = Tables(alone(problem))
    if not tables.count or tables.shares_node.any():
        return
    values = []
    for chosen in combinations(valid_chains(problem), 2):
        if {s.node for s in chosen[0].segments} & {s.node for s in chosen[1].segments}:
            continue
        plan = Plan(model_digest=problem.profile.digest, pipelines=tuple(chain.model_copy(update={"share": 0.5}) for chain in chosen))
        if not violations(plan, problem):
            values.append(objective_value(plan, problem))
    least, task = min(values, default=float("inf")), task_of(tables)
    if problem.objective.goal is Goal.LATENCY:
        assert least_sum_apart(task, 2, lambda: False) <= least * (1 + 1e-9)
        return
    found = least_apart(task, 2, lambda: False)
    assert found.bound <= least * (1 + 1e-9)
    if found.chains is not None:
        assert max(occupancy_of(task, chain) for chain in found.chains) >= least * (1 - 1e-9)
        uses = sum(uses_of(task, chain) for chain in found.chains)
        assert (uses <= tables.multiplicity).all()


@SETTINGS
@given(problems(st.just(Objective(goal=Goal.BOTTLENECK)), layers=3, nodes=3), st.sampled_from([1, 2]))
def test_stages_on_two_nodes_are_bounded_and_share_no_place(problem: Problem, copies: int) -> None:
    wanted = {"pipelines": copies, "max_stage_nodes": 2, "utilization_ceiling": None}
    problem = problem.model_copy(update={"constraints": problem.constraints.model_copy(update=wanted)})
    tables = Tables(alone(problem))
    if not tables.count:
        return
    values = []
    for chosen in combinations(valid_chains(problem), copies):
        plan = Plan(model_digest=problem.profile.digest, pipelines=tuple(c.model_copy(update={"share": 1 / copies}) for c in chosen))
        if not violations(plan, problem):
            values.append(objective_value(plan, problem))
    least = min(values, default=float("inf"))
    found = shared_stages(tables, problem, lambda: False)
    assert found.bound <= least * (1 + 1e-9)
    if found.chains is not None:
        pipelines = tuple(p.model_copy(update={"share": 1 / copies}) for p in pipelines_of(tables, found.chains))
        plan = Plan(model_digest=problem.profile.digest, pipelines=pipelines)
        assert (
            violations(plan, problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"max_nodes": None})})) == ()
        )
        assert objective_value(plan, problem) >= least * (1 - 1e-9)


def throughput_problem(free: tuple[int, ...], *, partial: bool, layers: int = 3) -> Problem:
    nodes = tuple(a_node(f"n{i}", free_mib=mib, gflops=50.0 * (i + 1)) for i, mib in enumerate(free))
    return Problem(
        profile=a_profile((60,) * layers),
        snapshot=Snapshot(nodes=nodes),
        workload=Workload(prompt_tokens=16, output_tokens=16, max_context_tokens=64),
        objective=Objective(goal=Goal.THROUGHPUT),
        constraints=Constraints(partial_runs=partial),
    )


@SETTINGS
@given(st.lists(st.sampled_from([70, 140, 210]), min_size=1, max_size=3), st.booleans(), st.sampled_from([None, None, 1, 2]))
def test_throughput_is_the_best_flow_of_all_assignments(free: list[int], partial: bool, most: int | None) -> None:
    problem = throughput_problem(tuple(free), partial=partial)
    problem = problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"max_nodes": most})})
    places = [site for node in problem.snapshot.nodes for site in sites(node)]
    runs = [
        [None, *((s, a, b) for a in range(3) for b in range(a + 1, 4) if memory_bytes(problem, a, b) <= s.memory_bytes)] for s in places
    ]
    able = [held for held in product(*runs) if most is None or sum(run is not None for run in held) <= most]
    best = max(flow_over([r for r in held if r], problem)[0] for held in able)
    answer = solve(problem, Limits(seconds=60))
    if best == 0:
        assert isinstance(answer, Infeasible)
        return
    assert isinstance(answer, Solved)
    assert answer.plan.value == pytest.approx(best)
    assert answer.optimal
    assert sum(p.share for p in answer.plan.pipelines) == pytest.approx(1.0)


def test_a_large_throughput_plan_is_within_its_bound() -> None:
    problem = throughput_problem((300, 300, 300, 600, 600, 200, 200, 200, 200), partial=False, layers=12)
    answer = solve(problem, Limits(seconds=60))
    assert isinstance(answer, Solved)
    assert violations(answer.plan, problem) == ()
    assert answer.plan.value is not None
    assert 0.5 * answer.bound < answer.plan.value <= answer.bound


def test_throughput_on_a_few_of_many_nodes_keeps_every_rule() -> None:
    """Pins, trust, split points, a selector and a limit on nodes, all at once, on more places than are tried one by one."""
    nodes = tuple(
        a_node(f"n{i}", free_mib=400, gflops=50.0 + 10 * i, labels={"for": "us", **({"trusted": "yes"} if i < 4 else {})})
        for i in range(10)
    )
    strangers = (
        a_node("stranger", free_mib=4000, gflops=5000.0),
        a_node("tainted", free_mib=4000, labels={"for": "us"}, taints=(Taint(key="x"),)),
    )
    wanted = Constraints(
        max_nodes=6,
        split_points=(3, 6, 9),
        trust=(TrustRule(start=0, end=1, labels={"trusted": "yes"}),),
        pins=(Pin(start=11, end=12, node="n9"),),
        node_selector={"for": "us"},
    )
    problem = throughput_problem((100,), partial=False, layers=12).model_copy(
        update={"snapshot": Snapshot(nodes=(*nodes, *strangers)), "constraints": wanted}
    )
    answer = solve(problem, Limits(seconds=60))
    assert isinstance(answer, Solved)
    assert violations(answer.plan, problem) == ()
    assert len({name for s in answer.plan.segments for name in s.nodes}) <= 6
    assert answer.plan.value is not None
    assert answer.plan.value <= answer.bound
    more = solve(problem.model_copy(update={"constraints": wanted.model_copy(update={"max_nodes": None})}), Limits(seconds=60))
    assert isinstance(more, Solved)
    assert more.plan.value is not None
    assert more.plan.value >= answer.plan.value


def test_a_stage_on_two_weak_nodes_passes_more_than_on_one() -> None:
    nodes = tuple(a_node(f"n{i}", free_mib=500, gflops=20.0) for i in range(3))
    problem = Problem(
        profile=a_profile((200,)), snapshot=Snapshot(nodes=nodes), workload=Workload(max_context_tokens=256),
        objective=Objective(goal=Goal.BOTTLENECK),
    )  # fmt: skip
    alone_there = solve(problem)
    shared = solve(problem.model_copy(update={"constraints": Constraints(max_stage_nodes=3)}))
    assert isinstance(alone_there, Solved)
    assert isinstance(shared, Solved)
    assert alone_there.plan.value is not None
    assert shared.plan.value == pytest.approx(alone_there.plan.value / 3, rel=1e-6)
    assert len(shared.plan.segments[0].nodes) == 3
