"""Stories of nodes on which segments cannot start: the cause is said, the node is avoided, and what serves goes on serving."""

from typing import Any

import pytest

from tests.controller import kubelet
from tests.controller.stories import reasons, serving, small
from tests.controller.world import NAMESPACE, Operator, World, a_body


def hinders(status: dict[str, Any]) -> dict[str, Any]:
    """What a node's kubelet says of every segment there."""
    return {"containerStatuses": [status]}


def starting() -> tuple[World, Operator, str]:
    """A world of three nodes before anything serves, and a node that the first plan will use."""
    before = World(small("a", "b", "c"))
    before.add(a_body())
    Operator(before).run(2)
    world = World(small("a", "b", "c"))
    world.add(a_body())
    return world, Operator(world), str(before.status()["plan"]["segments"][1]["node"])


@pytest.mark.parametrize("status", [kubelet.WRONG_ARCHITECTURE, kubelet.NO_SECRET, kubelet.EXEC_FORMAT])
def test_a_node_that_cannot_start_segments_is_avoided_after_the_stated_time(status):
    world, operator, node = starting()
    world.hinders[node] = hinders(status)
    operator.run(5)
    progressing, ready = world.condition("Progressing"), world.condition("Ready")
    assert progressing["reason"] == "SegmentNotStarting"
    reason = status["state"]["waiting"]["reason"]
    for message in (progressing["message"], ready["message"]):
        assert f"does not start on {node}" in message
        assert reason in message
        assert f"another plan is made without {node}" in message
    assert [e for e in world.events if e[:2] == ("Warning", "SegmentNotStarting")], "an event says the cause"
    operator.run(14)
    assert f"{node}[" not in world.placement()
    assert reasons(world)[0] == "SegmentFailed"
    assert reason in world.status()["decisions"][0]["message"]
    assert "the node is avoided until" in world.status()["decisions"][0]["message"]
    assert world.condition("Ready")["status"] == "True"
    assert not world.condition("Stalled")


def test_a_folder_that_a_node_lacks_is_said_by_an_event_and_the_node_is_avoided():
    world, operator, node = starting()
    world.hinders[node], world.told[node] = hinders(kubelet.CREATING), kubelet.NO_FOLDER
    operator.run(5)
    assert "/models/m is not a directory" in world.condition("Ready")["message"]
    operator.run(14)
    assert f"{node}[" not in world.placement()
    assert world.condition("Ready")["status"] == "True"


def test_where_no_node_is_left_it_is_stalled_and_says_why():
    world = World(small("a", "b"))
    world.add(a_body())
    operator = Operator(world)
    for node in world.nodes:
        world.hinders[node] = hinders(kubelet.REGISTRY_DOWN)
    operator.run(30)
    stalled = world.condition("Stalled")
    assert stalled["status"] == "True"
    assert "connection refused" in stalled["message"]
    assert "connection refused" in world.condition("Ready")["message"]
    world.hinders.clear()
    operator.run(6)
    assert world.condition("Ready")["status"] == "True", "a registry that is back is enough"
    assert not world.condition("Stalled")


def test_what_serves_serves_on_while_a_move_cannot_start():
    world, operator = serving(small("a", "b", "c"))
    before = world.serving()
    target = next(name for name in world.nodes if name not in {s["node"] for s in world.status()["plan"]["segments"]})
    world.hinders[target] = hinders(kubelet.WRONG_ARCHITECTURE)
    world.busy[world.status()["plan"]["segments"][1]["node"]] = 0.93
    for _ in range(60):
        operator.run(1)
        assert world.serving() == before
        assert world.condition("Ready")["status"] == "True"
    assert "SegmentFailed" in reasons(world)
    assert f"{target}[" not in world.placement()


def test_a_node_that_fails_again_is_avoided_for_longer():
    world, operator, node = starting()
    world.hinders[node] = hinders(kubelet.WRONG_ARCHITECTURE)
    operator.run(20)
    (entry,) = world.status()["adaptation"]["failures"].values()
    assert entry["lasting"] is True
    assert "rounds" not in entry, "once"
    # Eleven minutes later the node may be used again; the only other node is lost, so it must be.
    world.now = world.now.replace(minute=world.now.minute + 12)
    lost = next(name for name in world.nodes if name != node)
    world.nodes[lost]["status"]["conditions"][0]["status"] = "Unknown"
    operator.run(20)
    assert world.status()["adaptation"]["failures"][node]["rounds"] == 2


def test_a_gateway_that_does_not_start_is_explained():
    world, operator = serving()
    (key,) = [key for key in world.objects if key[0] == "Pod" and key[2].startswith("chat-gateway-")]
    world.stuck.add(key[2])
    pod = world.objects[key]
    pod["status"] = {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}]}
    pod["status"]["containerStatuses"] = [{**kubelet.NO_SECRET, "name": "gateway"}]
    operator.look()
    assert world.condition("Ready")["reason"] == "GatewayNotReady"
    assert 'secret "chat-segment-tls" not found' in world.condition("Ready")["message"]


def test_pods_of_the_gateway_that_are_refused_are_quoted():
    world, operator = serving()
    (key,) = [key for key in world.objects if key[0] == "Pod" and key[2].startswith("chat-gateway-")]
    world.stuck.add(key[2])
    world.objects[key]["status"] = {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}]}
    deployment = world.objects["Deployment", NAMESPACE, "chat-gateway"]
    quota = 'pods "chat-gateway-1" is forbidden: failed quota: team: must specify limits.cpu for: gateway'
    deployment["status"] = {"conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": quota}]}
    operator.look()
    assert quota in world.condition("Ready")["message"]


def test_a_new_gateway_that_is_refused_is_said_although_the_old_one_serves():
    """A change of the pod template that the API server takes in the Deployment, and refuses in its pods."""
    world, operator = serving()
    deployment = world.objects["Deployment", NAMESPACE, "chat-gateway"]
    refused = 'pods "chat-gateway-2" is forbidden: no PriorityClass with name of-nobody was found'
    deployment["status"] = {"conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": refused}]}
    operator.look()
    found = world.condition("Progressing")
    assert (found["status"], found["reason"]) == ("True", "GatewayNotStarting")
    assert refused in found["message"]
    assert world.condition("Ready")["status"] == "True"
    deployment["status"] = {}
    operator.look()
    assert world.condition("Progressing")["reason"] == "Settled"


def test_a_refused_segment_is_quoted_while_nothing_serves():
    world = World(small("a", "b"))
    world.add(a_body())
    world.refuse.add("Pod")
    operator = Operator(world)
    operator.run(4)
    assert "exceeded quota" in world.condition("Ready")["message"]


# --- other troubles of real clusters -------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_does_not_stop_the_operator():
    """An hour back: cooldowns and pauses that were begun an hour ahead would last for as long."""
    world, operator = serving(small("a", "b", "c"))
    world.busy[world.status()["plan"]["segments"][1]["node"]] = 0.93
    operator.run(12)
    moves = len(reasons(world))
    assert moves > 1
    world.busy.clear()
    world.now = world.now.replace(year=world.now.year - 1)
    world.busy[world.status()["plan"]["segments"][1]["node"]] = 0.93
    operator.run(30)
    assert len(reasons(world)) > moves
    assert world.condition("Ready")["status"] == "True"


def test_a_namespace_that_is_deleted_while_serving_is_left_alone():
    """The API server makes nothing new there; what is left goes, and the last pass finds nothing and ends."""
    world, operator = serving()
    world.refuse.add("Pod")
    for name in world.segments():
        del world.objects["Pod", NAMESPACE, name]
    assert operator.look().again_seconds is not None
    assert world.condition("Ready")["status"] == "False"
    del world.objects["SplitInference", NAMESPACE, "chat"]
    writes = len(world.writes)
    assert operator.look().gone
    assert len(world.writes) == writes
