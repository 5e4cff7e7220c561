"""Several chains at once, and throughput, against brute force on small problems."""

from collections.abc import Iterator
from itertools import combinations, product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitinference.core.cluster import Snapshot, Taint
from splitinference.core.cost import objective_value, violations
from splitinference.core.cost.check import double_booked
from splitinference.core.cost.evaluate import evaluate
from splitinference.core.cost.flow import flow_over
from splitinference.core.cost.site import sites
from splitinference.core.cost.stage import memory_bytes
from splitinference.core.plan import Pipeline, Plan, Segment
from splitinference.core.problem import Constraints, Goal, Objective, Pin, Problem, Slo, Toleration, TrustRule, Workload
from splitinference.core.solve import Infeasible, JointlySolved, Limits, Solved, SolverFailed, SolverProcess, solve_several_in_child
from splitinference.core.solve.apart import least_apart, least_sum_apart
from splitinference.core.solve.bottleneck import occupancy_of
from splitinference.core.solve.columns import alone, pipelines_of, pool, shared_stages
from splitinference.core.solve.dispatch import solve
from splitinference.core.solve.dual import uses_of
from splitinference.core.solve.joint import solve_in_turn, solve_jointly
from splitinference.core.solve.share import at_pace
from splitinference.core.solve.tables import Tables
from splitinference.core.solve.task import task_of
from tests.core.planner_problems import a_node, a_plan, a_profile, problems, single_goals

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def valid_chains(problem: Problem) -> Iterator[Pipeline]:
    """Every valid chain whose stages are on one or two nodes."""
    layers = len(problem.profile.layers)
    places = [(n.name, p.processor) for n in problem.snapshot.nodes for p in sites(n)]
    groups: list[tuple[tuple[str, ...], str]] = [((name,), processor) for name, processor in places]
    if problem.constraints.max_stage_nodes > 1:
        groups += [((a, b), p) for (a, p), (b, q) in combinations(places, 2) if p == q and a != b]

    def extend(done: tuple[Segment, ...], at: int) -> Iterator[Pipeline]:
        if at == layers:
            yield Pipeline(segments=done)
            return
        for names, processor in groups:
            if not any((n, processor) == (m, s.processor) for s in done for m in s.nodes for n in names):
                for end in range(at + 1, layers + 1):
                    segment = Segment(start=at, end=end, node=names[0], processor=processor, replicas=names[1:])
                    yield from extend((*done, segment), end)

    single = alone(problem)
    for chain in extend((), 0):
        if not violations(Plan(model_digest=problem.profile.digest, pipelines=(chain,)), single):
            yield chain


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


def two_models(free: tuple[int, ...], rate: float = 0.0) -> tuple[Problem, Problem]:
    snapshot = Snapshot(nodes=tuple(a_node(f"n{i}", free_mib=mib, gflops=100.0 / (i + 1)) for i, mib in enumerate(free)))
    load = Workload(max_context_tokens=256, requests_per_s=rate)
    return (
        Problem(profile=a_profile((60, 60)), snapshot=snapshot, workload=load),
        Problem(profile=a_profile((100, 100, 60)), snapshot=snapshot, workload=load),
    )


@SETTINGS
@given(st.lists(st.sampled_from([80, 150, 240, 330]), min_size=1, max_size=3), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5]))
def test_models_planned_jointly_share_the_nodes_at_the_least_sum(free: list[int], rate: float) -> None:
    one, other = two_models(tuple(free), rate)
    sums = []
    for a, b in product(valid_chains(one), valid_chains(other)):
        plans = tuple(Plan(model_digest="0" * 64, pipelines=(chain,)) for chain in (a, b))
        if not double_booked(plans, (one, other)):
            sums.append(objective_value(plans[0], one) + objective_value(plans[1], other))
    jointly, in_turn = solve_jointly((one, other)), solve_in_turn((one, other))
    if not sums:
        assert isinstance(jointly, Infeasible)
        assert isinstance(in_turn, Infeasible)
        return
    assert isinstance(jointly, JointlySolved)
    assert jointly.value == pytest.approx(min(sums), rel=1e-6)
    assert not double_booked(jointly.plans, (one, other))
    if isinstance(in_turn, JointlySolved):
        assert not double_booked(in_turn.plans, (one, other))
        assert in_turn.value >= jointly.value - 1e-6


def with_goals(both: tuple[Problem, Problem], goals: tuple[Objective, Objective], serving: str) -> tuple[Problem, Problem]:
    """The same problems on nodes that cost and draw something, each for a goal of its own; the second serves on one node."""
    snapshot = both[0].snapshot
    nodes = tuple(
        n.model_copy(update={"cost_per_hour": 1.0 + (i * 2) % 3, "idle_watts": 5.0, "busy_watts": 90.0 - 30 * i, "utilization": 0.1 * i})
        for i, n in enumerate(snapshot.nodes)
    )
    snapshot = snapshot.model_copy(update={"nodes": nodes})
    one, other = (p.model_copy(update={"snapshot": snapshot, "objective": goal}) for p, goal in zip(both, goals, strict=True))
    return one, other.model_copy(update={"serving": ((0, 3, serving),)})


def times_alone(value: float, alone: float) -> float:
    return value / alone if alone else value


def chain_goals() -> st.SearchStrategy[Objective]:
    goals = st.sampled_from([Goal.LATENCY, Goal.BOTTLENECK, Goal.ENERGY, Goal.COST, Goal.MOVE])
    return st.builds(Objective, goal=goals, utilization_weight=st.sampled_from([0.0, 0.0, 3.0]))


@SETTINGS
@given(
    st.lists(st.sampled_from([80, 150, 240, 330]), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.tuples(chain_goals(), chain_goals()).filter(lambda goals: goals[0].goal is not goals[1].goal),
)
def test_unlike_goals_are_planned_at_the_least_sum_of_times_of_what_each_reaches_alone(
    free: list[int], rate: float, goals: tuple[Objective, Objective]
) -> None:
    both = with_goals(two_models(tuple(free), rate), goals, f"n{len(free) - 1}")
    choices = [[Plan(model_digest="0" * 64, pipelines=(chain,)) for chain in valid_chains(problem)] for problem in both]
    alone = [min((objective_value(plan, p) for plan in plans), default=0.0) for plans, p in zip(choices, both, strict=True)]
    sums = [
        sum(times_alone(objective_value(plan, p), best) for plan, p, best in zip(plans, both, alone, strict=True))
        for plans in product(*choices)
        if not double_booked(plans, both)
    ]
    jointly, in_turn = solve_jointly(both), solve_in_turn(both)
    if not sums:
        assert isinstance(jointly, Infeasible)
        assert isinstance(in_turn, Infeasible)
        return
    assert isinstance(jointly, JointlySolved)
    assert jointly.alone == pytest.approx(tuple(alone), rel=1e-6)
    assert jointly.value == pytest.approx(min(sums), rel=1e-5)
    assert jointly.bound <= min(sums) + 1e-6
    assert jointly.optimal
    assert not double_booked(jointly.plans, both)
    if isinstance(in_turn, JointlySolved):
        assert in_turn.alone == pytest.approx(tuple(alone), rel=1e-6)
        assert not double_booked(in_turn.plans, both)
        assert in_turn.value >= jointly.value - 1e-6


def test_beyond_all_chains_planning_jointly_is_no_worse_than_in_turn_and_bounded() -> None:
    """Two models of twelve layers over eight nodes: more chains than are tried one by one."""
    nodes = tuple(a_node(f"n{i}", free_mib=300 + 40 * i, gflops=40.0 + 25 * i, gbps=4.0 + i, cost_per_hour=1.0 + i % 3) for i in range(8))
    one, other = (
        Problem(profile=a_profile((60,) * layers), snapshot=Snapshot(nodes=nodes), workload=Workload(max_context_tokens=256),
                objective=Objective(goal=goal))
        for layers, goal in ((12, Goal.LATENCY), (14, Goal.COST))
    )  # fmt: skip
    jointly = solve_jointly((one, other), Limits(seconds=60))
    assert isinstance(jointly, JointlySolved)
    assert not double_booked(jointly.plans, (one, other))
    assert 2.0 - 1e-6 <= jointly.bound <= jointly.value
    for both in ((one, other), (other, one)):
        in_turn = solve_in_turn(both, Limits(seconds=60))
        assert isinstance(in_turn, JointlySolved)
        assert jointly.value <= in_turn.value + 1e-6
    again = solve_jointly((one, other), Limits(seconds=60))
    assert isinstance(again, JointlySolved)
    assert [plan.revision for plan in again.plans] == [plan.revision for plan in jointly.plans]


def test_chains_that_come_to_no_end_are_not_counted_for_ever() -> None:
    """Nearly all nodes are needed to hold the model: nearly every way of short runs ends before the last layer."""
    nodes = tuple(a_node(f"n{i}", free_mib=140 if i else 400, gflops=50.0 + i) for i in range(16))
    problem = Problem(profile=a_profile((60,) * 33), snapshot=Snapshot(nodes=nodes), workload=Workload(max_context_tokens=64))
    assert not pool(problem, lambda: True).whole


def test_throughput_beside_another_goal_is_planned_in_turn_from_what_is_left() -> None:
    """The tokens per second are those of compute that the first model's requests leave; and nobody gets what the flow takes."""
    nodes = tuple(a_node(f"n{i}", free_mib=400, gflops=50.0 * (i + 1)) for i in range(3))
    load = Workload(prompt_tokens=16, output_tokens=16, max_context_tokens=64)
    flow = Problem(profile=a_profile((60, 60)), snapshot=Snapshot(nodes=nodes), workload=load, objective=Objective(goal=Goal.THROUGHPUT))
    busy = flow.model_copy(update={"objective": Objective(), "workload": load.model_copy(update={"requests_per_s": 1.0})})
    free = solve(flow)
    assert isinstance(free, Solved)
    answer = solve_in_turn((busy, flow))
    assert isinstance(answer, JointlySolved)
    beside = answer.plans[1].value
    assert free.plan.value is not None
    assert beside is not None
    assert 0 < beside < free.plan.value
    assert answer.alone[1] == pytest.approx(free.plan.value)
    assert answer.value == pytest.approx(1.0 + free.plan.value / beside)
    assert not double_booked(answer.plans, (busy, at_pace(flow, beside)))
    after = solve_in_turn((flow, busy))
    assert isinstance(after, Infeasible)
    assert after.reasons[0].name == "compute"
    assert "the models before it take the compute of n0, n1, n2" in after.reasons[0].message
    aside = Snapshot(nodes=(*nodes, a_node("aside", taints=(Taint(key="flow"),))))
    flow, busy = (p.model_copy(update={"snapshot": aside}) for p in (flow, busy))
    busy = busy.model_copy(update={"constraints": Constraints(tolerations=(Toleration(key="flow", operator="Exists"),))})
    after = solve_in_turn((flow, busy))
    assert isinstance(after, JointlySolved)
    assert after.plans[0].value == pytest.approx(free.plan.value)
    assert [s.node for s in after.plans[1].segments] == ["aside"]


def test_further_goals_are_kept_in_turn() -> None:
    nodes = (a_node("dear", cost_per_hour=3.0, gflops=400.0), *(a_node(f"n{i}", cost_per_hour=1.0, gflops=100.0 + i) for i in range(2)))
    first, second = (
        Problem(profile=a_profile((60, 60)), snapshot=Snapshot(nodes=nodes), objective=objective, workload=Workload(max_context_tokens=256))
        for objective in (Objective(goal=Goal.COST, then=(Goal.LATENCY,)), Objective())
    )
    answer = solve_in_turn((first, second))
    assert isinstance(answer, JointlySolved)
    assert [s.node for plan in answer.plans for s in plan.segments] == ["n1", "dear"]


def test_what_cannot_be_planned_jointly_is_said() -> None:
    one, other = two_models((300,))
    flow = other.model_copy(update={"objective": Objective(goal=Goal.THROUGHPUT)})
    with pytest.raises(ValueError, match="throughput is planned in turn, not jointly"):
        solve_jointly((one, flow))
    ordered = other.model_copy(update={"objective": Objective(then=(Goal.COST,))})
    with pytest.raises(ValueError, match="planned in turn, not jointly: the joint choice has one objective"):
        solve_jointly((one, ordered))


def test_problems_on_other_nodes_cannot_be_planned_together() -> None:
    one, _ = two_models((300,))
    _, other = two_models((400,))
    with pytest.raises(ValueError, match="same nodes"):
        solve_jointly((one, other))


def test_compute_that_one_model_takes_is_not_given_to_another() -> None:
    """Both would be quickest on the one fast node; its compute is enough for the requests of one of them."""
    nodes = (a_node("fast", free_mib=2000, gflops=200.0, gbps=20.0), a_node("slow", free_mib=2000))

    def where(rate: float, *, jointly: bool) -> list[str]:
        load = Workload(max_context_tokens=256, requests_per_s=rate)
        both = tuple(Problem(profile=a_profile((120,)), snapshot=Snapshot(nodes=nodes), workload=load) for _ in range(2))
        answer = (solve_jointly if jointly else solve_in_turn)(both)
        assert isinstance(answer, JointlySolved)
        assert not double_booked(answer.plans, both)
        return sorted(plan.segments[0].node for plan in answer.plans)

    busy = next(
        iter(evaluate(a_plan("fast[0:1]"), Problem(profile=a_profile((120,)), snapshot=Snapshot(nodes=nodes))).load.busy_ms.values())
    )
    for jointly in (True, False):
        assert where(0.0, jointly=jointly) == ["fast", "fast"]
        assert where(0.6 * 1e3 / busy, jointly=jointly) == ["fast", "slow"]


def test_each_of_several_models_keeps_its_own_selection_of_nodes() -> None:
    nodes = (a_node("a", labels={"for": "one"}, free_mib=600), a_node("b", labels={"for": "other"}, free_mib=600))
    one, other = (
        Problem(profile=a_profile((60, 60)), snapshot=Snapshot(nodes=nodes), constraints=Constraints(node_selector={"for": name}))
        for name in ("one", "other")
    )
    other = other.model_copy(update={"snapshot": Snapshot(nodes=nodes[1:])})
    answer = solve_jointly((one, other))
    assert isinstance(answer, JointlySolved)
    assert [plan.segments[0].node for plan in answer.plans] == ["a", "b"]


def test_several_models_are_planned_in_the_process_as_here() -> None:
    both = two_models((330, 330, 240))
    with SolverProcess() as process:
        for jointly, ask in ((True, solve_jointly), (False, solve_in_turn)):
            there, here = process.solve_several(both, jointly=jointly), ask(both)
            assert isinstance(there, JointlySolved)
            assert isinstance(here, JointlySolved)
            assert [plan.revision for plan in there.plans] == [plan.revision for plan in here.plans]
        with pytest.raises(ValueError, match="same nodes"):
            process.solve_several((both[0], two_models((400,))[0]), jointly=True)
    with pytest.raises(SolverFailed):
        solve_several_in_child(both, Limits(seconds=5, memory_mib=8), jointly=True)


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
