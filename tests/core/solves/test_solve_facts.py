"""What the planner promises beyond being best: reasons when there is no plan, keeping, order, monotony, its own process."""

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.cost import violations
from splitinference.core.planner import Infeasible, Limits, Solved, SolverError, SolverProcess, solve_in_child
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import Link, LinkQuality, Network, Snapshot, Taint
from splitinference.core.values.problem import Constraints, Goal, Objective, Pin, Problem, Slo, TrustRule, Workload
from tests.core.planner_problems import MIB, a_node, a_plan, a_profile, problems, single_goals
from tests.examples import examples

SETTINGS = examples(40)


def a_problem(free: tuple[int, ...] = (250, 250, 250), **more: object) -> Problem:
    nodes = tuple(a_node(f"n{i}", free_mib=mib) for i, mib in enumerate(free))
    base = {"profile": a_profile(), "snapshot": Snapshot(nodes=nodes), "workload": Workload(max_context_tokens=256)}
    return Problem.model_validate({**base, **more})


def reasons(problem: Problem) -> dict[str, tuple[str, str]]:
    answer = solve(problem)
    assert isinstance(answer, Infeasible)
    return {reason.name: (reason.message, reason.relaxation) for reason in answer.reasons}


def solved(problem: Problem, hint: str | None = None) -> Solved:
    answer = solve(problem, Limits(seconds=60), a_plan(hint) if hint else None)
    assert isinstance(answer, Solved)
    return answer


def test_no_nodes_is_said() -> None:
    assert "no node" in reasons(a_problem(()))["nodes"][0]


def test_memory_is_named_with_what_is_missing() -> None:
    message, relaxation = reasons(a_problem((120, 120)))["memory"]
    assert "240 MiB free" in message
    mib = int(relaxation.split()[0])
    assert isinstance(solve(a_problem((120 + mib, 120 + mib))), Solved)
    assert isinstance(solve(a_problem((119 + mib - 1, 119 + mib - 1))), Infeasible)


def test_a_layer_larger_than_any_node_is_named() -> None:
    message, _ = reasons(a_problem((90, 90, 90, 90, 90, 90)))["memory"]
    assert "layer 1 (layer 1) alone needs 111 MiB" in message


def test_contradicting_pins_are_named() -> None:
    pins = (Pin(start=0, end=3, node="n0"), Pin(start=2, end=4, node="n1"))
    message, _ = reasons(a_problem(constraints=Constraints(pins=pins)))["pins"]
    assert message == "layers [2, 3) are pinned to n0 and to n1"


def test_trust_that_no_node_has_is_named() -> None:
    rule = TrustRule(start=0, end=1, labels={"trusted": "yes"})
    message, relaxation = reasons(a_problem(constraints=Constraints(trust=(rule,))))["trust"]
    assert "trusted=yes" in message
    assert "0 of 3 nodes carry" in message
    assert relaxation == "without the one for layers [0, 1)"


def test_the_least_time_that_can_be_kept_is_said() -> None:
    best = solved(a_problem()).plan.prediction
    assert best is not None
    relaxation = reasons(a_problem(slo=Slo(time_per_output_token_ms=1.0)))["slo-time-per-output-token"][1]
    assert float(relaxation.split()[0]) == pytest.approx(best.time_per_output_token_ms, rel=0.01)


def test_too_few_nodes_and_segments_are_counted() -> None:
    assert reasons(a_problem(constraints=Constraints(max_nodes=1)))["max-nodes"][1] == "max_nodes 3 instead of 1"
    assert reasons(a_problem(constraints=Constraints(max_segments=1)))["max-segments"][1] == "max_segments 3 instead of 1"
    assert reasons(a_problem(constraints=Constraints(min_segments=5)))["min-segments"][1] == "min_segments 3 instead of 5"


def test_nodes_that_may_not_be_used_are_named_with_why() -> None:
    nodes = (a_node("x", ready=False), a_node("y", taints=(Taint(key="gpu", value="yes"),)))
    message, relaxation = reasons(a_problem(snapshot=Snapshot(nodes=nodes)))["nodes"]
    assert "x: not ready" in message
    assert "y: taint gpu=yes:NoSchedule is not tolerated" in message
    assert relaxation == "admit x (not ready)"


def test_disconnected_nodes_are_named() -> None:
    dead = LinkQuality(bandwidth_bytes_per_s=1.0, rtt_ms=0.1)
    network = Network(default=dead)
    snapshot = a_problem().snapshot.model_copy(update={"network": network})
    message, relaxation = reasons(a_problem(snapshot=snapshot, constraints=Constraints(min_bandwidth_bytes_per_s=1e6)))["min-bandwidth"]
    assert message == "links need 1000000 B/s"
    assert relaxation == "1 B/s instead of 1000000 B/s"


def test_two_constraints_in_the_way_are_named_together() -> None:
    rule = TrustRule(start=0, end=1, labels={"trusted": "yes"})
    found = reasons(a_problem(constraints=Constraints(trust=(rule,), max_nodes=1)))
    assert set(found) == {"trust", "max-nodes"}
    assert found["trust"][1] == "only together: relax max-nodes and trust"


def test_a_model_that_fits_on_one_node_is_not_split() -> None:
    answer = solved(a_problem((1000, 1000)))
    assert len(answer.plan.segments) == 1
    assert any(line.startswith("one segment: the whole model needs") for line in answer.explanation)


def test_of_equally_good_plans_the_one_in_service_stays() -> None:
    for hint in ("n0[0:5]", "n2[0:5]"):
        assert solved(a_problem((1000, 1000, 1000)), hint).plan.revision == a_plan(hint).revision


def test_the_same_problem_gets_the_same_plan() -> None:
    assert solved(a_problem()).plan == solved(a_problem()).plan


def test_every_node_is_spoken_of_and_unknown_utilization_is_said() -> None:
    text = "\n".join(solved(a_problem()).explanation)
    assert all(f"n{i}" in text for i in range(3))
    assert "is unknown: counted as idle" in text


def test_cheapest_that_keeps_the_slo() -> None:
    nodes = (a_node("dear", gflops=1000, gbps=100, cost_per_hour=5.0), a_node("cheap", cost_per_hour=1.0))
    snapshot, objective = Snapshot(nodes=nodes), Objective(goal=Goal.COST, then=(Goal.LATENCY,))
    relaxed = solved(a_problem(snapshot=snapshot, objective=objective))
    strict = solved(a_problem(snapshot=snapshot, objective=objective, slo=Slo(time_per_output_token_ms=20)))
    assert [s.node for s in relaxed.plan.segments] == ["cheap"]
    assert "dear" in {s.node for s in strict.plan.segments}


@SETTINGS
@given(problems(single_goals(), layers=4, nodes=3), st.integers(0, 2))
def test_more_capacity_is_never_worse(problem: Problem, which: int) -> None:
    before = solve(problem, Limits(seconds=60))
    nodes = list(problem.snapshot.nodes)
    node = nodes[which % len(nodes)]
    processors = tuple(p.model_copy(update={"memory_free_bytes": p.memory_free_bytes * 2}) for p in node.processors)
    nodes[which % len(nodes)] = node.model_copy(update={"memory_free_bytes": node.memory_free_bytes * 2, "processors": processors,
                                                        "memory_bandwidth_bytes_per_s": node.memory_bandwidth_bytes_per_s * 2})  # fmt: skip
    after = solve(problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": tuple(nodes)})}), Limits(seconds=60))
    if isinstance(before, Solved):
        assert isinstance(after, Solved)
        assert before.plan.value is not None
        assert after.plan.value is not None
        assert after.plan.value <= before.plan.value * (1 + 1e-6) + 1e-9


@SETTINGS
@given(problems(single_goals(), layers=4, nodes=4), st.randoms(use_true_random=False))
def test_the_order_of_nodes_changes_nothing_but_names(problem: Problem, source: object) -> None:
    nodes = list(problem.snapshot.nodes)
    source.shuffle(nodes)  # type: ignore[attr-defined]
    other = problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": tuple(nodes)})})
    one, two = solve(problem, Limits(seconds=60)), solve(other, Limits(seconds=60))
    assert type(one) is type(two)
    if isinstance(one, Solved) and isinstance(two, Solved):
        assert one.plan.value == pytest.approx(two.plan.value, rel=1e-6, abs=1e-9)


def test_the_process_gives_the_same_answer_and_stays_for_the_next() -> None:
    here = solved(a_problem())
    with SolverProcess() as process:
        for _ in range(2):
            there = process.solve(a_problem())
            assert isinstance(there, Solved)
            assert there.plan == here.plan


def test_the_process_gives_way_as_much_as_it_is_told_to() -> None:
    with SolverProcess(niceness=3) as process:
        assert isinstance(process.solve(a_problem()), Solved)
        assert process._process is not None
        assert os.getpriority(os.PRIO_PROCESS, process._process.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)


def test_too_little_memory_for_the_process_is_a_failure_in_words() -> None:
    with pytest.raises(SolverError):
        solve_in_child(a_problem(), Limits(seconds=5, memory_mib=8))


def test_large_clusters_are_proven() -> None:
    quality = LinkQuality(bandwidth_bytes_per_s=1e7, rtt_ms=3.0)
    zones = tuple(Link(source=a, target=b, quality=quality) for a, b in (("x", "y"), ("y", "x")))
    nodes = tuple(
        a_node(f"n{i}", free_mib=150 + i % 5 * 40, gflops=50 + i % 7 * 30, utilization=(i * 37 % 60) / 100, zone="xy"[i % 2])
        for i in range(60)
    )
    for goal in (Goal.LATENCY, Goal.BOTTLENECK):
        problem = Problem(
            profile=a_profile((40, *((60,) * 22), 50)), snapshot=Snapshot(nodes=nodes, network=Network(zones=zones)),
            workload=Workload(max_context_tokens=256), objective=Objective(goal=goal),
        )  # fmt: skip
        answer = solved(problem)
        assert answer.optimal
        assert violations(answer.plan, problem) == ()
        assert not math.isinf(answer.bound)


def test_memory_in_use_is_not_offered_twice() -> None:
    problem = a_problem((500,))
    assert [s.memory_bytes <= 500 * MIB for s in solved(problem).plan.prediction.stages] == [True]  # type: ignore[union-attr]
