"""Every step on two nodes: a replica and a referee, who is asked, and what becomes of one that was wrong."""

from splitinference_protocol.report import FailedCheck, Verified
from tests.controller.objects import a_node
from tests.controller.privacy.test_verification import PINS, a_world, route, three, verifiers
from tests.controller.world import NAMESPACE

TWICE = {"samplePercent": 100, "replicas": 2}


def test_every_step_on_two_nodes_has_a_replica_and_a_referee_on_nodes_of_their_own():
    world, operator = a_world(three(d=a_node("d", mib=500)), verification=TWICE, partition={"pins": PINS})
    operator.run(8)
    (check,) = route(world)["verification"]["checks"]
    at = {name: world.objects["Pod", NAMESPACE, name]["spec"]["nodeName"] for name in verifiers(world)}
    assert at.keys() == {check["verifier"]["segment"], check["referee"]["segment"]}
    assert at[check["referee"]["segment"]] in ("a", "c"), "the one that settles is trusted, where one has room"
    assert at[check["verifier"]["segment"]] != at[check["referee"]["segment"]]
    assert "b" not in at.values(), "nobody checks itself"
    assert world.condition("Verified")["reason"] == "SegmentsAreChecked"
    assert "every step is computed on two nodes in 1 segments" in world.condition("Verified")["message"]


def test_nobody_is_asked_until_replica_and_referee_are_ready():
    world, operator = a_world(three(d=a_node("d", mib=500)), verification=TWICE, partition={"pins": PINS})
    operator.run(8)
    (check,) = route(world)["verification"]["checks"]
    referee = check["referee"]["segment"]
    for kind in ("Pod", "Service"):
        del world.objects[kind, NAMESPACE, referee]
    operator.run(1)
    assert route(world)["verification"]["checks"] == []
    assert "1 of 2 verifiers are ready" in world.condition("Verified")["message"]
    operator.run(4)
    assert len(route(world)["verification"]["checks"]) == 1


def test_without_a_third_node_it_serves_and_says_so():
    world, operator = a_world({"a": a_node("a", mib=800, trusted="true"), "b": a_node("b", mib=500)}, verification=TWICE,
                              partition={"pins": [{"layers": "0:3", "node": "b"}, {"layers": "3:4", "node": "a"}]})  # fmt: skip
    operator.run(8)
    verified = world.condition("Verified")
    assert (verified["status"], verified["reason"]) == ("False", "NoRoomForVerifier")
    assert "the replica of layers 0 to 3 needs" in verified["message"]
    assert "no node of its own can be used" in verified["message"]
    assert verifiers(world) == []


def test_a_replica_that_was_wrong_is_moved_and_what_serves_stays():
    world, operator = a_world(three(d=a_node("d", mib=600), e=a_node("e", mib=500)), verification=TWICE, partition={"pins": PINS})
    operator.run(8)
    (check,) = route(world)["verification"]["checks"]
    bad, serving = check["verifier"]["segment"], world.serving()
    node = world.objects["Pod", NAMESPACE, bad]["spec"]["nodeName"]
    world.verified = Verified(failed={bad: FailedCheck(since=world.now, tokens=64, error=0.05, limit=0.02)})
    operator.run(1)
    assert node in world.status()["adaptation"]["distrusted"]
    operator.run(6)
    (check,) = route(world)["verification"]["checks"]
    others = {world.objects["Pod", NAMESPACE, name]["spec"]["nodeName"] for name in verifiers(world)}
    assert node not in others
    assert len(others) == 2
    assert world.serving() == serving
    assert world.condition("Verified")["reason"] == "VerificationFailed", "and says what was found, for a day"
