"""Spot checks: who is checked by whom, what the gateway is told, and what becomes of a node whose output was wrong."""

import json
from datetime import timedelta
from typing import Any

import pytest

from splitinference.controller.api.sections.privacy_spec import TOLERANCES, TRUSTED
from splitinference.controller.api.spec import Rejected, Resource, read_resource
from splitinference.controller.history.adaptation_state import Recall
from splitinference.controller.manifests.network_policies import policies_of
from splitinference.controller.manifests.route import cut_over, read_route, with_verification
from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.reconcile.upkeep.verification import checks_of
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.core.transition.state import NamedSegment, Route
from splitinference.core.values.plan import Segment
from splitinference.core.values.profile import Profile
from splitinference_protocol.report import FailedCheck, Verified
from splitinference_protocol.route import Verification
from tests.controller.api.test_resource import problems, read
from tests.controller.history.test_recall import a_pod
from tests.controller.objects import a_body, a_node
from tests.controller.world import NAMESPACE, SETTINGS, Operator, World
from tests.core.planning import START, a_profile
from tests.core.planning import a_node as a_core_node

LABELS = {"trusted": "true"}
VERIFICATION = {"samplePercent": 5}


def a_text_model(mib: int = 100) -> Profile:
    """Four layers that keep KV."""
    plain = a_profile(mib=mib)
    return plain.model_copy(update={"layers": tuple(layer.model_copy(update={"kv_bytes_per_token": 16}) for layer in plain.layers)})


def a_world(nodes: dict[str, Any], profile: Profile | None = None, **spec: Any) -> tuple[World, Operator]:
    world = World(nodes)
    world.add(a_body(**{"privacy": {"trustedNodeLabels": LABELS}, "verification": VERIFICATION, **spec}), profile or a_text_model())
    return world, Operator(world)


def three(room: int = 800, **nodes: Any) -> dict[str, Any]:
    """Two trusted nodes with room for a verifier, and one that is not trusted and the only one that is quick."""
    return {"a": a_node("a", mib=room, trusted="true"), "b": a_node("b", mib=500), "c": a_node("c", mib=room, trusted="true"), **nodes}


def route(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.objects["ConfigMap", NAMESPACE, "chat-route"]["data"]["route.json"])
    return found


def verifiers(world: World) -> list[str]:
    component = "app.kubernetes.io/component"
    return sorted(
        name
        for (kind, _, name), thing in world.objects.items()
        if kind == "Pod" and thing["metadata"]["labels"].get(component) == "verifier"
    )


PINS = [{"layers": "0:1", "node": "a"}, {"layers": "1:3", "node": "b"}, {"layers": "3:4", "node": "c"}]


# --- the specification -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verification", "path"),
    [
        ({}, "spec.verification.samplePercent"),
        ({"samplePercent": 0}, "spec.verification.samplePercent"),
        ({"samplePercent": 100.5}, "spec.verification.samplePercent"),
        ({"samplePercent": 1, "tolerance": 0}, "spec.verification.tolerance"),
        ({"samplePercent": 1, "tolerance": 2}, "spec.verification.tolerance"),
        ({"samplePercent": 99, "replicas": 2}, "spec.verification"),
        ({"samplePercent": 100, "replicas": 3}, "spec.verification.replicas"),
        ({"samplePercent": 1, "replicas": 0}, "spec.verification.replicas"),
        ({"samplePercent": 1, "nodes": 1}, "spec.verification.nodes"),
    ],
)
def test_a_verification_that_means_nothing_is_refused_by_name(verification, path):
    assert path in problems(verification=verification)


def test_a_lossy_link_would_hide_what_is_looked_for():
    for encoding in ("Int8", "Auto"):
        assert "linkEncoding Plain" in problems(verification=VERIFICATION, segments={"linkEncoding": encoding})["spec"]


def test_the_last_layer_and_the_gateway_are_on_trusted_nodes_then():
    spec = read(verification=VERIFICATION).spec
    bounds = plan_constraints.constraints(spec, 32)
    assert not isinstance(bounds, Rejected)
    assert [(rule.start, rule.end, dict(rule.labels)) for rule in bounds.trust] == [(31, 32, {TRUSTED: "true"})]
    assert plan_constraints.text_labels(spec, 32) == ({TRUSTED: "true"},)


# --- who is checked ----------------------------------------------------------------------------------------------------------------------


def runs(text: str) -> list[tuple[str, str, str]]:
    """Of segments on nodes a to z: capitals are trusted. Each run with its witnesses."""
    segments = [NamedSegment(name=node, start=i, end=i + 1, node=node, memory_bytes=1) for i, node in enumerate(text)]
    nodes = {node: a_core_node(node, labels=LABELS if node.isupper() else {}) for node in text}
    found = checks_of([segments], nodes, LABELS)
    return [("".join(s.name for s in each.checked), each.before.name if each.before else "", each.after.name) for each in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AbC", [("b", "A", "C")]),
        ("ABC", []),
        ("bC", [("b", "", "C")]),
        ("AbcD", [("bc", "A", "D")]),
        ("AbCdE", [("b", "A", "C"), ("d", "C", "E")]),
        ("abCdE", [("ab", "", "C"), ("d", "C", "E")]),
        ("Ab", []),  # nobody trusted sees what it gives; the rules do not let it be
        ("AbCd", [("b", "A", "C")]),
    ],
)
def test_segments_side_by_side_are_checked_between_two_witnesses(text, expected):
    assert runs(text) == expected


def test_a_segment_on_a_node_that_nobody_knows_is_not_trusted():
    segments = [NamedSegment(name=n, start=i, end=i + 1, node=n, memory_bytes=1) for i, n in enumerate("xA")]
    assert len(checks_of([segments], {"A": a_core_node("A", labels=LABELS)}, LABELS)) == 1


# --- in time -----------------------------------------------------------------------------------------------------------------------------


def test_a_verifier_runs_on_a_trusted_node_and_the_gateway_is_told_once_it_is_ready():
    world, operator = a_world(three(), partition={"pins": PINS})
    operator.run(8)
    names = [segment["name"] for segment in world.status()["plan"]["segments"]]
    (verifier,) = verifiers(world)
    pod = world.objects["Pod", NAMESPACE, verifier]
    assert pod["spec"]["nodeName"] in ("a", "c")
    assert ("Service", NAMESPACE, verifier) in world.objects
    told = route(world)["verification"]
    model = world.objects["Pod", NAMESPACE, names[1]]["metadata"]["labels"]["splitinference.dev/model"]
    assert told["samplePercent"] == 5
    assert told["tolerance"] == TOLERANCES["float32"]
    assert told["distrusted"] == []
    (check,) = told["checks"]
    assert check["segments"] == [names[1]]
    assert (check["before"]["segment"], check["after"]["segment"]) == (names[0], names[2])
    assert check["verifier"] == {"segment": verifier, "model": f"seg-{model}-1-3"}
    assert world.condition("Verified")["reason"] == "SegmentsAreChecked"
    assert "5 % of all sequences are checked in 1 segments" in world.condition("Verified")["message"]


def test_at_rest_nothing_is_written():
    world, operator = a_world(three(), partition={"pins": PINS})
    operator.run(8)
    before = {key: json.dumps(thing, sort_keys=True) for key, thing in world.objects.items()}
    operator.run(3)
    assert {key: json.dumps(thing, sort_keys=True) for key, thing in world.objects.items() if key[0] != "SplitInference"} == {
        key: text for key, text in before.items() if key[0] != "SplitInference"
    }


def test_a_verifier_that_is_gone_is_made_again():
    world, operator = a_world(three(), partition={"pins": PINS})
    operator.run(8)
    (verifier,) = verifiers(world)
    del world.objects["Pod", NAMESPACE, verifier]
    del world.objects["Service", NAMESPACE, verifier]
    operator.run(1)
    assert route(world)["verification"]["checks"] == [], "the gateway does not ask what is not there"
    operator.run(4)
    assert verifiers(world) == [verifier]
    assert len(route(world)["verification"]["checks"]) == 1


def test_who_no_longer_wants_it_has_none():
    world, operator = a_world(three(), partition={"pins": PINS})
    operator.run(8)
    assert ("NetworkPolicy", NAMESPACE, "chat-verifiers") in world.objects
    del world.body()["spec"]["verification"]
    world.change()
    operator.run(8)
    assert verifiers(world) == []
    assert ("NetworkPolicy", NAMESPACE, "chat-verifiers") not in world.objects
    assert ("NetworkPolicy", NAMESPACE, "chat-segments") in world.objects
    assert "verification" not in route(world)
    assert "Verified" not in {condition["type"] for condition in world.status()["conditions"]}


def test_without_a_trusted_node_it_is_refused_with_the_reason():
    world, operator = a_world({"b": a_node("b", mib=900)})
    operator.run(3)
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "NoTrustedNode")
    assert "none of 1 nodes has the labels trusted=true" in accepted["message"]
    assert "plan" not in world.status()


def test_a_model_without_sequences_is_refused():
    world, operator = a_world(three(), profile=a_profile())
    operator.run(3)
    assert world.condition("Accepted")["reason"] == "SpecRejected"
    assert "for models that generate text" in world.condition("Accepted")["message"]


def test_without_room_it_serves_and_says_so_with_the_numbers():
    world, operator = a_world(three(room=230), partition={"pins": PINS})
    operator.run(8)
    assert world.condition("Ready")["status"] == "True"
    verified = world.condition("Verified")
    assert (verified["status"], verified["reason"]) == ("False", "NoRoomForVerifier")
    assert "layers 1 to 3 need" in verified["message"]
    assert verifiers(world) == []


def test_a_verifier_that_does_not_start_is_named_with_what_it_waits_for():
    nodes = three()
    world, operator = a_world(nodes, partition={"pins": PINS})
    operator.run(5)
    (verifier,) = verifiers(world)
    del world.objects["Pod", NAMESPACE, verifier]
    world.closed = {"a", "c"}
    operator.run(3)
    verified = world.condition("Verified")
    assert (verified["status"], verified["reason"]) == ("Unknown", "VerifierStarting")
    assert f"0 of 1 verifiers are ready; {verifier} on " in verified["message"]
    assert "Insufficient" in verified["message"]


def test_where_all_is_trusted_there_is_nothing_to_verify():
    world, operator = a_world({name: a_node(name, mib=500, trusted="true") for name in "ab"})
    operator.run(8)
    assert world.condition("Verified")["reason"] == "NothingToVerify"
    assert route(world)["verification"]["checks"] == []


def test_a_node_whose_output_was_wrong_is_left_at_once_and_avoided_for_a_day():
    world, operator = a_world(three(d=a_node("d", mib=500)), partition={"minSegments": 3, "pins": [PINS[0], PINS[2]]})
    operator.run(8)
    bad = world.status()["plan"]["segments"][1]
    assert bad["node"] in ("b", "d"), world.placement()
    found = FailedCheck(since=world.now, position=64, tokens=64, error=0.05, limit=0.02)
    world.verified = Verified(failed={bad["name"]: found})
    operator.look()
    decision = world.status()["decisions"][0]
    assert decision["reason"] == "VerificationFailed"
    assert "relative error 0.05 of 64 tokens from token 64 of a sequence on, the limit is 0.02" in decision["message"]
    operator.run(12)
    assert world.status()["plan"]["segments"][1]["node"] == ({"b", "d"} - {bad["node"]}).pop()
    assert world.serving() == [segment["name"] for segment in world.status()["plan"]["segments"]]
    assert world.condition("Verified")["reason"] == "VerificationFailed"
    Operator(world).run(2)
    world.verified = Verified()
    world.now += timedelta(hours=23)
    operator.run(2)
    assert bad["node"] in world.status()["adaptation"]["distrusted"]
    world.now += timedelta(hours=2)
    operator.run(2)
    assert "distrusted" not in world.status()["adaptation"]


def test_where_no_other_node_can_take_over_the_gateway_is_told_what_not_to_use():
    world, operator = a_world(three(), partition={"pins": PINS})
    operator.run(8)
    bad = world.status()["plan"]["segments"][1]["name"]
    world.verified = Verified(failed={bad: FailedCheck(since=world.now, tokens=64, error=0.05, limit=0.02)})
    operator.run(3)
    assert world.condition("Planned")["status"] == "False"
    assert route(world)["verification"]["distrusted"] == [bad], "also a gateway that starts now sends nothing there"


# --- two replicas ------------------------------------------------------------------------------------------------------------------------


def test_a_verifier_keeps_the_rules_of_the_layers_it_holds():
    """A trusted node without the labels that a rule asks for may not hold these layers a second time either."""
    rule = {"layers": "1:3", "nodeLabels": {"country": "here"}}
    nodes = {
        "a": a_node("a", mib=800, trusted="true", country="here"),
        "b": a_node("b", mib=500, country="here"),
        "c": a_node("c", mib=2000, trusted="true"),
    }
    world, operator = a_world(nodes, partition={"pins": PINS}, privacy={"trustedNodeLabels": LABELS, "rules": [rule]})
    operator.run(8)
    (verifier,) = verifiers(world)
    assert world.objects["Pod", NAMESPACE, verifier]["spec"]["nodeName"] == "a"


def test_a_first_plan_leaves_room_for_its_verifier():
    """The quickest plan fills both trusted nodes; a slower one leaves room on one of them."""
    nodes = {"a": a_node("a", mib=380, trusted="true"), "b": a_node("b", mib=900), "c": a_node("c", mib=380, trusted="true")}
    world, operator = a_world(nodes, partition={"allowedSplitPoints": [1, 2, 3]})
    operator.run(8)
    assert world.condition("Ready")["status"] == "True"
    verified = world.condition("Verified")
    assert verified["status"] == "True", (verified, world.placement())


# --- the parts ---------------------------------------------------------------------------------------------------------------------------


def test_what_is_remembered_survives_a_restart_and_counts_from_the_first_time():
    found = {"s": FailedCheck(since=START, tokens=3, error=1.0, limit=0.02)}
    recall = Recall().verified(found, [a_pod()], START)
    assert recall.distrusted.keys() == {"a"}
    assert Recall.model_validate(recall.as_status()) == recall
    assert recall.verified(found, [a_pod()], START + timedelta(hours=1)) is recall
    assert recall.quarantined(START + timedelta(hours=1)).keys() == {"a"}
    assert not recall.quarantined(START + timedelta(hours=25))
    assert Recall().verified(found, [], START).distrusted == {}, "a segment that nobody knows says nothing of a node"


def test_the_route_is_the_same_but_for_what_is_verified():
    data = cut_over(None, Route(pipelines=(("a", "b"),)), {"a": "m", "b": "m"}, 30, START)
    wanted = Verification(sample_percent=1, tolerance=0.02)
    checked = with_verification(data, wanted)
    assert json.loads(checked["route.json"])["verification"] == {"samplePercent": 1, "tolerance": 0.02, "checks": [], "distrusted": []}
    assert with_verification(checked, wanted) is checked
    assert read_route({"data": checked}) == read_route({"data": data})
    assert with_verification(checked, None) == data
    assert with_verification({}, wanted) == {}
    assert with_verification({"route.json": "no JSON"}, wanted) == {"route.json": "no JSON"}


# --- the objects -------------------------------------------------------------------------------------------------------------------------


def test_a_verifier_is_a_peer_that_no_plan_has_and_its_name_fits():
    resource = read_resource(a_body(name="a" * 40, verification=VERIFICATION))
    assert isinstance(resource, Resource)
    builder, segment = Manifests(SETTINGS), Segment(start=1000, end=1100, node="n")
    made = builder.verifier(resource, a_text_model(), segment, 1 << 30, 1 << 20)
    plain = builder.segment(resource, a_text_model(), segment, 1 << 30, 1 << 20)
    assert len(made.name) <= 63
    assert made.name != plain.name
    assert made.model == plain.model
    assert made.pod["metadata"]["name"] == made.service["metadata"]["name"] == made.name
    labels = made.pod["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "verifier"
    assert made.service["spec"]["selector"].items() <= labels.items()
    variables = {each["name"]: each.get("value") for each in made.pod["spec"]["containers"][0]["env"]}
    assert variables["SI_SEGMENT"] == made.name
    assert plain.name not in json.dumps([made.pod, made.service])
    assert plain.pod["metadata"]["labels"]["app.kubernetes.io/component"] == "segment", "the segment's own objects are as they were"


def test_the_gateway_alone_may_connect_to_a_verifier():
    resource = read(verification=VERIFICATION)
    policies = {each["metadata"]["name"]: each["spec"] for each in policies_of(resource, SETTINGS)}
    spec = policies["chat-verifiers"]
    assert spec["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "verifier"
    wire = next(rule for rule in spec["ingress"] if rule["ports"][0]["port"] == 8003)
    assert [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in wire["from"]] == ["gateway"]
    assert "chat-verifiers" not in {each["metadata"]["name"] for each in policies_of(read(), SETTINGS)}
