"""A node's devices as the core sees them: from extended resources, labels, the chart's rules and the catalogue; unusable with a reason."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from splitinference.adapters.kubernetes.trim import node_kept
from splitinference.controller.cluster_state.figures.node_metrics import Measured
from splitinference.controller.cluster_state.snapshot import Reading, Sources, device_claims, read_snapshot
from splitinference.controller.ports import Sample, Samples
from splitinference.core.values.cluster import Node
from splitinference.settings import Settings
from tests.controller.world import a_node

GIB = 2**30
GPU = "nvidia.com/gpu"
A100 = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB", "nvidia.com/gpu.memory": "81920"}
CUDA = {"cuda": {"image": "segment:cuda", "runtimeClassName": "nvidia"}}
SETTINGS = Settings.model_validate({"segment_images_by_class": CUDA, "segment_device_host_mib": 1024})


def node_with(resources: dict[str, str], labels: dict[str, str] | None = None, mib: int = 8192, **capacity: str) -> dict[str, Any]:
    node = a_node("a", mib=mib, cores=8)
    node["metadata"]["labels"] |= labels or {}
    node["status"]["allocatable"] |= resources
    node["status"]["capacity"] = {**resources, **{name.replace("__", "/"): value for name, value in capacity.items()}}
    return node


def a_pod(name: str, resource: str = "", count: str = "1", instance: str = "", device: str = "") -> dict[str, Any]:
    ours = {"managed-by": "splitinference", "instance": instance, "component": "segment"}
    labels = {f"app.kubernetes.io/{key}": value for key, value in ours.items()} if instance else {}
    requests = {"memory": "1Gi"} | ({resource: count} if resource else {})
    return {
        "metadata": {"name": name, "namespace": "team", "labels": labels, "annotations": {"splitinference.dev/device": device}},
        "spec": {"nodeName": "a", "containers": [{"name": "segment", "resources": {"requests": requests}}]},
        "status": {"phase": "Running"},
    }


def reading(
    node: dict[str, Any], *pods: dict[str, Any], settings: Settings = SETTINGS, measured: Measured | None = None, held: Any = None
) -> Reading:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    sources = Sources(
        now=now,
        nodes=[node_kept(node)],
        pods=list(pods),
        measured=measured or Measured(),
        held={},
        owner=("team", "chat"),
        held_devices=held or {},
    )
    return read_snapshot(sources, settings)


def seen(node: dict[str, Any], *pods: dict[str, Any], settings: Settings = SETTINGS) -> Node:
    return reading(node, *pods, settings=settings).snapshot.nodes[0]


def names(node: Node) -> list[str]:
    return [place.name for place in node.processors]


# --- what a device can do ------------------------------------------------------------------------------------------------------------


def test_gpus_are_places_beside_the_cpu_with_memory_of_their_own():
    node = seen(node_with({GPU: "2"}, A100))
    assert names(node) == ["", f"{GPU}/0", f"{GPU}/1"]
    cpu, gpu, _ = node.processors
    assert (gpu.kind, gpu.resource, gpu.memory_free_bytes) == ("cuda", GPU, 80 * GIB)
    assert gpu.flops_per_s == 312e12
    assert gpu.flops_by_dtype["float32"] == 19.5e12
    assert gpu.memory_bandwidth_bytes_per_s == 2039e9
    assert gpu.figures == "catalogue"
    assert gpu.efficiency.source, "what engines reach on it is known"
    assert cpu.memory_free_bytes == 6 * GIB, "two servers of 1 GiB have room set aside"
    assert node.memory_free_bytes == 8 * GIB
    assert node.device_host_bytes == GIB
    assert node.devices == {GPU: 2}
    assert node.devices_out == {}


def test_a_node_without_devices_is_what_it_was():
    node = seen(node_with({}))
    assert node.processors == ()
    assert node.devices_out == {}


def test_float32_of_a_product_without_such_a_figure_is_a_sixteenth_and_not_the_half_precision_figure():
    labels = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}
    gpu = seen(node_with({GPU: "1"}, labels)).processors[1]
    assert gpu.flops_by_dtype["float32"] == pytest.approx(gpu.flops_per_s / 16)


def test_mig_slices_are_parts_of_the_product():
    labels = {**A100, "nvidia.com/mig-1g.10gb.product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "nvidia.com/mig-1g.10gb.memory": "9728"}
    node = seen(node_with({"nvidia.com/mig-1g.10gb": "1", "nvidia.com/mig-3g.40gb": "1"}, labels))
    assert names(node) == ["", "nvidia.com/mig-1g.10gb/0", "nvidia.com/mig-3g.40gb/0"]
    small, large = node.processors[1:]
    assert small.memory_free_bytes == 9728 * 2**20
    assert small.flops_per_s == pytest.approx(312e12 / 7)
    assert small.memory_bandwidth_bytes_per_s == pytest.approx(2039e9 / 8)
    assert large.memory_free_bytes == 40_000_000_000, "no label says it, and the profile does"
    assert large.flops_per_s == pytest.approx(312e12 * 3 / 7)


def test_slices_that_all_are_alike_are_named_as_whole_gpus_are():
    labels = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "nvidia.com/gpu.memory": "4864", "nvidia.com/gpu.count": "7"}
    found = reading(node_with({GPU: "7"}, labels))
    gpu = found.snapshot.nodes[0].processors[1]
    assert gpu.memory_free_bytes == 4864 * 2**20
    assert gpu.flops_per_s == pytest.approx(312e12 / 7)
    assert not found.notes


@pytest.mark.parametrize(
    ("resource", "more"),
    [
        ("nvidia.com/gpu.shared", {}),
        (GPU, {"nvidia.com/gpu.product": "Tesla-T4-SHARED"}),
        (GPU, {"nvidia.com/gpu.sharing-strategy": "mps"}),
    ],
)
def test_a_shared_gpu_counts_as_its_share(resource: str, more: dict[str, str]):
    labels = {"nvidia.com/gpu.product": "Tesla-T4", "nvidia.com/gpu.memory": "15360", "nvidia.com/gpu.replicas": "4", **more}
    node = seen(node_with({resource: "4"}, labels))
    assert names(node) == ["", *(f"{resource}/{n}" for n in range(4))]
    assert node.processors[1].memory_free_bytes == 15360 * 2**20 // 4
    assert node.processors[1].flops_per_s == pytest.approx(65e12 / 4)


def test_labels_win_over_the_rule_and_the_rule_over_the_catalogue():
    rule = {"resource": GPU, "class": "cuda", "product": "NVIDIA-L4", "memoryMib": 1000, "gflops": 50.0}
    settings = SETTINGS.model_copy(update={"device_rules": Settings.model_validate({"device_rules": [rule]}).device_rules})
    by_rule = seen(node_with({GPU: "1"}), settings=settings).processors[1]
    assert (by_rule.flops_per_s, by_rule.memory_bandwidth_bytes_per_s, by_rule.figures) == (50e9, 300e9, "rule and catalogue")
    assert by_rule.memory_free_bytes == 1000 * 2**20
    labels = {"splitinference.dev/device-gflops": "70", "splitinference.dev/device-memory-bandwidth-gbps": "7"}
    by_label = seen(node_with({GPU: "1"}, labels), settings=settings).processors[1]
    assert (by_label.flops_per_s, by_label.memory_bandwidth_bytes_per_s, by_label.figures) == (70e9, 7e9, "labelled")


def test_a_table_of_ones_own_makes_any_resource_a_device():
    rule = {"resource": "example.com/npu-*", "class": "npu", "memoryMib": 4096, "gflops": 1000, "gbps": 50}
    given = {"device_rules": [rule], "segment_images_by_class": {"npu": {"image": "segment:npu"}}}
    node = seen(node_with({"example.com/npu-v2": "1"}), settings=Settings.model_validate(given))
    assert (node.processors[1].name, node.processors[1].kind) == ("example.com/npu-v2/0", "npu")


def test_amd_and_intel_labels_say_memory_and_product(tmp_path: Path):
    nominal = {"flops_per_s": 1e14, "memory_bandwidth_bytes_per_s": 1e12, "source": "a test"}
    (tmp_path / "more.json").write_text('{"processors": {"Instinct_MI210": %s, "Flex_170": %s}}' % ((str(nominal).replace("'", '"'),) * 2))
    settings = Settings.model_validate(
        {"catalogue_folder": str(tmp_path), "segment_images_by_class": {"rocm": {"image": "r"}, "xpu": {"image": "x"}}}
    )
    labels = {
        "amd.com/gpu.product-name": "Instinct_MI210",
        "amd.com/gpu.vram": "64G",
        "gpu.intel.com/product": "Flex_170",
        "gpu.intel.com/memory.max": "32000000000",
    }
    offered = {"amd.com/gpu": "1", "gpu.intel.com/i915": "2", "gpu.intel.com/i915_monitoring": "1"}
    node = seen(node_with(offered, labels), settings=settings)
    memory = {place.resource: place.memory_free_bytes for place in node.processors[1:]}
    assert memory == {"amd.com/gpu": 64 * 10**9, "gpu.intel.com/i915": 16 * 10**9}, "Intel's label is the sum over all GPUs"
    assert node.devices_out == {}, "a monitoring resource is no device"


# --- what cannot be used, and why ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "labels", "why"),
    [
        ({GPU: "1"}, {}, "no label says its product; extend the catalogue"),
        ({GPU: "1"}, {"nvidia.com/gpu.product": "NVIDIA-X9"}, "its product NVIDIA-X9 is not in the catalogue"),
        ({GPU: "1"}, {"nvidia.com/gpu.product": "NVIDIA-L4"}, "nothing says how much memory it has"),
        ({GPU: "0.5"}, A100, "the node says that it has 0.5 of them, and devices are whole"),
        ({GPU: "-1"}, A100, "the node says that it has -1 of them"),
        ({GPU: "many"}, A100, "the node says that it has many of them"),
        ({"nvidia.com/mig-small": "1"}, A100, "its name and labels show no MIG profile"),
        ({"nvidia.com/mig-1g.10gb": "1"}, {**A100, "nvidia.com/gpu.product": "NVIDIA-L4"}, "it is a slice of NVIDIA-L4"),
        ({"nvidia.com/mig-9g.10gb": "1"}, A100, "labels contradict it: it has 9 slices, and NVIDIA-A100-SXM4-80GB has 7"),
        (
            {"nvidia.com/mig-1g.10gb": "1"},
            {**A100, "nvidia.com/mig-1g.10gb.product": "NVIDIA-A100-SXM4-80GB-MIG-2g.20gb"},
            "labels contradict it: they say NVIDIA-A100-SXM4-80GB-MIG-2g.20gb",
        ),
        ({"nvidia.com/gpu.shared": "4"}, A100, "the label nvidia.com/gpu.replicas, which says how many, is not there"),
        ({"nvidia.com/gpu.shared": "4"}, {**A100, "nvidia.com/gpu.replicas": "0"}, "is '0'"),
        ({"nvidia.com/pgpu": "1"}, A100, "no rule says what it is"),
        ({"habana.ai/gaudi": "8"}, {}, "no segment image for class gaudi"),
        ({"aws.amazon.com/neuron": "1", "aws.amazon.com/neuroncore": "2"}, {}, "no segment image for class neuron"),
    ],
)
def test_what_cannot_be_used_says_why(resources: dict[str, str], labels: dict[str, str], why: str):
    node = seen(node_with(resources, labels))
    assert node.processors == ()
    assert why in node.devices_out[next(iter(resources))]


def test_a_class_without_an_image_says_which_value_of_the_chart_is_missing():
    rule = {"resource": "habana.ai/gaudi", "class": "gaudi", "memoryMib": 98304, "gflops": 400000, "gbps": 2400}
    settings = Settings.model_validate({"device_rules": [rule]})
    node = seen(node_with({"habana.ai/gaudi": "8"}), settings=settings)
    assert node.devices_out == {"habana.ai/gaudi": "no segment image for class gaudi; set `images.segment.byClass.gaudi` in the chart"}
    named = Settings.model_validate({"device_rules": [rule], "segment_images_by_class": {"gaudi": {"image": "g"}}})
    assert seen(node_with({"habana.ai/gaudi": "2"}), settings=named).devices == {"habana.ai/gaudi": 2}


def test_labels_that_contradict_devices_are_noted_and_never_add_any():
    found = reading(node_with({GPU: "1"}, {**A100, "nvidia.com/gpu.count": "8", "nvidia.com/gpu.memory": "999999"}))
    node = found.snapshot.nodes[0]
    assert node.devices == {GPU: 1}
    assert node.processors[1].memory_free_bytes == 80 * 10**9, "the product's own, which is less"
    assert any("labels say 8 of nvidia.com/gpu on node a, and it has 1" in note for note in found.notes)
    assert any("says 999999 MiB of nvidia.com/gpu, and it has 76294: the smaller figure is used" in note for note in found.notes)


def test_labels_without_any_device_are_noted():
    found = reading(node_with({}, A100))
    assert found.snapshot.nodes[0].processors == ()
    assert any("offers no resource nvidia.com/gpu: does its device plugin run?" in note for note in found.notes)


def test_the_label_for_gpus_that_nobody_requests_counts_no_more_where_devices_do():
    labels = {**A100, "splitinference.dev/processor": "gpu", "splitinference.dev/compute-gflops": "312000"}
    found = reading(node_with({GPU: "1"}, labels))
    cpu = found.snapshot.nodes[0].processors[0]
    assert cpu.flops_per_s == 8 * SETTINGS.core_gflops * 1e9
    assert any("splitinference.dev/processor of node a is gpu" in note for note in found.notes)


def test_memory_labels_that_are_none_are_ignored_with_a_note():
    found = reading(node_with({GPU: "1"}, {**A100, "nvidia.com/gpu.memory": "lots"}))
    assert found.snapshot.nodes[0].processors[1].memory_free_bytes == 80 * 10**9
    assert any("is 'lots', which is no amount of memory" in note for note in found.notes)


# --- which are free ------------------------------------------------------------------------------------------------------------------


def test_devices_that_others_hold_are_not_free_whoever_they_are():
    pods = [a_pod("theirs", GPU, "2"), a_pod("s", GPU, instance="other", device=f"{GPU}/0"), a_pod("no-device")]
    assert names(seen(node_with({GPU: "4"}, A100), *pods)) == ["", f"{GPU}/0"]
    node = seen(node_with({GPU: "4"}, A100), *pods, a_pod("last", GPU))
    assert node.processors == ()
    assert node.devices_out == {GPU: "other pods hold all 4"}


def test_what_own_segments_hold_keeps_its_name():
    own = a_pod("s1", GPU, instance="chat", device=f"{GPU}/2")
    assert names(seen(node_with({GPU: "3"}, A100), own)) == ["", f"{GPU}/2", f"{GPU}/0", f"{GPU}/1"]
    assert names(seen(node_with({GPU: "3"}, A100), own, a_pod("theirs", GPU, "2"))) == ["", f"{GPU}/2"]


def test_an_annotation_without_a_request_holds_nothing():
    liar = a_pod("s1", instance="chat", device=f"{GPU}/7")
    assert names(seen(node_with({GPU: "1"}, A100), liar)) == ["", f"{GPU}/0"]


def test_an_unhealthy_device_is_gone_even_if_our_segment_holds_it():
    own = a_pod("s1", GPU, instance="chat", device=f"{GPU}/0")
    assert seen(node_with({GPU: "0"}, A100), own).processors == ()
    one_of_two = node_with({GPU: "0"}, A100)
    one_of_two["status"]["capacity"][GPU] = "2"
    assert seen(one_of_two, own).devices_out == {GPU: "its device plugin says that none of 2 is healthy"}


def test_what_others_plans_hold_before_their_pods_are_there_is_not_free():
    found = reading(node_with({GPU: "2"}, A100), held={"a": {GPU: 1}}).snapshot.nodes[0]
    assert names(found) == ["", f"{GPU}/0"]
    found = reading(node_with({GPU: "2"}, A100), held={"a": {GPU: 2}}).snapshot.nodes[0]
    assert found.devices_out == {GPU: "others' plans hold all that are free"}
    own = a_pod("s1", GPU, instance="chat", device=f"{GPU}/1")
    found = reading(node_with({GPU: "2"}, A100), own, held={"a": {GPU: 2}}).snapshot.nodes[0]
    assert names(found) == ["", f"{GPU}/1"], "what our segment holds is ours"


def test_plans_claim_devices_and_the_memory_of_their_servers():
    segment = {"name": "s1", "node": "a", "processor": f"{GPU}/0", "memoryBytes": 70 * GIB, "nodeMemoryBytes": GIB}
    other = {"metadata": {"namespace": "team", "name": "other"}, "status": {"plan": {"segments": [segment]}}}
    assert device_claims([other], [], "team", "chat") == {"a": {GPU: 1}}
    assert device_claims([other], [], "team", "other") == {}
    assert device_claims([other], [a_pod("s1", GPU, instance="other")], "team", "chat") == {}, "its pod is there and requests it"


def test_memory_of_the_node_limits_how_many_servers_run_there():
    node = seen(node_with({GPU: "4"}, A100, mib=2500))
    assert len(node.devices) == 1
    assert node.devices == {GPU: 2}
    assert node.devices_out[GPU].startswith("2 of 4: the node has 2500 MiB free, and the server of each segment takes 1024 MiB")
    assert node.processors[0].memory_free_bytes == 452 * 2**20


def test_use_of_the_cpu_by_others_is_no_use_of_the_device():
    busy = Measured(node_cpu_cores=Samples(by_name={"a": Sample(value=6.0, age_seconds=5)}))
    node = reading(node_with({GPU: "1"}, A100), measured=busy).snapshot.nodes[0]
    assert node.utilization == 0.75
    assert [place.utilization for place in node.processors] == [None, 0.0]


# --- settings ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"segment_resources": {"limits": {GPU: "0.5"}}}, "nvidia.com/gpu is 0.5. Plans decide which segments request devices"),
        ({"segment_resources": {"requests": {GPU: 1}}}, "always whole"),
        ({"device_rules": [{"resource": "gpu", "class": "cuda"}]}, "'gpu' is no extended resource"),
        ({"device_rules": [{"resource": "requests.kubernetes.io/gpu", "class": "cuda"}]}, "resources of kubernetes.io are no devices"),
        ({"device_rules": [{"resource": "a.com/b", "class": "cpu"}]}, "the class cpu is that of the nodes themselves"),
        ({"device_rules": [{"resource": "a.com/b", "class": "npu", "gflops": 0}]}, "greater than 0"),
        ({"device_rules": [{"resource": "a.com/b", "class": "npu", "memory": 5}]}, "Extra inputs"),
        ({"segment_images_by_class": {"CUDA!": {"image": "x"}}}, "small letters, digits and dashes"),
        ({"segment_images_by_class": {"cpu": {"image": "x"}}}, "segment_image"),
        ({"segment_images_by_class": {"cuda": {"image": ""}}}, "at least 1 character"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], why: str):
    with pytest.raises(ValidationError, match=why.replace(".", r"\.")):
        Settings.model_validate(given)
