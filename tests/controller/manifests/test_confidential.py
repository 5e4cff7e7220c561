"""Rules of privacy with a RuntimeClass: the pods that hold their layers have it, and the planner keeps them on the labelled nodes."""

from typing import Any

import pytest

from splitinference.controller.api.spec import Rejected, Resource, read_resource
from splitinference.controller.manifests.profile_pod import profile_pod
from splitinference.settings import Settings
from tests.controller.manifests.built import a_resource, build, gateway
from tests.controller.world import NAMESPACE, Operator, World, a_body, a_node

KATA = "kata-qemu-snp"


def rules(*layers: str, **more: str) -> dict[str, Any]:
    return {"rules": [{"layers": run, "nodeLabels": {"attested": "true"}, "runtimeClassName": KATA, **more} for run in layers]}


def runtime_class(layers: tuple[int, int], **spec: Any) -> str | None:
    found: str | None = build(a_resource(**spec), layers=layers).pod["spec"].get("runtimeClassName")
    return found


@pytest.mark.parametrize(
    ("rule", "layers", "expected"),
    [
        ("first", (0, 4), KATA),
        ("first", (1, 4), None),
        ("last", (20, 32), KATA),
        ("last", (20, 31), None),
        ("4:8", (0, 4), None),
        ("4:8", (0, 5), KATA),
        ("4:8", (5, 6), KATA),
        ("4:8", (7, 20), KATA),
        ("4:8", (8, 20), None),
    ],
)
def test_a_segment_has_it_if_it_holds_a_layer_of_the_rule(rule: str, layers: tuple[int, int], expected: str | None):
    assert runtime_class(layers, privacy=rules(rule)) == expected


def test_the_rule_wins_over_the_template():
    template = {"segments": {"runtimeClassName": "gvisor"}, "gateway": {"runtimeClassName": "gvisor"}}
    assert runtime_class((0, 4), privacy=rules("first"), podTemplate=template) == KATA
    assert runtime_class((1, 4), privacy=rules("first"), podTemplate=template) == "gvisor"
    pod = gateway(a_resource(privacy=rules("first"), podTemplate=template))["Deployment"]["spec"]["template"]
    assert pod["spec"]["runtimeClassName"] == KATA


@pytest.mark.parametrize(("rule", "expected"), [("first", KATA), ("last", KATA), ("0:2", KATA), ("4:8", None), ("31:32", KATA)])
def test_the_gateway_has_it_if_the_rule_covers_text(rule: str, expected: str | None):
    pod = gateway(a_resource(privacy=rules(rule)))["Deployment"]["spec"]["template"]
    assert pod["spec"].get("runtimeClassName") == expected


def test_only_segments_that_get_it_are_other_segments():
    with_rule, without = a_resource(privacy=rules("first")), a_resource()
    assert build(with_rule, layers=(0, 4)).name != build(without, layers=(0, 4)).name
    assert build(with_rule, layers=(4, 8)).name == build(without, layers=(4, 8)).name


def test_two_runtime_classes_cannot_be_asked_for():
    given = {"rules": [*rules("first")["rules"], *rules("last", runtimeClassName="kata-qemu-tdx")["rules"]]}
    read = read_resource(a_resource(privacy=given))
    assert isinstance(read, Rejected)
    assert "kata-qemu-snp, kata-qemu-tdx" in str(read)


def test_a_rule_that_comes_while_serving_moves_the_layers_into_the_runtime_without_a_failed_request():
    world = World({name: a_node(name, mib=310, **({"attested": "true"} if name != "a" else {})) for name in ("a", "b", "c")})
    world.add(a_body())
    operator = Operator(world)
    operator.run(6)
    assert world.condition("Ready")["status"] == "True"
    world.change(privacy=rules("first"))
    operator.run(10)
    assert world.condition("Ready")["status"] == "True"
    segments = world.status()["plan"]["segments"]
    assert world.serving() == [s["name"] for s in segments]
    pods = {s["start"]: world.objects["Pod", NAMESPACE, s["name"]]["spec"] for s in segments}
    assert [start for start, spec in pods.items() if spec.get("runtimeClassName") == KATA] == [0]
    assert segments[0]["node"] != "a", "it is not attested"


def test_with_no_attested_node_there_is_no_plan_and_no_segment():
    world = World({name: a_node(name, mib=2000) for name in ("a", "b", "c")})
    world.add(a_body(privacy=rules("first")))
    operator = Operator(world)
    operator.run(3)
    assert world.condition("Planned")["status"] == "False"
    assert not [name for kind, _, name in world.objects if kind == "Pod" and "gateway" not in name], "no segment"


def test_jobs_that_read_a_model_need_no_such_runtime():
    read = read_resource(a_resource(privacy=rules("first")))
    assert isinstance(read, Resource)
    assert "runtimeClassName" not in profile_pod(read, "node-a", Settings())["spec"]
