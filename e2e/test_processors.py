"""Devices on kind, through the kubelet's device plugin API: scheduling, exhaustion, a device that turns unhealthy, slices, and none at all.

The devices do not exist. The kubelet counts and allocates them as real ones, and segments compute on the CPU by an explicit test setting.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.device_plugin import ENVIRONMENT, offered
from e2e.scene import NAME, OURS, frozen_sample, played, workers_of

pytestmark = [pytest.mark.cluster, pytest.mark.long]

NODE_MIB = 1500
"""Of each of the four workers: its CPU, or a device of it, holds the model."""
GPU, SLICE = "example.com/gpu", "example.com/gpu-half"
RULES = [
    {"resource": GPU, "class": "npu", "memoryMib": 4000, "gflops": 100000, "gbps": 1000},
    {"resource": SLICE, "class": "npu", "memoryMib": 700, "gflops": 50000, "gbps": 500},
]
TENANT = "device-tenant"


@pytest.fixture(scope="module")
def with_rules(operated: Cluster) -> Iterator[Cluster]:
    """An operator that knows the two resources, and lets segments on them compute on the CPU."""
    operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
    images = {name: operated.image(name) for name in stack.IMAGES}
    rules = ("--set-json", f"devices.rules={json.dumps(RULES)}", "--set", "devices.hostMiB=300")
    stack.install_operator(
        operated,
        images,
        *rules,
        "--set-string",
        "extraSettings.DEVICES_COMPUTE_ON_CPU=true",
        "--set-string",
        "extraSettings.DEVICE_GRACE_SECONDS=10",
    )
    with workers_of(operated, NODE_MIB):
        yield operated
    stack.install_operator(operated, images)


def wanted(segments: int = 1, **placement: Any) -> str:
    """The sample in so many segments."""
    body = frozen_sample()
    body["spec"] |= {"partition": {"minSegments": segments, "maxSegments": segments}, "replicas": 1}
    if placement:
        body["spec"]["placement"] = {**body["spec"].get("placement", {}), **placement}
    return json.dumps(body)


def places(cluster: Cluster) -> list[tuple[str, str]]:
    """Node and processor of the plan's segments."""
    plan = stack.resource(cluster, NAME)["status"].get("plan") or {}
    return [(s["node"], s.get("processor", "")) for s in plan.get("segments", [])]


def settles(cluster: Cluster, right: Any, what: str) -> list[tuple[str, str]]:
    """Wait until the plan is as wanted and serves."""

    def there() -> list[tuple[str, str]] | None:
        found = places(cluster)
        return found if right(found) and stack.settled(stack.resource(cluster, NAME)) else None

    placed: list[tuple[str, str]] = stack.until(there, 180, what, progress=lambda: stack.pods_of(cluster, "default"))
    return placed


def allocatable(cluster: Cluster, node: str, resource: str) -> int:
    found = json.loads(cluster.kubectl("get", "node", node, "-o", "json"))["status"]["allocatable"]
    return int(found.get(resource, 0))


def ready(cluster: Cluster, node: str, resource: str, count: int) -> None:
    """Until the kubelet says so many of them."""
    stack.until(lambda: allocatable(cluster, node, resource) == count, 60, f"{node} has {count} of {resource}")


def segment_pods(cluster: Cluster) -> list[dict[str, Any]]:
    pods = json.loads(cluster.kubectl("get", "pods", "-l", f"{OURS},app.kubernetes.io/component=segment", "-o", "json"))["items"]
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def takes_a_device(cluster: Cluster, node: str, image: str) -> None:
    """Another tenant's pod holds a device of this node."""
    limits = {GPU: "1", "memory": "16Mi", "cpu": "10m"}
    container = {"name": "work", "image": image, "command": ["sleep", "infinity"], "resources": {"limits": limits}}
    spec = {"nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0, "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": TENANT}, "spec": spec}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{TENANT}", "--timeout=300s")


def explained(cluster: Cluster) -> str:
    return "\n".join(stack.resource(cluster, NAME)["status"]["plan"]["explanation"])


def test_a_segment_runs_on_a_device_and_leaves_it_when_it_turns_unhealthy(with_rules: Cluster) -> None:
    cluster = with_rules
    first, second = cluster.settings.worker_names()[:2]
    with offered(first, GPU, 1) as plugin, offered(second, GPU, 1) as other:
        ready(cluster, first, GPU, 1)
        ready(cluster, second, GPU, 1)
        takes_a_device(cluster, second, cluster.image("gateway"))
        try:
            cluster.kubectl("apply", "-f", "-", stdin=wanted())
            stack.wait_ready(cluster, NAME)
            assert places(cluster) == [(first, f"{GPU}/0")], "the other one is a tenant's"
            assert f"{GPU} of {second} not used: other pods hold all 1" in explained(cluster)
            assert plugin.allocated == list(plugin.devices), "by the kubelet, for the segment"
            assert other.allocated == list(other.devices), "for the tenant"
            (pod,) = segment_pods(cluster)
            resources = pod["spec"]["containers"][0]["resources"]
            assert resources["requests"][GPU] == resources["limits"][GPU] == "1"
            given = cluster.kubectl("exec", pod["metadata"]["name"], "-c", "segment", "--", "printenv", ENVIRONMENT).strip()
            assert given == plugin.devices[0]
            with played(cluster, "a device turns unhealthy") as scene:
                plugin.healthy()
                ready(cluster, first, GPU, 0)
                settles(cluster, lambda found: found and not found[0][1], "the segment left its device for a CPU")
                assert "the processor is gone, or others use it" in scene.found()["status"]["decisions"][0]["message"]
        finally:
            cluster.kubectl("delete", "pod", TENANT, "--ignore-not-found", "--now")
            cluster.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")


def test_two_slices_of_one_node_hold_a_segment_each_and_a_class_that_is_gone_is_infeasible(with_rules: Cluster) -> None:
    cluster = with_rules
    node = cluster.settings.worker_names()[0]
    with offered(node, SLICE, 2) as plugin:
        ready(cluster, node, SLICE, 2)
        cluster.kubectl("apply", "-f", "-", stdin=wanted(2, processorClasses=["npu"]))
        stack.wait_ready(cluster, NAME)
        assert sorted(places(cluster)) == [(node, f"{SLICE}/0"), (node, f"{SLICE}/1")]
        assert sorted(plugin.allocated) == sorted(plugin.devices)
        with played(cluster, "the class is asked for and gone") as scene:
            plugin.healthy()
            ready(cluster, node, SLICE, 0)

            def refused() -> bool:
                planned = stack.condition(scene.found(), "Planned")
                return planned["status"] == "False" and "spec.placement.processorClasses asks for npu" in planned["message"]

            stack.until(refused, 120, "the condition says that no node has the class")
            assert sorted(places(cluster)) == [(node, f"{SLICE}/0"), (node, f"{SLICE}/1")], "what serves stays"
            scene.answers()
    cluster.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
