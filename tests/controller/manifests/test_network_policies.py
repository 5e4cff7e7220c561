"""Who may reach segments and gateways, by the network policies of a resource."""

from typing import Any

import pytest

from splitinference.controller.manifests.segment import Manifests
from splitinference.settings import Settings
from tests.controller.manifests.built import OPERATOR, a_profile, a_resource, build, gateway, pod_labels
from tests.controller.objects import parsed


def test_a_segment_shows_other_pods_the_wire_and_its_metrics_alone():
    objects = build()
    (container,) = objects.pod["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"wire": 8003, "metrics": 8002}
    assert {port["port"] for port in objects.service["spec"]["ports"]} == {8003, 8002}


def policies(**settings: Any) -> dict[str, dict[str, Any]]:
    objects = Manifests(Settings(**settings)).gateway(parsed(a_resource()), a_profile())
    return {obj["metadata"]["name"]: obj["spec"] for obj in objects if obj["kind"] == "NetworkPolicy"}


def admitted(policy: dict[str, Any], port: int, labels: dict[str, str], namespace: str) -> bool:
    """Whether the policy of an object in the namespace `team` lets this pod connect, by the rules of the API."""

    def matches(selector: dict[str, Any], found: dict[str, str]) -> bool:
        assert set(selector) <= {"matchLabels"}
        return selector.get("matchLabels", {}).items() <= found.items()

    def peer(who: dict[str, Any]) -> bool:
        spaces = who.get("namespaceSelector")
        there = namespace == "team" if spaces is None else matches(spaces, {"kubernetes.io/metadata.name": namespace})
        return there and matches(who.get("podSelector", {}), labels)

    rules = [rule for rule in policy["ingress"] if port in [p["port"] for p in rule["ports"]]]
    return any("from" not in rule or any(peer(who) for who in rule["from"]) for rule in rules)


@pytest.mark.parametrize(
    ("port", "labels", "namespace", "yes"),
    [
        (8003, pod_labels("gateway"), "team", True),
        (8003, pod_labels("segment"), "team", True),
        (8003, OPERATOR, "splitinference-system", True),
        (8003, pod_labels("gateway", "other"), "team", False),
        (8003, pod_labels("gateway"), "elsewhere", False),
        (8003, OPERATOR, "elsewhere", False),
        (8003, OPERATOR, "team", False),
        (8003, pod_labels("prefetch"), "team", False),
        (8003, {}, "team", False),
        (8003, {}, "monitoring", False),
        (8002, {}, "monitoring", True),
        (8002, {}, "team", False),
        (8000, pod_labels("gateway"), "team", False),
        (8001, pod_labels("gateway"), "team", False),
    ],
)
def test_who_may_reach_a_segment(port: int, labels: dict[str, str], namespace: str, yes: bool):
    policy = policies()["chat-segments"]
    assert policy["podSelector"]["matchLabels"].items() <= build().pod["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    assert admitted(policy, port, labels, namespace) is yes


@pytest.mark.parametrize(
    ("port", "labels", "namespace", "yes"),
    [
        (8080, {}, "anywhere", True),
        (8001, {}, "anywhere", True),
        (8444, OPERATOR, "splitinference-system", True),
        (8444, OPERATOR, "team", False),
        (8444, pod_labels("segment"), "team", False),
        (8444, {}, "monitoring", False),
        (9090, {}, "monitoring", True),
        (9090, {}, "team", False),
        (9090, OPERATOR, "splitinference-system", False),
    ],
)
def test_who_may_reach_a_gateway(port: int, labels: dict[str, str], namespace: str, yes: bool):
    policy = policies()["chat-gateway"]
    template = gateway()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= template.items()
    assert admitted(policy, port, labels, namespace) is yes


def test_namespaces_of_operator_and_monitoring_are_settings_and_policies_may_be_left_out():
    moved = policies(operator_namespace="si", monitoring_namespace_selector={"matchLabels": {}})
    assert admitted(moved["chat-segments"], 8003, OPERATOR, "si")
    assert not admitted(moved["chat-segments"], 8003, OPERATOR, "splitinference-system")
    assert admitted(moved["chat-segments"], 8002, {}, "anywhere")
    assert policies(network_policies=False) == {}
