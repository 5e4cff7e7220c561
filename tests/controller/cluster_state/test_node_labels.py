"""Labels that nodes may give themselves, by the rules of the admission plugin NodeRestriction, and what the status says of them."""

import pytest

from splitinference.controller.api.sections.privacy_spec import TRUSTED
from splitinference.controller.trust.trust_labels import settable_by_node
from tests.controller.world import Operator, World, a_body, a_node


@pytest.mark.parametrize(
    "key",
    [
        "trusted",
        "splitinference.dev/trusted",
        "example.com/node-restriction.kubernetes.io",
        "xnode-restriction.kubernetes.io.example.com/x",
        "node-restriction.kubernetes.io",
        "mykubernetes.io/x",
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "node.kubernetes.io/anything",
        "team.node.kubernetes.io/x",
        "kubelet.kubernetes.io/x",
        "team.kubelet.kubernetes.io/x",
    ],
)
def test_a_kubelet_may_set_these(key: str):
    assert settable_by_node(key)


@pytest.mark.parametrize(
    "key",
    [
        TRUSTED,
        "node-restriction.kubernetes.io/x",
        "team.node-restriction.kubernetes.io/x",
        "node-role.kubernetes.io/control-plane",
        "kubernetes.io/role",
        "topology.kubernetes.io/rack",
        "beta.kubernetes.io/trusted",
        "k8s.io/x",
        "kops.k8s.io/x",
        "xnode.kubernetes.io/x",
    ],
)
def test_and_these_it_may_not(key: str):
    assert not settable_by_node(key)


def with_rule(**labels: str) -> World:
    world = World({name: a_node(name, **labels) for name in ("a", "b", "c")})
    world.add(a_body(privacy={"rules": [{"layers": "first", "nodeLabels": labels}]} if labels else {}))
    operator = Operator(world)
    for _ in range(8):
        operator.look()
        world.step()
    assert world.condition("Ready")["status"] == "True"
    return world


def test_a_rule_with_a_label_that_nodes_set_themselves_serves_and_gets_a_warning():
    world = with_rule(**{"splitinference.dev/trusted": "true"})
    found = world.condition("PrivacyLabelsTrusted")
    assert (found["status"], found["reason"]) == ("False", "LabelSettableByNode")
    assert "splitinference.dev/trusted" in found["message"]
    assert TRUSTED in found["message"]
    assert [kind for kind, reason, _ in world.events if reason == "LabelSettableByNode"] == ["Warning"]


def test_a_rule_with_a_label_of_the_restricted_domain_gets_none():
    world = with_rule(**{TRUSTED: "true"})
    assert world.condition("PrivacyLabelsTrusted")["status"] == "True"
    assert not [reason for _, reason, _ in world.events if reason.startswith("Label")]


def test_without_rules_nothing_is_said():
    assert with_rule().condition("PrivacyLabelsTrusted") == {}
