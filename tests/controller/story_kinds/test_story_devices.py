"""Stories of devices: a segment runs on one, others take it, it turns unhealthy, it is asked for where there is none."""

from typing import Any

import pytest

from splitinference.controller.cluster_state.pods import requested
from splitinference.core.planner import solve
from splitinference.settings import Settings
from tests.controller.pretend import SETTINGS
from tests.controller.world import MIB, NAMESPACE, Operator, World, a_body, a_node

GPU = "example.com/gpu"
SLICE = "example.com/gpu-half"
RULES = [
    {"resource": GPU, "class": "npu", "memoryMib": 2000, "gflops": 100000, "gbps": 1000},
    {"resource": SLICE, "class": "npu", "memoryMib": 300, "gflops": 50000, "gbps": 500},
]
IMAGES = {"npu": {"image": "segment:npu", "runtimeClassName": "npu-runtime"}}


def settings(**more: Any) -> Settings:
    known = SETTINGS.model_dump(mode="python", by_alias=True, exclude_defaults=True)
    return Settings.model_validate(
        {**known, "device_rules": RULES, "segment_images_by_class": IMAGES, "segment_device_host_mib": 100, **more}
    )


def gpus(name: str, count: int, resource: str = GPU, mib: int = 600) -> dict[str, Any]:
    node = a_node(name, mib=mib)
    node["status"]["allocatable"][resource] = str(count)
    return node


def story(nodes: dict[str, dict[str, Any]], more: dict[str, Any] | None = None, **spec: Any) -> tuple[World, Operator]:
    world = World(nodes, settings=settings(**(more or {})))
    world.add(a_body(**spec))
    operator = Operator(world, solve)
    operator.run(6)
    return world, operator


def places(world: World) -> list[str]:
    return [f"{s['node']}/{s.get('processor', '')}" for s in world.status()["plan"]["segments"]]


def pods(world: World) -> list[dict[str, Any]]:
    return [world.objects["Pod", NAMESPACE, name] for name in world.segments()]


def tenant_with(world: World, node: str, count: int) -> None:
    world.tenant(node)
    world.objects["Pod", "others", f"tenant-{node}"]["spec"]["containers"][0]["resources"]["requests"][GPU] = str(count)


def test_a_segment_requests_its_device_and_the_image_of_its_class():
    world, _ = story({"a": gpus("a", 1), "b": a_node("b", mib=600)})
    assert world.condition("Ready")["status"] == "True", world.status()
    assert places(world) == [f"a/{GPU}/0"]
    (pod,) = pods(world)
    container = pod["spec"]["containers"][0]
    assert container["image"] == "segment:npu"
    assert pod["spec"]["runtimeClassName"] == "npu-runtime"
    assert container["resources"]["requests"] == {"cpu": "100m", "memory": str(100 * MIB), GPU: "1"}
    assert container["resources"]["limits"] == {"memory": str(100 * MIB), GPU: "1"}
    assert {"name": "SI_DEVICE", "value": "npu"} in container["env"]
    assert pod["metadata"]["annotations"]["splitinference.dev/device"] == f"{GPU}/0"
    (segment,) = world.status()["plan"]["segments"]
    assert segment["memoryBytes"] > 400 * MIB, "weights are planned from the device's memory"
    assert segment["nodeMemoryBytes"] == 100 * MIB, "and the server from the node's"
    assert any(f"on a/{GPU}/0" in line for line in world.status()["plan"]["explanation"])


def test_for_tests_a_device_that_does_not_exist_computes_on_the_cpu():
    world, _ = story({"a": gpus("a", 1)}, {"devices_compute_on_cpu": True, "segment_images_by_class": {}})
    (pod,) = pods(world)
    container = pod["spec"]["containers"][0]
    assert container["image"] == world.settings.segment_image
    assert {"name": "SI_DEVICE", "value": "cpu"} in container["env"]
    assert int(container["resources"]["limits"]["memory"]) > 500 * MIB
    assert requested(pod, GPU) == 1


def test_a_model_larger_than_the_device_uses_device_and_cpu_of_one_node():
    world, _ = story({"a": gpus("a", 1, SLICE, mib=900)})
    assert world.condition("Ready")["status"] == "True", world.status()
    assert sorted(places(world)) == ["a/", f"a/{SLICE}/0"]
    assert sorted(int(requested(pod, SLICE)) for pod in pods(world)) == [0, 1]
    assert sorted("segment:npu" in str(pod["spec"]) for pod in pods(world)) == [False, True]


def test_two_slices_hold_a_segment_each():
    world, _ = story({"a": gpus("a", 2, SLICE, mib=300)})
    assert sorted(places(world)) == [f"a/{SLICE}/0", f"a/{SLICE}/1"]
    assert world.condition("Ready")["status"] == "True", world.status()


def test_devices_that_others_hold_are_not_planned():
    nodes = {"a": gpus("a", 1), "b": gpus("b", 1)}
    world = World(nodes, settings=settings())
    tenant_with(world, "a", 1)
    world.add(a_body())
    Operator(world, solve).run(6)
    assert places(world) == [f"b/{GPU}/0"]
    assert any(f"{GPU} of a not used: other pods hold all 1" in line for line in world.status()["plan"]["explanation"])


def test_a_device_that_turns_unhealthy_is_left_and_nothing_else_is_touched():
    world, operator = story({"a": gpus("a", 1), "b": gpus("b", 1)})
    (before,) = world.status()["plan"]["segments"]
    other = "b" if before["node"] == "a" else "a"
    world.nodes[before["node"]]["status"]["allocatable"][GPU] = "0"
    world.nodes[before["node"]]["status"]["capacity"] = {GPU: "1"}
    operator.run(5)
    assert places(world) == [f"{before['node']}/{GPU}/0"], "its plugin may only be started anew"
    operator.run(12)
    assert places(world) == [f"{other}/{GPU}/0"]
    assert world.condition("Ready")["status"] == "True", world.status()
    decision = world.status()["decisions"][0]
    assert decision["reason"] == "NodeLost"
    assert f"runs on {before['node']}, which has no processor {GPU}/0 for it" in decision["message"]
    assert "the processor is gone, or others use it" in decision["message"]
    assert before["name"] not in world.segments()


def test_a_device_plugin_that_starts_anew_moves_nothing():
    world, operator = story({"a": gpus("a", 1), "b": gpus("b", 1)})
    (before,) = world.status()["plan"]["segments"]
    status = world.nodes[before["node"]]["status"]
    status["capacity"] = {GPU: "1"}
    for _ in range(3):
        status["allocatable"][GPU] = "0"
        operator.run(4)
        status["allocatable"][GPU] = "1"
        operator.run(2)
    assert world.status()["plan"]["segments"][0]["name"] == before["name"]
    assert [decision["reason"] for decision in world.status()["decisions"]] == ["NoPlan"]
    assert "devicesGone" not in str(world.status()["adaptation"])


def test_a_renamed_slice_is_a_lost_device_and_the_new_name_is_planned():
    world, operator = story({"a": gpus("a", 1)})
    assert places(world) == [f"a/{GPU}/0"]
    allocatable = world.nodes["a"]["status"]["allocatable"]
    del allocatable[GPU]
    allocatable[SLICE] = "2"
    operator.run(10)
    assert sorted(places(world)) == [f"a/{SLICE}/0", f"a/{SLICE}/1"]
    assert world.condition("Ready")["status"] == "True", world.status()


def test_without_any_other_place_the_plan_stays_and_the_condition_has_the_numbers():
    world, operator = story({"a": gpus("a", 1, mib=300)})
    world.nodes["a"]["status"]["allocatable"][GPU] = "0"
    operator.run(6)
    assert places(world) == [f"a/{GPU}/0"], "the serving plan stays"
    assert len(world.segments()) == 1
    feasible = next(c for c in world.status()["conditions"] if c["status"] == "False" and c["reason"] == "Infeasible")
    assert "the model needs 441 MiB in one segment, 1 places have 236 MiB free" in feasible["message"]


def test_a_class_that_no_node_has_is_infeasible_and_says_which_devices_there_are():
    world, _ = story({"a": gpus("a", 0)}, placement={"processorClasses": ["npu"]})
    assert not world.segments()
    message = next(c["message"] for c in world.status()["conditions"] if c["reason"] == "Infeasible")
    assert "spec.placement.processorClasses asks for npu, and it has no such processor" in message


def test_a_class_that_no_device_can_be_of_is_refused_with_those_that_are_known():
    world, _ = story({"a": gpus("a", 1)}, placement={"processorClasses": ["tpu"]})
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "SpecRejected")
    assert "no device is of class 'tpu'; known classes are cpu, cuda," in accepted["message"]


@pytest.mark.parametrize(("classes", "place"), [(["cpu"], "a/"), (["npu"], f"a/{GPU}/0"), (["cpu", "npu"], f"a/{GPU}/0")])
def test_the_resource_says_which_classes_it_may_use(classes: list[str], place: str):
    world, _ = story({"a": gpus("a", 1, mib=900)}, placement={"processorClasses": classes})
    assert places(world) == [place]


def test_two_resources_never_plan_the_same_device():
    world = World({"a": gpus("a", 1, mib=900)}, settings=settings())
    world.add(a_body())
    world.add(a_body("code"))
    operator = Operator(world, solve)
    operator.run(8, "chat", "code")
    taken = [s.get("processor", "") for name in ("chat", "code") for s in (world.status(name).get("plan") or {}).get("segments", [])]
    assert sorted(taken) == ["", f"{GPU}/0"]
