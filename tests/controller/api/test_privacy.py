"""A node that serves loses the label that a rule of privacy asks for: nothing is sent there any more, at once, or until the new route is
proven, as the resource wants it."""

import json
from typing import Any

import pytest

from tests.controller.world import NAMESPACE, Operator, World, a_body, a_node

RULES = [{"layers": "first", "nodeLabels": {"trusted": "true"}}]


def serving(on_violation: str | None = None, trusted: tuple[str, ...] = ("a", "b", "c")) -> tuple[World, Operator, str]:
    """A world whose first layers may be on trusted nodes alone; the last is the node where they are."""
    nodes = {name: a_node(name, mib=310, **({"trusted": "true"} if name in trusted else {})) for name in ("a", "b", "c")}
    privacy: dict[str, Any] = {"rules": RULES} | ({"onViolation": on_violation} if on_violation else {})
    world = World(nodes)
    world.add(a_body(privacy=privacy))
    operator = Operator(world)
    operator.run(6)
    assert world.condition("Ready")["status"] == "True", world.status()
    return world, operator, str(world.status()["plan"]["segments"][0]["node"])


def route(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.objects["ConfigMap", NAMESPACE, "chat-route"]["data"]["route.json"])
    return found


def test_nothing_is_sent_there_any_more_in_the_same_pass():
    world, operator, node = serving()
    before = len(world.routes_seen)
    del world.nodes[node]["metadata"]["labels"]["trusted"]
    operator.look()
    assert route(world) == {"v": 1, "revision": "stopped", "pipelines": [], "drainSeconds": 0}
    assert world.condition("Ready")["reason"] == "StoppedForPrivacy"
    assert world.status()["decisions"][0]["reason"] == "PrivacyChanged"
    operator.run(6)
    assert node not in [s["node"] for s in world.status()["plan"]["segments"] if s["start"] == 0]
    assert world.condition("Ready")["status"] == "True"
    assert world.serving() == [s["name"] for s in world.status()["plan"]["segments"]]
    assert world.routes_seen[before:] == ["stopped", world.status()["plan"]["revision"]], "stopped once, and then the new route"


def test_the_route_is_withdrawn_before_the_solver_is_asked():
    world, operator, node = serving()
    del world.nodes[node]["metadata"]["labels"]["trusted"]
    stopped_when_asked: list[bool] = []
    solver = operator.solver

    def asked(*problem: Any) -> Any:
        stopped_when_asked.append(route(world)["pipelines"] == [])
        return solver(*problem)

    operator.reconciler.solve = asked
    operator.look()
    assert stopped_when_asked
    assert all(stopped_when_asked)


def test_who_prefers_to_be_served_keeps_the_old_route_until_the_new_one_is_proven():
    world, operator, node = serving("Drain")
    old = world.serving()
    del world.nodes[node]["metadata"]["labels"]["trusted"]
    operator.look()
    assert world.serving() == old
    assert world.condition("Ready")["status"] == "True"
    operator.run(8)
    assert "stopped" not in world.routes_seen
    assert node not in [s["node"] for s in world.status()["plan"]["segments"] if s["start"] == 0]


def test_where_no_plan_keeps_the_rules_it_stays_stopped_and_says_why():
    world, operator, node = serving(trusted=("a",))
    del world.nodes[node]["metadata"]["labels"]["trusted"]
    operator.run(6)
    assert route(world)["pipelines"] == []
    ready = world.condition("Ready")
    assert ready["reason"] == "StoppedForPrivacy"
    assert "trust: layers 0 to 1 need trusted=true" in ready["message"]
    assert world.condition("Planned")["status"] == "False"
    world.nodes[node]["metadata"]["labels"]["trusted"] = "true"
    operator.run(3)
    assert world.condition("Ready")["status"] == "True"
    assert world.serving() == [s["name"] for s in world.status()["plan"]["segments"]]


def test_at_rest_a_stopped_resource_is_not_written_again_and_again():
    world, operator, node = serving(trusted=("a",))
    del world.nodes[node]["metadata"]["labels"]["trusted"]
    operator.run(6)
    world.writes.clear()
    operator.look()
    assert world.writes == []


@pytest.mark.parametrize("on_violation", ["Stop", "Drain"])
def test_a_node_without_a_layer_of_the_rule_may_lose_the_label(on_violation: str):
    world, operator, _ = serving(on_violation)
    node = str(world.status()["plan"]["segments"][-1]["node"])
    before, plan = list(world.routes_seen), world.placement()
    del world.nodes[node]["metadata"]["labels"]["trusted"]
    operator.run(3)
    assert world.routes_seen == before
    assert world.placement() == plan


def test_a_rule_that_comes_later_is_for_the_next_plan_and_what_serves_serves_on_until_then():
    world, operator, _ = serving()
    old = world.serving()
    world.change(privacy={"rules": [{"layers": "first", "nodeLabels": {"trusted": "nobody"}}]})
    operator.run(2)
    assert world.serving() == old
    assert world.condition("Planned")["status"] == "False"
