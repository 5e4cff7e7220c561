"""Whole stories over a pretend cluster: applied, moved, mended, refused, restarted."""

from datetime import timedelta
from typing import Any

import pytest

from splitinference.controller.ports import Failing, Pending, Unreadable
from splitinference.core.solve import solve
from tests.controller.world import NAMESPACE, Killed, Operator, World, a_body, a_node, seen_traffic
from tests.core.planning import a_profile


def small(*names: str, mib: int = 310) -> dict[str, dict[str, Any]]:
    """Nodes that hold two of the four layers each."""
    return {name: a_node(name, mib=mib) for name in names}


def serving(nodes: dict[str, dict[str, Any]] | None = None, **spec: Any) -> tuple[World, Operator]:
    """A world where one resource serves, past its cooldown."""
    world = World(nodes or small("a", "b", "c"))
    world.add(a_body(**spec))
    operator = Operator(world)
    operator.run(6)
    assert world.condition("Ready")["status"] == "True", world.status()
    world.now += timedelta(seconds=120)
    operator.look()
    return world, operator


def reasons(world: World, name: str = "chat") -> list[str]:
    return [decision["reason"] for decision in world.status(name)["decisions"]]


# --- apply → ready -------------------------------------------------------------------------------------------------------------------


def test_applied_planned_proven_and_ready():
    world = World(small("a", "b", "c"))
    world.add(a_body())
    operator = Operator(world)
    operator.run(1, seconds=1)  # the gateway gets its node first
    operator.look()
    assert world.condition("Accepted")["status"] == "True"
    assert world.condition("Planned")["status"] == "True"
    assert world.condition("Progressing") | {"lastTransitionTime": ""} == world.condition("Progressing") | {"lastTransitionTime": ""}
    assert world.condition("Ready")["status"] == "False"
    assert len(world.segments()) == 2
    operator.run(4)
    status = world.status()
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Progressing") == world.condition("Progressing") | {"status": "False", "reason": "Settled"}
    assert (status["segments"], status["nodes"]) == ("2/2", ",".join(s["node"] for s in status["plan"]["segments"]))
    assert status["plan"]["revision"] == world.routes_seen[-1]
    assert status["plan"]["bound"] == pytest.approx(status["plan"]["value"])
    assert status["observedGeneration"] == 1
    assert status["endpoint"] == "http://chat-gateway.team.svc/v1"
    assert reasons(world) == ["NoPlan"]
    assert "transition" not in status
    assert not [c for c in status["conditions"] if c["type"] in ("Reconciling", "Stalled")]


def test_at_rest_nothing_is_written():
    world, operator = serving()
    world.writes.clear()
    for _ in range(5):
        operator.look()
        world.step(1)
    assert world.writes == []


def test_the_gateways_node_is_known_before_the_first_plan_is_made():
    """However old the resource is: reading its model may have taken long."""
    world = World(small("a", "b", "c"))
    world.add(a_body(created=world.now - timedelta(hours=1)))
    operator = Operator(world)
    assert operator.look().again_seconds == 1.0
    assert world.segments() == []
    world.step(1)
    operator.look()
    assert operator.solver.asked[0].snapshot.network.ingress == "a"


def test_a_gateway_that_gets_no_node_is_not_waited_for_long():
    world = World(small("a", "b", "c"))
    world.add(a_body())
    operator = Operator(world)
    operator.look()
    world.now += timedelta(seconds=11)
    operator.look()
    assert len(world.segments()) == 2


def test_a_gateway_leaves_a_node_that_lost_the_trust_to_see_text_and_stays_away():
    rule = {"rules": [{"layers": "first", "nodeLabels": {"trusted": "true"}}]}
    world, operator = serving({name: a_node(name, trusted="true") for name in ("a", "b", "c")}, privacy=rule)
    assert world.gateway_node() == "a"
    world.nodes["a"]["metadata"]["labels"].pop("trusted")
    operator.run(12)
    assert world.gateway_node() == "b"
    world.nodes["a"]["metadata"]["labels"]["trusted"] = "true"
    operator.run(6)
    world.writes.clear()
    operator.run(3)
    assert (world.gateway_node(), [w for w in world.writes if "Deployment" in w]) == ("b", [])


def test_observed_figures_are_those_of_the_gateway():
    world, operator = serving()
    world.traffic = seen_traffic(per_token=12)
    operator.look()
    assert world.status()["observed"]["timePerOutputTokenMs"] == {"p50": 12, "p95": 12}
    assert world.status()["latency"] == "1.6s"


# --- moves ---------------------------------------------------------------------------------------------------------------------------


def busy_node(world: World) -> str:
    return str(world.status()["plan"]["segments"][1]["node"])


def test_a_busy_node_is_left_and_the_message_has_the_numbers():
    world, operator = serving()
    node, before = busy_node(world), world.segments()
    world.busy[node] = 0.93
    operator.run(12)
    newest = world.status()["decisions"][0]
    assert newest["reason"] == "UtilizationShifted"
    assert newest["transition"] == "migration"
    assert f"stage 1 on {node} at 93 % by others for 20 s (limit 70 %)" in newest["message"]
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
    assert any("proven best" in line for line in world.status()["plan"]["explanation"])


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
    assert "strategy BreakFirst would delete those first" in newest["message"]
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


# --- what breaks ---------------------------------------------------------------------------------------------------------------------


def test_a_lost_node_is_replaced_at_once():
    world, operator = serving()
    node = busy_node(world)
    world.nodes[node]["status"]["conditions"][0]["status"] = "Unknown"
    world.step(1)
    operator.run(6)
    assert f"{node}[" not in world.placement()
    assert reasons(world)[0] == "NodeLost"
    assert f"on {node}, which cannot be used: not ready" in world.status()["decisions"][0]["message"]
    assert world.condition("Ready")["status"] == "True"


def test_a_deleted_pod_is_made_again_where_it_was():
    world, operator = serving()
    before, victim = world.placement(), world.segments()[0]
    del world.objects["Pod", NAMESPACE, victim]
    operator.look()
    assert world.condition("Ready")["status"] == "False"
    assert victim in world.condition("Ready")["message"]
    operator.run(4)
    assert world.placement() == before
    assert world.condition("Ready")["status"] == "True"
    assert len(world.routes_seen) == 1


def test_a_process_that_answers_with_errors_is_replaced_though_the_kubelet_says_ready():
    world, operator = serving()
    victim = world.segments()[0]
    uid = world.objects["Pod", NAMESPACE, victim]["metadata"]["uid"]
    world.dead.add(victim)
    world.failing[victim] = Failing(since=world.now, code="next_hop_failed")
    assert operator.look().again_seconds == 1.0, "what is in doubt is looked at again soon"
    for _ in range(6):
        operator.run(1, seconds=2.0)
    world.dead.clear()
    world.failing.clear()
    operator.run(4)
    assert world.objects["Pod", NAMESPACE, victim]["metadata"]["uid"] != uid
    assert world.condition("Ready")["status"] == "True"


def test_a_segment_out_of_reach_goes_elsewhere_before_its_node_is_said_to_be_lost():
    world, operator = serving()
    node, victim = busy_node(world), world.segments()[-1]
    world.gone.add(victim)
    world.failing[victim] = Failing(since=world.now, code="next_hop_failed")
    for _ in range(4):
        operator.run(1, seconds=2.0)
    assert reasons(world)[0] == "SegmentFailed"
    assert "cannot be reached" in world.status()["decisions"][0]["message"]
    assert f"{node}[" not in world.placement()
    world.failing.clear()
    operator.run(6)
    assert world.condition("Ready")["status"] == "True"


def test_a_segment_that_keeps_failing_goes_elsewhere():
    world, operator = serving()
    node, victim = busy_node(world), world.segments()[-1]
    for _ in range(40):
        pod = world.objects.get(("Pod", NAMESPACE, victim))
        if pod is not None and pod["status"]["phase"] == "Running":
            pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": "out of ephemeral storage", "conditions": []}
        operator.run(1)
    assert f"{node}[" not in world.placement()
    assert "SegmentFailed" in reasons(world)
    message = next(d["message"] for d in world.status()["decisions"] if d["reason"] == "SegmentFailed")
    assert "3 failures" in message
    assert "Evicted: out of ephemeral storage" in message


def test_a_refused_pod_is_said_and_what_serves_serves_on():
    world, operator = serving()
    world.refuse.add("Pod")
    world.busy[busy_node(world)] = 0.93
    operator.run(12)
    assert "exceeded quota" in world.condition("Progressing")["message"]
    assert world.condition("Ready")["status"] == "True"
    assert len([e for e in world.events if e[1] == "Refused"]) == 1
    world.refuse.clear()
    operator.run(6)
    assert world.condition("Progressing")["status"] == "False"


def test_a_service_that_was_deleted_is_made_again():
    world, operator = serving()
    name = world.segments()[0]
    del world.objects["Service", NAMESPACE, name]
    operator.look()
    assert ("Service", NAMESPACE, name) in world.objects


def test_a_route_that_was_deleted_is_written_again():
    world, operator = serving()
    del world.objects["ConfigMap", NAMESPACE, "chat-route"]
    operator.run(2)
    assert world.serving() == [s["name"] for s in world.status()["plan"]["segments"]]


# --- what cannot be -------------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_with_numbers_and_an_event_once():
    world = World(small("a", "b", mib=90))
    world.add(a_body())
    Operator(world).run(10)
    planned = world.condition("Planned")
    assert (planned["status"], planned["reason"]) == ("False", "Infeasible")
    assert "400 MiB" in planned["message"]
    assert world.condition("Stalled")["status"] == "True"
    assert world.condition("Ready")["status"] == "False"
    assert len([e for e in world.events if e[1] == "Infeasible"]) == 1
    assert reasons(world) == ["Infeasible"]


def test_a_spec_that_became_impossible_keeps_what_serves_even_when_a_pod_is_lost():
    world, operator = serving()
    before, route = world.placement(), list(world.routes_seen)
    world.change(privacy={"rules": [{"layers": "first", "nodeLabels": {"trusted": "nobody"}}]})
    operator.run(4)
    assert world.condition("Planned")["status"] == "False"
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Stalled")["status"] == "True", "not done: the new generation is not what serves"
    assert world.status()["observedGeneration"] == 2
    del world.objects["Pod", NAMESPACE, world.segments()[0]]
    operator.run(4)
    assert world.condition("Ready")["status"] == "True"
    assert (world.placement(), world.routes_seen) == (before, route)
    world.change(privacy={"rules": []})
    operator.run(3)
    assert world.condition("Planned")["status"] == "True"
    assert "Stalled" not in [c["type"] for c in world.status()["conditions"]]


def test_an_invalid_spec_names_the_field_and_serves_on():
    world, operator = serving()
    world.change(partition={"allowedSplitPoints": [99]})
    operator.run(3)
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "SpecRejected")
    assert "spec.partition.allowedSplitPoints[0]" in accepted["message"]
    assert world.condition("Ready")["status"] == "True"


def test_a_model_that_cannot_be_read():
    world = World(small("a", "b"))
    world.add(a_body(), Unreadable(message="no config.json in the folder /m on the nodes"))
    Operator(world).run(3)
    assert world.condition("Accepted")["status"] == "False"
    assert world.condition("Accepted")["reason"] == "ModelUnreadable"
    assert "no config.json" in world.condition("Accepted")["message"]
    assert len(world.events) == 1


def test_a_model_that_is_being_read_is_waited_for():
    world = World(small("a", "b"))
    world.add(a_body(), Pending(message="a pod reads the model on a"))
    operator = Operator(world)
    operator.look()
    assert world.condition("Accepted")["status"] == "Unknown"
    assert world.condition("Progressing")["status"] == "True"
    world.profiles["chat"] = a_profile()
    operator.run(5)
    assert world.condition("Ready")["status"] == "True"


def test_a_model_that_became_unreadable_serves_on():
    world, operator = serving()
    world.profiles["chat"] = Unreadable(message="gone")
    operator.run(3)
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Accepted")["status"] == "False"
    assert world.status()["plan"]["segments"]


def test_another_model_is_cut_over_to_whole():
    world, operator = serving(small("a", "b", "c", mib=700))
    before = set(world.segments())
    world.profiles["chat"] = a_profile(digest="fedcba9876543210")
    operator.run(8)
    assert not before & set(world.segments())
    assert world.condition("Ready")["status"] == "True"
    assert reasons(world)[0] == "SpecChanged"


# --- several, and gone ---------------------------------------------------------------------------------------------------------------


def test_two_resources_never_plan_the_same_memory_twice():
    world = World(small("a", "b", "c", mib=380))
    for name in ("chat", "other"):
        world.add(a_body(name))
    first, second = Operator(world), Operator(world)
    first.run(1, "chat", "other", seconds=1)
    first.look("chat")
    second.look("other")
    held: dict[str, int] = {}
    for name in ("chat", "other"):
        for segment in (world.status(name).get("plan") or {}).get("segments", []):
            held[segment["node"]] = held.get(segment["node"], 0) + segment["memoryBytes"]
    assert held
    assert all(amount <= 380 * 1024 * 1024 for amount in held.values()), held
    first.run(8, "chat", "other")
    assert world.condition("Ready", "chat")["status"] == "True"


def test_a_plan_made_while_another_resource_took_the_memory_is_not_kept():
    """The other resource's plan is written after this one's pass has read, and before it writes."""
    world = World(small("a", "b", mib=310))
    world.add(a_body())
    world.add(a_body("other"))
    operator, other = Operator(world), Operator(world)
    operator.look("chat")
    operator.look("other")
    world.now += timedelta(seconds=11)  # their gateways get no node

    class Slow(type(operator.solver)):  # type: ignore[misc]
        def __call__(self, *given: Any, **more: Any) -> Any:
            answer = super().__call__(*given, **more)
            other.look("other")
            return answer

    slow = Operator(world, Slow())
    assert slow.look("chat").again_seconds == 1.0
    assert "plan" not in world.status("chat")
    assert "another resource's plan took the memory" in world.status("chat")["decisions"][0]["message"]


def test_what_is_deleted_is_let_go():
    world, operator = serving()
    world.body()["metadata"]["deletionTimestamp"] = "2026-01-01T00:10:00Z"
    world.writes.clear()
    assert not operator.look().gone
    del world.objects["SplitInference", NAMESPACE, "chat"]
    assert operator.look().gone
    assert world.writes == [], "owner references do the rest"


# --- restarts ------------------------------------------------------------------------------------------------------------------------


WRITES = 31


def story(world: World, operator_of: Any) -> None:
    """Apply, get ready, a node gets busy, a move; `operator_of` gives the operator for each pass."""
    for step in range(45):
        if step == 10:
            world.now += timedelta(seconds=120)
            world.busy[world.status()["plan"]["segments"][1]["node"]] = 0.93
        try:
            operator_of().look()
        except Killed:
            world.killed_after = None
        world.step()


def test_a_new_operator_at_every_pass_is_a_non_event():
    steady, restarted = World(small("a", "b", "c")), World(small("a", "b", "c"))
    for world in (steady, restarted):
        world.add(a_body())
    one = Operator(steady)
    story(steady, lambda: one)
    story(restarted, lambda: Operator(restarted))
    assert steady.placement() == restarted.placement()
    assert reasons(steady) == reasons(restarted) == ["UtilizationShifted", "NoPlan"]
    assert steady.routes_seen == restarted.routes_seen
    assert len(restarted.proved) == len(steady.proved), "a restart asked for proofs anew"


def test_the_story_has_not_more_writes_than_the_operator_is_killed_before():
    world = World(small("a", "b", "c"))
    world.add(a_body())
    one = Operator(world)
    story(world, lambda: one)
    assert WRITES - 3 <= len(world.writes) <= WRITES


@pytest.mark.parametrize("writes", range(WRITES))
def test_killed_before_any_write_the_story_ends_the_same(writes):
    world = World(small("a", "b", "c"))
    world.add(a_body())
    world.killed_after = writes
    story(world, lambda: Operator(world))
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Progressing")["status"] == "False"
    assert len(world.segments()) == 2
    assert set(world.serving()) == set(world.segments())
    assert "UtilizationShifted" in reasons(world)
