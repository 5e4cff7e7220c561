"""From an applied resource to one that serves, and at rest: planned, proven, ready, with the gateway where it may be."""

from datetime import timedelta

import pytest

from splitinference.controller.manifests.segment import Manifests
from tests.controller.stories import reasons, serving, small
from tests.controller.world import Operator, World, a_body, a_node, seen_traffic


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


def test_at_rest_no_segment_is_worked_out_anew(monkeypatch: pytest.MonkeyPatch):
    world, operator = serving()
    made: list[object] = []
    segment = Manifests.segment
    monkeypatch.setattr(Manifests, "segment", lambda *given: made.append(given) or segment(*given))
    operator.look()
    made.clear()
    operator.look()
    assert not made
    world.change(model={**world.body()["spec"]["model"], "maxConcurrentSequences": 2})
    operator.look()
    assert made, "what is asked for is another"


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


def test_a_first_plan_that_was_made_in_the_noise_of_starting_is_mended_without_a_cooldown():
    """Unpacking images looks like another tenant; when it is over, the better plan has to hold for the window and nothing more."""
    world = World({name: a_node(name, mib=310, cores=4.0 if name == "c" else 1.0) for name in ("a", "b", "c")})
    world.busy = {"c": 1.9}
    world.add(a_body(adaptation={"window": "20s", "cooldown": "24h", "drain": "10s"}))
    operator = Operator(world)
    operator.run(6)
    assert world.condition("Ready")["status"] == "True"
    assert "c[" not in world.placement()
    world.busy = {}
    operator.run(24)
    assert "c[" in world.placement()
    assert reasons(world)[0] in ("BetterPlan", "UtilizationShifted")
    moved = len(world.status()["decisions"])
    world.busy = {"c": 1.9}
    operator.run(24)
    assert "c[" in world.placement(), "from then on the cooldown holds"
    assert len(world.status()["decisions"]) == moved
