"""A name that the resource needs belongs to an object that it did not create: that object stays as it is, and the resource says so."""

import copy
from typing import Any

import pytest

from splitinference.controller.trust.ownership import belongs_to, controller_of, is_left_over, owner_uid
from tests.controller.objects import NAMESPACE
from tests.controller.stories import serving, small
from tests.controller.world import Operator, World, a_body

FOREIGN = {"Service": "chat-gateway", "Role": "chat-gateway", "RoleBinding": "chat-gateway", "ServiceAccount": "chat-gateway",
           "Deployment": "chat-gateway", "ConfigMap": "chat-route"}  # fmt: skip


def an_owner(
    kind: str = "SplitInference", name: str = "chat", uid: str = "u-1", group: str = "splitinference.dev/v1alpha1"
) -> dict[str, Any]:
    return {"apiVersion": group, "kind": kind, "name": name, "uid": uid, "controller": True}


def foreign(kind: str, name: str, **about: Any) -> dict[str, Any]:
    """Somebody else's object, with all of our labels: they prove nothing."""
    labels = {
        "app.kubernetes.io/managed-by": "splitinference",
        "app.kubernetes.io/instance": "chat",
        "app.kubernetes.io/component": "gateway",
    }
    metadata = {
        "name": name,
        "namespace": NAMESPACE,
        "uid": "foreign",
        "labels": labels,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        **about,
    }
    return {"kind": kind, "metadata": metadata, "data": {"theirs": "yes"}, "spec": {"template": {"metadata": {}, "spec": {}}}}


def put(world: World, thing: dict[str, Any]) -> None:
    world.objects[thing["kind"], NAMESPACE, thing["metadata"]["name"]] = copy.deepcopy(thing)


@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_nothing_of_a_foreign_object_is_changed_and_the_condition_names_it(kind: str):
    world = World(small("a", "b", "c"))
    theirs = foreign(kind, FOREIGN[kind])
    put(world, theirs)
    world.add(a_body())
    Operator(world).run(8)
    assert world.objects[kind, NAMESPACE, FOREIGN[kind]] == theirs
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "NameTaken")
    assert f"{kind} {FOREIGN[kind]} in namespace {NAMESPACE} exists" in ready["message"]
    assert "Delete or rename it" in ready["message"]
    assert world.condition("Stalled")["reason"] == "NameTaken"
    assert [event for event in world.events if event[1] == "NameTaken"], "there is an event too"


def test_what_is_not_in_the_way_is_made_all_the_same_and_it_serves_once_the_name_is_free():
    world = World(small("a", "b", "c"))
    put(world, foreign("Role", "chat-gateway"))
    world.add(a_body())
    operator = Operator(world)
    operator.run(8)
    assert ("Deployment", NAMESPACE, "chat-gateway") in world.objects
    assert len(world.segments()) == 2
    del world.objects["Role", NAMESPACE, "chat-gateway"]
    operator.run(8)
    assert world.condition("Ready")["status"] == "True"
    assert world.objects["Role", NAMESPACE, "chat-gateway"]["rules"]


def test_a_resource_that_serves_keeps_serving_when_a_name_is_taken():
    world, operator = serving()
    route = world.routes_seen[-1]
    put(world, foreign("Service", "chat-gateway"))
    operator = Operator(world)  # applies the gateway's objects anew
    operator.run(4)
    assert world.condition("Ready")["reason"] == "NameTaken"
    assert world.routes_seen[-1] == route
    assert len(world.segments()) == 2


def test_pods_that_only_carry_our_labels_are_no_segments_of_ours():
    world, operator = serving()
    names = set(world.segments())
    pod = copy.deepcopy(world.objects["Pod", NAMESPACE, next(iter(names))])
    pod["metadata"] |= {"name": "chat-0-2-ffffffff", "ownerReferences": []}
    put(world, {**pod, "kind": "Pod"})
    world.writes.clear()
    operator.run(3)
    assert ("Pod", NAMESPACE, "chat-0-2-ffffffff") in world.objects, "nor are they deleted"
    assert world.writes == []


def test_the_owner_is_the_controller_by_uid():
    thing = foreign("Service", "s", ownerReferences=[{**an_owner(uid="u-0"), "controller": False}, an_owner()])
    found = controller_of(thing)
    assert found is not None
    assert (found.name, found.uid) == ("chat", "u-1")
    assert owner_uid(thing) == "u-1"
    assert belongs_to(thing, "chat")
    assert not belongs_to(thing, "cha")
    assert owner_uid(foreign("Service", "s")) == ""
    assert owner_uid(foreign("Service", "s", ownerReferences=[an_owner(group="other.dev/v1")])) == ""


def test_what_an_earlier_resource_of_the_name_left_is_told_apart():
    mine = foreign("Service", "s", ownerReferences=[an_owner(uid="u-2")])
    assert is_left_over(foreign("Service", "s", ownerReferences=[an_owner(uid="u-1")]), mine)
    assert not is_left_over(mine, mine)
    assert not is_left_over(foreign("Service", "s", ownerReferences=[an_owner(name="other")]), mine)
    assert not is_left_over(foreign("Service", "s"), mine)


def test_pods_of_the_gateway_have_a_replica_set_between():
    pod = foreign("Pod", "p", ownerReferences=[an_owner("ReplicaSet", "chat-gateway-6f", "rs", "apps/v1")])
    assert belongs_to(pod, "chat")
    assert not belongs_to(pod, "chat-gateway-6f")
    assert not belongs_to(foreign("Pod", "p", ownerReferences=[an_owner("ReplicaSet", "web-6f", "rs", "apps/v1")]), "chat")
