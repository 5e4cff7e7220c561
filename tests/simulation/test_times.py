"""The simulation's times are the cost model's, and EdgeShard's programme finds what it is published to find."""

import pytest

from splitinference.core.cost import predict
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import LinkQuality, Network
from splitinference.core.values.problem import Workload
from splitinference.core.values.result import Infeasible, Limits, Solved
from splitinference.simulation.edgeshard import edgeshard
from splitinference.simulation.policies import PolicyName
from splitinference.simulation.run import simulate
from splitinference.simulation.traces.trace import Serving, UpEvent, UtilizationEvent
from tests.core.planning import a_node, a_problem, all_plans
from tests.simulation.traces import a_trace

LIMITS = Limits(seconds=60)


def test_a_sequence_alone_takes_what_is_predicted():
    """One request in many minutes meets no queue: the first token and each further one take what the cost model says of the plan."""
    trace = a_trace(rate=0.002, minutes=200).model_copy(update={"lengths_spread": 0.0})
    planned = solve(trace.problem, LIMITS)
    assert isinstance(planned, Solved)
    report = simulate(trace, PolicyName.STATIC, 1)
    expected = predict(planned.plan, trace.problem)
    assert report.completed > 5
    assert report.first_token_ms.p50 == pytest.approx(expected.time_to_first_token_ms, abs=0.01)
    assert report.output_token_ms.p95 == pytest.approx(expected.time_per_output_token_ms, abs=0.01)


def test_requests_that_come_together_wait_for_each_other():
    few, many = (simulate(a_trace(rate=rate), PolicyName.STATIC, 1) for rate in (0.05, 1.5))
    assert few.latency_ms.p95 is not None
    assert many.latency_ms.p95 is not None
    assert many.latency_ms.p95 > 1.5 * few.latency_ms.p95


def test_what_others_take_is_seen_in_times_and_utilization():
    idle, busy = (
        simulate(a_trace(), PolicyName.STATIC, 1),
        simulate(a_trace(UtilizationEvent(at_s=0, node="a", value=0.9)), PolicyName.STATIC, 1),
    )
    assert busy.output_token_ms.p50 > 3 * idle.output_token_ms.p50
    assert busy.utilization_busiest_p95 > 0.9 > idle.utilization_busiest_p95


def test_edgeshard_finds_the_chain_with_the_quickest_token():
    """As the published programme: the time of one token over all placements of layers, the judge's own word on it."""
    slow = Network(default=LinkQuality(bandwidth_bytes_per_s=1e6, rtt_ms=2.0))
    nodes = (a_node("a", mib=1200, gflops=50), a_node("b", mib=900, gflops=80), a_node("c", mib=250, gflops=200))
    problem = a_problem(*nodes, network=slow, workload=Workload(prompt_tokens=1))
    found = edgeshard(problem, LIMITS)
    assert isinstance(found, Solved)
    each = predict(found.plan, problem).time_per_output_token_ms
    valid = (plan for plan in all_plans(problem) if all(s.end - s.start <= 2 or s.node != "c" for s in plan.segments))
    assert each == pytest.approx(min(predict(plan, problem).time_per_output_token_ms for plan in valid))


def test_edgeshard_begins_where_requests_enter():
    nodes = (a_node("a", mib=250), a_node("b", mib=900, gflops=900))
    problem = a_problem(*nodes, network=Network(default=LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=0.5), ingress="a"))
    found = edgeshard(problem, LIMITS)
    assert isinstance(found, Solved)
    assert found.plan.segments[0].node == "a"


def test_edgeshard_without_room_is_infeasible():
    assert isinstance(edgeshard(a_problem(a_node("a", mib=300)), LIMITS), Infeasible)


def test_a_start_on_a_busy_node_takes_what_is_predicted_of_it():
    """a dies, and only c can take its place: the requests of these nodes wait for its start, on an idle core or on half of one."""

    def longest_gap(busy: float) -> float:
        trace = a_trace(
            UtilizationEvent(at_s=0, node="c", value=busy), UpEvent(at_s=300, node="a", value=False), nodes=3, untrusted="b", rate=1.0
        )
        report = simulate(trace, PolicyName.STATIC, 1)
        assert report.failed == 0
        return report.longest_gap_s

    start = Serving().start
    idle, half = (start.server_s(node) + start.load_s(node, 200 * 2**20) for node in (a_node("c", utilization=busy) for busy in (0.0, 0.5)))
    assert half - idle > 5
    assert longest_gap(0.5) - longest_gap(0.0) == pytest.approx(half - idle, abs=2.5), "a pass a second, and slower prefills"
