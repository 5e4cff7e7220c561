"""The Secrets of a resource: there before its pods, renewed in time, made again when they are gone, and never read."""

from datetime import timedelta
from typing import Any

import pytest

from splitinference.controller.ports import RefusedError
from tests.controller.stories import small
from tests.controller.world import NAMESPACE, Operator, World, a_body


def serving() -> tuple[World, Operator]:
    world = World(small("a", "b", "c"))
    world.add(a_body())
    operator = Operator(world)
    for _ in range(12):
        operator.look()
        world.step()
    assert world.condition("Ready")["status"] == "True"
    return world, operator


def secret(world: World, role: str) -> dict[str, Any]:
    return world.objects["Secret", NAMESPACE, f"chat-{role}-tls"]


def test_secrets_are_there_before_any_pod_that_mounts_them():
    world, _ = serving()
    first = [what for what in world.writes if not what.startswith("status")][:2]
    assert first == ["apply Secret chat-segment-tls", "apply Secret chat-gateway-tls"]


def test_they_have_what_the_programs_read_and_go_with_the_resource():
    world, _ = serving()
    assert set(secret(world, "segment")["data"]) == {"tls.crt", "tls.key", "ca.crt"}
    assert set(secret(world, "gateway")["data"]) == {"tls.crt", "tls.key", "ca.crt", "prefix.key"}
    for role in ("segment", "gateway"):
        (owner,) = secret(world, role)["metadata"]["ownerReferences"]
        assert (owner["name"], owner["uid"]) == ("chat", world.body()["metadata"]["uid"])
        assert secret(world, role)["metadata"]["annotations"]["splitinference.dev/certificate-not-after"] > "2026-01-01T23"


def test_at_rest_they_are_written_every_ten_minutes_with_the_same_content():
    world, operator = serving()
    before, world.writes = secret(world, "segment")["data"], []
    for _ in range(24):  # two hours
        world.now += timedelta(minutes=5)
        operator.look()
    assert world.writes.count("apply Secret chat-segment-tls") == 12
    assert secret(world, "segment")["data"] == before


def test_they_are_renewed_after_a_third_of_a_day_and_no_pod_changes():
    world, operator = serving()
    before = secret(world, "segment")["data"]
    pods = {key for key in world.objects if key[0] == "Pod"}
    world.now += timedelta(hours=8, minutes=1)
    operator.look()
    assert secret(world, "segment")["data"]["tls.crt"] != before["tls.crt"]
    assert secret(world, "segment")["data"]["ca.crt"] == before["ca.crt"]
    assert {key for key in world.objects if key[0] == "Pod"} == pods


def test_a_new_operator_cannot_read_what_was_issued_so_it_issues_anew_from_the_same_ca():
    world, _ = serving()
    before, serves = secret(world, "segment")["data"], world.serving()
    Operator(world).look()
    assert secret(world, "segment")["data"]["tls.crt"] != before["tls.crt"]
    assert secret(world, "segment")["data"]["ca.crt"] == before["ca.crt"]
    assert world.serving() == serves


def test_one_that_was_deleted_while_serving_is_made_again_within_ten_minutes_and_nothing_is_lost():
    world, operator = serving()
    content = secret(world, "segment")["data"]
    serves = world.serving()
    del world.objects["Secret", NAMESPACE, "chat-segment-tls"]
    world.now += timedelta(minutes=10)
    operator.look()
    assert secret(world, "segment")["data"] == content
    assert world.serving() == serves
    assert world.condition("Ready")["status"] == "True"


def test_one_that_a_new_pod_waits_for_is_made_again_within_seconds():
    world, operator = serving()
    del world.objects["Secret", NAMESPACE, "chat-segment-tls"]
    world.busy[world.status()["plan"]["segments"][1]["node"]] = 0.93
    world.now += timedelta(minutes=2)
    before = world.placement()
    for _ in range(30):
        operator.look()
        world.step()
    assert world.placement() != before
    assert world.condition("Ready")["status"] == "True"
    assert not [pod for key, pod in world.objects.items() if key[0] == "Pod" and pod["status"]["phase"] == "Pending"]


def test_a_rejected_change_of_the_spec_keeps_certificates_alive():
    """The serving plan goes on, so its peers must be able to."""
    world, operator = serving()
    before = secret(world, "segment")["data"]
    world.change(partition={"minSegments": 99})
    world.now += timedelta(hours=9)
    operator.look()
    assert secret(world, "segment")["data"]["tls.crt"] != before["tls.crt"]


def test_a_secret_of_somebody_else_is_left_alone_and_named_in_the_status():
    world = World(small("a", "b", "c"))
    world.add(a_body())
    theirs = {"kind": "Secret", "metadata": {"name": "chat-gateway-tls", "namespace": NAMESPACE}, "data": {"password": "eA=="}}
    theirs["metadata"]["labels"], theirs["metadata"]["creationTimestamp"] = {}, "2025-01-01T00:00:00Z"  # type: ignore[index]
    world.objects["Secret", NAMESPACE, "chat-gateway-tls"] = theirs
    operator = Operator(world)
    for _ in range(6):
        operator.look()
        world.step()
    assert world.objects["Secret", NAMESPACE, "chat-gateway-tls"]["data"] == {"password": "eA=="}
    said = " ".join(str(condition) for condition in world.status()["conditions"])
    assert "chat-gateway-tls" in said


@pytest.mark.parametrize("again", [True, False])
def test_a_resource_of_the_same_name_has_certificates_of_its_own(again: bool):
    world, operator = serving()
    before = secret(world, "segment")["data"]
    if again:
        world.objects = {key: thing for key, thing in world.objects.items() if key[0] == "SplitInference"}
        world.body()["metadata"]["uid"] = "another"
        operator.look()
        assert secret(world, "segment")["data"]["tls.crt"] != before["tls.crt"]
    else:
        operator.look()
        assert secret(world, "segment")["data"] == before


def test_a_root_key_that_cannot_be_used_is_told_in_the_status_and_what_serves_goes_on():
    world, operator = serving()
    serves = world.serving()

    def refuse(*_: object) -> None:
        raise RefusedError("root.key of the Secret system/root has 5 bytes, a root key has 32")

    operator.reconciler.ports.authority.credentials = refuse  # type: ignore[method-assign, assignment]
    operator.look()
    assert "root.key of the Secret system/root has 5 bytes" in world.condition("Progressing")["message"]
    assert world.serving() == serves
