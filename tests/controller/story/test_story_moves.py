"""Stories of optional moves: a busy node is left, with numbers; what is in flight is waited for; what could not arrive is not begun."""

from datetime import timedelta
from typing import Any

import pytest

from splitinference.controller.ports import Sample, Samples
from splitinference.core.planner import solve
from tests.controller.stories import busy_node, reasons, serving, small
from tests.controller.world import Operator, World, a_body, a_node, seen_traffic


def test_a_busy_node_is_left_and_the_message_has_the_numbers():
    world, operator = serving()
    node, before = busy_node(world), world.segments()
    world.busy[node] = 0.93
    operator.run(12)
    newest = world.status()["decisions"][0]
    assert newest["reason"] == "UtilizationShifted"
    assert newest["transition"] == "migration"
    assert f"stage 1 on {node}: 93 % used by others for 20 s (limit 70 %)" in newest["message"]
    assert f"{node}[" not in world.placement()
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Progressing")["status"] == "False"
    assert len(set(before) & set(world.segments())) == 1, "the segment that stayed was touched"
    assert len(world.segments()) == 2
    assert len(world.routes_seen) == 2, "one cutover for one move"


def test_the_same_story_with_the_solver_itself():
    world = World(small("a", "b", "c"))
    world.add(a_body())
    operator = Operator(world, solve)
    operator.run(6)
    world.now += timedelta(seconds=120)
    node = busy_node(world)
    world.busy[node] = 0.93
    operator.run(12)
    assert reasons(world) == ["UtilizationShifted", "NoPlan"]
    assert f"{node}[" not in world.placement()
    assert world.condition("Ready")["status"] == "True"
    assert any("proven best for these figures" in line for line in world.status()["plan"]["explanation"])


def test_ready_stays_true_while_a_segment_moves():
    world, operator = serving()
    world.busy[busy_node(world)] = 0.93
    since = world.condition("Ready")["lastTransitionTime"]
    seen = set()
    for _ in range(12):
        operator.run(1)
        seen.add(world.condition("Progressing")["status"])
        assert world.condition("Ready")["status"] == "True"
    assert seen == {"True", "False"}
    assert world.condition("Ready")["lastTransitionTime"] == since


def test_what_is_in_flight_on_the_old_route_is_waited_for():
    world, operator = serving()
    old, node = world.status()["plan"]["revision"], busy_node(world)
    world.in_flight[old] = 3
    world.busy[node] = 0.93
    while len(world.routes_seen) < 2:
        operator.run(1, seconds=2.0)
    leaving = next(name for name in world.segments() if name not in world.serving())
    for _ in range(3):
        operator.run(1, seconds=2.0)
        assert leaving in world.segments()
    assert "3 in flight" in world.condition("Progressing")["message"]
    world.in_flight.clear()
    operator.run(2)
    assert leaving not in world.segments()


def test_after_the_drain_time_the_gateway_has_replayed_and_the_old_segment_goes():
    world, operator = serving()
    world.in_flight[world.status()["plan"]["revision"]] = 3
    world.busy[busy_node(world)] = 0.93
    operator.run(20)
    assert len(world.segments()) == 2


def test_without_prometheus_it_serves_on_says_so_and_moves_nothing():
    world, operator = serving()
    before = world.placement()
    world.busy[busy_node(world)] = 0.93
    world.prometheus = "Prometheus at http://prometheus did not answer within 3 s"
    operator.run(30)
    assert world.placement() == before
    assert world.condition("Ready")["status"] == "True"
    condition = world.condition("MetricsAvailable")
    assert (condition["status"], condition["reason"]) == ("False", "MetricsUnavailable")
    assert condition["message"].startswith(world.prometheus)
    assert [e for e in world.events if e[1] == "MetricsUnavailable"] == [("Warning", "MetricsUnavailable", condition["message"])]


def test_where_prometheus_knows_other_nodes_both_sets_are_named_and_nothing_moves():
    world, operator = serving()
    before, mine = world.placement(), sorted(world.nodes)
    theirs = {f"x{n}": Sample(value=1.9, age_seconds=5, labels={"nodename": f"x{n}", "instance": f"10.0.0.{n}:9100"}) for n in range(3)}
    world.node_cpu_cores = lambda: Samples(by_name=theirs)  # type: ignore[method-assign]
    operator.run(30)
    assert world.placement() == before
    condition = world.condition("MetricsAvailable")
    assert (condition["status"], condition["reason"]) == ("False", "NodesNotMatched")
    assert "x0, x1, x2" in condition["message"]
    assert ", ".join(mine) in condition["message"]
    assert [e[1] for e in world.events if e[0] == "Warning"] == ["NodesNotMatched"]


def test_where_prometheus_knows_no_node_it_is_said_and_is_not_known():
    world, operator = serving()
    world.node_cpu_cores = Samples  # type: ignore[method-assign]
    operator.run(3)
    condition = world.condition("MetricsAvailable")
    assert (condition["status"], condition["reason"]) == ("Unknown", "NoFigures")
    assert f"any of the {len(world.nodes)} nodes" in condition["message"]


def test_nodes_without_figures_are_counted_and_named():
    world, operator = serving()
    known, *others = sorted(world.nodes)
    world.node_cpu_cores = lambda: Samples(by_name={known: Sample(value=0.1, age_seconds=5)})  # type: ignore[method-assign]
    operator.run(3)
    condition = world.condition("MetricsAvailable")
    assert condition["status"] == "True"
    assert f"CPU use is known for 1 of {len(others) + 1} nodes, not of {', '.join(others)}" in condition["message"]


def test_advisory_says_what_it_would_do_and_does_nothing():
    world, operator = serving(adaptation={"window": "20s", "cooldown": "60s", "mode": "Advisory"})
    before = world.placement()
    world.busy[busy_node(world)] = 0.93
    operator.run(30)
    assert world.placement() == before
    assert reasons(world) == ["Advised", "NoPlan"]


def cramped(**spec: Any) -> tuple[World, Operator]:
    """Two nodes, the faster with three of the four layers; neither could hold another segment beside its own."""
    nodes = {"a": a_node("a", mib=460), "b": a_node("b", mib=360)}
    nodes["b"]["metadata"]["annotations"] = {"splitinference.dev/compute-gflops": "400"}
    world, operator = serving(nodes, partition={"minSegments": 2}, **spec)
    assert sorted(s["end"] - s["start"] for s in world.status()["plan"]["segments"] if s["node"] == "b") == [3]
    return world, operator


def test_a_move_that_could_not_arrive_is_not_begun():
    world, operator = cramped()
    before = world.placement()
    world.busy["b"] = 0.95
    operator.run(12)
    assert world.placement() == before
    newest = world.status()["decisions"][0]
    assert newest["reason"] == "Blocked"
    assert "strategy BreakFirst would delete the old segments first" in newest["message"]
    assert world.condition("Ready")["status"] == "True"


def test_a_user_may_allow_the_break_that_such_a_move_needs():
    world, operator = cramped(adaptation={"window": "20s", "cooldown": "60s", "drain": "1s", "strategy": "BreakFirst"})
    world.break_first = True
    world.busy["b"] = 0.95
    operator.run(20)
    assert [s["node"] for s in world.status()["plan"]["segments"] if s["end"] - s["start"] == 3] == ["a"]
    assert world.condition("Ready")["status"] == "True"
    assert len(world.segments()) == 2


@pytest.mark.parametrize(("after", "paid"), [(9.0, True), (45.0, False)])
def test_a_move_is_judged_by_what_requests_saw(after: float, paid: bool):
    world, operator = serving()
    world.traffic = seen_traffic(per_token=41)
    world.busy[busy_node(world)] = 0.93
    operator.run(9)
    assert reasons(world)[0] == "UtilizationShifted"
    assert "outcome" not in world.status()["decisions"][0]
    world.traffic = seen_traffic(per_token=after)
    operator.run(14)
    outcome = world.status()["decisions"][0]["outcome"]
    assert (outcome["observedBeforeMs"], outcome["observedAfterMs"], outcome["paid"]) == (41, after, paid)
    assert outcome["predictedAfterMs"] < outcome["predictedBeforeMs"]
    assert world.status()["adaptation"].get("unpaid", 0) == (0 if paid else 1)
    assert "promise" not in world.status()["adaptation"]
