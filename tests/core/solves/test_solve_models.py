"""Several models at once, jointly and in turn, against brute force on small problems."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.cost import objective_value
from splitinference.core.cost.checks.violations import double_booked
from splitinference.core.cost.evaluate import evaluate
from splitinference.core.planner import Infeasible, JointlySolved, Limits, Solved, SolverError, SolverProcess, solve_several_in_child
from splitinference.core.planner.columns.columns import pool
from splitinference.core.planner.columns.share import at_pace
from splitinference.core.planner.joint import solve_in_turn, solve_jointly
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import Snapshot, Taint
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem, Toleration, Workload
from tests.core.planner_problems import a_node, a_plan, a_profile, valid_chains
from tests.examples import examples

SETTINGS = examples(40)
PATIENT = Limits(seconds=300)
"""So long that a busy machine changes no answer; none of these needs a second on a quiet one."""


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
    jointly, in_turn = solve_jointly((one, other), PATIENT), solve_in_turn((one, other), PATIENT)
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
    jointly, in_turn = solve_jointly(both, PATIENT), solve_in_turn(both, PATIENT)
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
    with pytest.raises(SolverError):
        solve_several_in_child(both, Limits(seconds=5, memory_mib=8), jointly=True)
