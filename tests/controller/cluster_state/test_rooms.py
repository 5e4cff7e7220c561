"""Room for pods that are no segments, as read from the gateway's Deployment and its pods; and what the operator does for it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.reconcile.planning.rooms import rooms_of
from tests.controller.manifests.built import a_resource
from tests.controller.objects import MIB, parsed
from tests.controller.pretend import SETTINGS
from tests.controller.stories import reasons
from tests.controller.world import NAMESPACE, Operator, World, a_body, a_node
from tests.core.planning import a_profile

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BLUE = {"zone": "blue"}


def deployment(**gateway: Any) -> dict[str, Any]:
    resource = parsed(a_resource(gateway=gateway, placement={"nodeSelector": BLUE}))
    return next(each for each in Manifests(SETTINGS).gateway(resource, a_profile()) if each["kind"] == "Deployment")


def a_pod(node: str = "", message: str = "", seconds: float = 60.0) -> dict[str, Any]:
    template = deployment()["spec"]["template"]
    conditions = []
    if message:
        since = (NOW - timedelta(seconds=seconds)).isoformat()
        conditions = [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message, "lastTransitionTime": since}
        ]
    spec = {**template["spec"], **({"nodeName": node} if node else {})}
    return {"metadata": {"name": "g", "labels": {}}, "spec": spec, "status": {"phase": "Pending", "conditions": conditions}}


def test_a_single_gateway_needs_room_for_the_second_one_of_a_rollout():
    (room,) = rooms_of(deployment(), [a_pod("a")], NOW, SETTINGS)
    assert (room.labels, room.memory_bytes, room.waits) == (BLUE, 64 * MIB, "")
    assert room.millicores == 50
    assert room.segment_millicores > 0


def test_what_starts_before_the_gateway_counts_if_it_requests_more():
    made = deployment()
    made["spec"]["template"]["spec"]["initContainers"] = [{"name": "i", "resources": {"requests": {"memory": "300Mi"}}}]
    (room,) = rooms_of(made, [], NOW, SETTINGS)
    assert room.memory_bytes == 300 * MIB


@pytest.mark.parametrize(
    ("made", "pods"),
    [
        (None, []),
        (deployment(replicas=2), [a_pod("a"), a_pod("b")]),
        (deployment(), [a_pod("a"), a_pod("b")]),
    ],
    ids=["no Deployment yet", "one of two gives way", "the second one is there"],
)
def test_no_room_is_needed(made, pods):
    assert rooms_of(made, pods, NOW, SETTINGS) == ()


MEMORY = "0/4 nodes are available: 2 Insufficient memory, 2 node(s) didn't match Pod's node affinity/selector."


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_gateway_that_waits_for_memory_needs_room_however_many_there_are(replicas):
    (room,) = rooms_of(deployment(replicas=replicas), [a_pod("a"), a_pod(message=MEMORY)], NOW, SETTINGS)
    assert MEMORY in room.waits


@pytest.mark.parametrize(
    ("message", "seconds"),
    [(MEMORY, 5), ("0/4 nodes are available: 4 node(s) had untolerated taint", 600)],
    ids=["only a moment", "for something that no plan changes"],
)
def test_other_waits_are_no_reason(message, seconds):
    assert not any(room.waits for room in rooms_of(deployment(), [a_pod("a"), a_pod(message=message, seconds=seconds)], NOW, SETTINGS))


def test_of_several_gateways_one_gives_way_and_a_single_one_never_does():
    def strategy(replicas: int) -> dict[str, Any]:
        return deployment(replicas=replicas)["spec"]["strategy"]["rollingUpdate"]

    assert strategy(1) == {"maxSurge": 1, "maxUnavailable": 0}
    assert strategy(2) == strategy(5) == {"maxSurge": 1, "maxUnavailable": 1}


# --- stories ---------------------------------------------------------------------------------------------------------------------------

TRUSTED = "node-restriction.kubernetes.io/trusted"
FIRST_ON_TRUSTED = {"rules": [{"layers": "first", "nodeLabels": {TRUSTED: "true"}}]}


def a_world() -> World:
    """Trusted nodes, on which alone a gateway of 128 MiB may be, and two others. Each holds two layers of 110 MiB, but e only one."""
    trusted = {name: a_node(name, mib=310, **{TRUSTED.replace("/", "__"): "true"}) for name in "abe"}
    world = World({**trusted, **{name: a_node(name, mib=310) for name in "cd"}})
    world.settings = SETTINGS.model_copy(update={"gateway_memory": "128Mi"})
    world.tenant("e", mib=190)
    world.add(a_body(privacy=FIRST_ON_TRUSTED))
    return world


def gateway_waits(world: World) -> None:
    """The second pod of a rollout, for which the scheduler finds no memory."""
    pods = world.owned("Pod", NAMESPACE, "chat")
    first = next(pod for pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway")
    since = (world.now - timedelta(seconds=60)).isoformat()
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": MEMORY, "lastTransitionTime": since}
    world.objects["Pod", NAMESPACE, "second"] = {
        "kind": "Pod",
        "metadata": {**first["metadata"], "name": "second", "uid": "second"},
        "spec": {key: value for key, value in first["spec"].items() if key != "nodeName"},
        "status": {"phase": "Pending", "conditions": [condition]},
    }
    world.stuck.add("second")


def held_mib(world: World, node: str) -> int:
    return sum(segment["memoryBytes"] for segment in world.status()["plan"]["segments"] if segment["node"] == node) // MIB


def test_a_first_plan_leaves_room_on_a_node_that_may_have_the_gateway():
    """Another tenant has filled the gateway's own node, so the other trusted one keeps 128 MiB."""
    world = a_world()
    world.tenant("a", mib=180)
    Operator(world).run(8)
    assert world.condition("Ready")["status"] == "True"
    assert world.gateway_node() == "a"
    assert held_mib(world, "b") <= 310 - 128
    assert any("128 MiB and 0.05 cores stay free on b" in line for line in world.status()["plan"]["explanation"])


def test_a_gateway_that_waits_for_room_gets_it_by_another_plan_without_a_gap():
    """The plan has two layers on b, and left room on a, which another tenant took since."""
    world = a_world()
    operator = Operator(world)
    operator.run(8)
    assert held_mib(world, "b") > 310 - 128
    serving_before = world.segments()
    world.tenant("a", mib=180)
    operator.run(2)
    assert world.segments() == serving_before, "nobody waits, so nothing moves"
    gateway_waits(world)
    operator.run(12)
    assert "RoomMissing" in reasons(world)
    assert held_mib(world, "b") <= 310 - 128
    assert world.condition("Ready")["status"] == "True"
    assert len([reason for reason in reasons(world) if reason == "RoomMissing"]) == 1


def test_where_no_plan_gives_room_what_serves_stays():
    world = a_world()
    operator = Operator(world)
    operator.run(8)
    before = world.placement()
    world.tenant("a", mib=180)
    world.tenant("e", mib=300)
    world.tenant("d", mib=300)
    gateway_waits(world)
    operator.run(6)
    assert world.placement() == before
    assert world.condition("Ready")["status"] == "True"
    assert any("no plan" in each["message"] for each in world.status()["decisions"])
