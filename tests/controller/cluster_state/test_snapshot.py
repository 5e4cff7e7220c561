"""Nodes, pods and metrics as the core sees them: memory counted once, doubtful values unknown, odd labels noted."""

from typing import Any

import pytest

from splitinference.adapters.kubernetes.trim import pod_kept
from splitinference.controller.cluster_state.figures.node_metrics import Measured
from splitinference.controller.cluster_state.snapshot import Sources, claims, read_snapshot
from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.ports import Sample, Samples
from splitinference.core.cost.checks.eligible import unusable
from splitinference.core.values.problem import Constraints, Toleration
from tests.controller.cluster_state.read import MIB, NOW, OWNER, SETTINGS, a_pod, read
from tests.controller.world import a_node
from tests.core.planning import a_problem

# --- memory --------------------------------------------------------------------------------------------------------------------------


def test_memory_is_net_of_what_others_request_and_own_segments_count_as_free():
    pods = [
        a_pod("x", "a"),
        a_pod("s1", "a", "200Mi", "chat"),
        a_pod("s2", "a", "300Mi", "other"),
        a_pod("s3", "a", "50Mi", "chat", "elsewhere"),
    ]
    assert read([a_node("a", mib=1000)], pods).snapshot.nodes[0].memory_free_bytes == (1000 - 100 - 300 - 50) * MIB


def test_pods_that_ended_hold_nothing():
    assert read([a_node("a", mib=1000)], [a_pod("x", "a", phase="Failed")]).snapshot.nodes[0].memory_free_bytes == 1000 * MIB


def test_an_init_container_counts_where_it_asks_for_more():
    pod = a_pod("x", "a")
    pod["spec"]["initContainers"] = [{"name": "i", "resources": {"requests": {"memory": "400Mi"}}}]
    assert read([a_node("a", mib=1000)], [pod]).snapshot.nodes[0].memory_free_bytes == 600 * MIB
    pod["spec"]["initContainers"][0]["restartPolicy"] = "Always"
    assert read([a_node("a", mib=1000)], [pod]).snapshot.nodes[0].memory_free_bytes == 500 * MIB


def test_memory_that_is_not_there_though_nobody_requested_it():
    measured = Measured(node_memory_available_bytes=Samples(by_name={"a": Sample(value=300 * MIB, age_seconds=1)}))
    assert read([a_node("a", mib=1000)], [a_pod("s", "a", "200Mi", "chat")], measured).snapshot.nodes[0].memory_free_bytes == 500 * MIB


def asking(cores: str, instance: str = "") -> dict[str, Any]:
    pod = a_pod(f"x-{cores}", "a", instance=instance)
    pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = cores
    return pod


def test_a_node_whose_cores_are_all_requested_takes_no_segment_however_idle_it_is():
    node = a_node("a", cores=2)
    assert read([node], [asking("1"), asking("900m")]).snapshot.nodes[0].excluded == ""
    full = read([node], [asking("1"), asking("950m")]).snapshot.nodes[0]
    assert full.excluded == "1.95 of its 2 cores are requested, and a segment requests 100m"


def test_a_segment_that_is_there_stays_where_all_cores_are_requested():
    assert read([a_node("a", cores=2)], [asking("1950m"), asking("50m", "chat")]).snapshot.nodes[0].excluded == ""


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"kubernetes.io/os": "windows", "kubernetes.io/arch": "amd64"}, "its operating system is windows, the images are for linux"),
        ({"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}, "its architecture is arm64, the images are for amd64"),
        ({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}, ""),
        ({}, ""),
    ],
)
def test_nodes_that_the_images_do_not_run_on_are_excluded_whatever_is_tolerated(labels, why):
    node = a_node("a")
    node["metadata"]["labels"] |= labels
    (found,) = read([node]).snapshot.nodes
    assert found.excluded == why
    assert unusable(found, a_problem(found, constraints=Constraints(tolerations=(Toleration(operator="Exists"),)))) == (why or None)


# --- the scheduler's own sums --------------------------------------------------------------------------------------------------------


def holding(memory: str | None = "100Mi", **spec: Any) -> dict[str, Any]:
    pod = a_pod("x", "a")
    pod["spec"]["containers"][0]["resources"]["requests"] = {"memory": memory} if memory else {}
    pod["spec"] |= spec
    return pod


def an_init(memory: str, sidecar: bool = False) -> dict[str, Any]:
    container = {"name": f"i-{memory}-{sidecar}", "resources": {"requests": {"memory": memory}}}
    return container | ({"restartPolicy": "Always"} if sidecar else {})


def resized(asked: str, given: str, allocated: str | None = None, infeasible: bool = False) -> dict[str, Any]:
    pod = holding(asked)
    status: dict[str, Any] = {"name": "segment", "resources": {"requests": {"memory": given}}}
    if allocated:
        status["allocatedResources"] = {"memory": allocated}
    pod["status"]["containerStatuses"] = [{"name": "other", "resources": {"requests": {"memory": "9Gi"}}}, status]
    if infeasible:
        pod["status"]["conditions"] = [{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]
    return pod


@pytest.mark.parametrize(
    ("pod", "mib"),
    [
        (holding(resources={"requests": {"memory": "300Mi"}}), 300),  # for the whole pod, whatever its containers say
        (holding(resources={"requests": {"cpu": "1"}}), 100),  # of another resource
        (holding(resources={"requests": {"memory": "300Mi"}}, overhead={"memory": "50Mi"}), 350),  # such as Kata's
        (holding(initContainers=[an_init("60Mi", sidecar=True), an_init("70Mi")]), 160),  # sidecar beside the container
        (holding(initContainers=[an_init("250Mi"), an_init("90Mi", sidecar=True)]), 250),  # this sidecar starts after it
        (holding(initContainers=[an_init("90Mi", sidecar=True), an_init("250Mi")]), 340),  # and this one before it
        (resized("100Mi", "200Mi"), 200),  # smaller, not done yet
        (resized("200Mi", "100Mi"), 200),  # larger, not done yet
        (resized("100Mi", "100Mi", "150Mi"), 150),  # given to the pod, not yet to the container
        (resized("800Mi", "100Mi", "100Mi", infeasible=True), 100),  # never to be done
    ],
)
def test_memory_is_counted_as_the_scheduler_counts(pod, mib):
    for seen in (pod, pod_kept(pod)):
        assert read([a_node("a", mib=1000)], [seen]).snapshot.nodes[0].memory_free_bytes == (1000 - mib) * MIB


def test_a_node_that_takes_no_more_pods_takes_no_segment():
    node = a_node("a", mib=1000)
    node["status"]["allocatable"]["pods"] = "2"
    one, two = a_pod("x", "a", "1Mi"), a_pod("y", "a", "1Mi")
    assert read([node], [one]).snapshot.nodes[0].excluded == ""
    assert read([node], [one, two]).snapshot.nodes[0].excluded == "it has 2 pods, and its limit is 2"
    assert read([node], [one, two | {"status": {"phase": "Succeeded"}}]).snapshot.nodes[0].excluded == "", "what ended does not count"
    assert read([node], [one, a_pod("s", "a", "1Mi", "chat")]).snapshot.nodes[0].excluded == "", "our own segment is there already"


def test_images_for_several_architectures_run_on_all_of_them():
    node = a_node("a")
    node["metadata"]["labels"]["kubernetes.io/arch"] = "arm64"
    settings = SETTINGS.model_copy(update={"image_architectures": "amd64, arm64"})
    sources = Sources(now=NOW, nodes=[node], pods=[], measured=Measured(), held={}, owner=("team", "chat"))
    assert read_snapshot(sources, settings).snapshot.nodes[0].excluded == ""


@pytest.mark.parametrize(
    ("pods", "free"), [([], 290), ([asking("100m")], 190), ([asking("100m"), asking("50m", "chat")], 190), ([asking("0.5")], 0)]
)
def test_cores_that_our_segments_may_request_are_what_others_did_not(pods: list[Any], free: int):
    (node,) = read([a_node("a", cores=0.29)], pods).snapshot.nodes
    assert (node.millicores_free, node.cores) == (free, 0.29)


def test_a_node_that_does_not_say_its_cores_is_not_limited_by_them():
    silent = a_node("a")
    del silent["status"]["allocatable"]["cpu"]
    (node,) = read([silent]).snapshot.nodes
    assert (node.millicores_free, node.cores) == (None, None)


def test_other_plans_hold_what_they_have_not_made_yet_and_nothing_twice():
    def resource(name: str) -> dict[str, Any]:
        segments = [{"name": "s1", "node": "a", "memoryBytes": 10}, {"name": "s2", "node": "a", "memoryBytes": 5}]
        return {"metadata": {"name": name, "namespace": "team"}, "status": {"plan": {"segments": segments}}}

    resources = [resource("chat"), resource("other"), {"metadata": {"name": "new", "namespace": "team"}}]
    assert claims(resources, [], *OWNER) == {"a": 15}
    assert claims(resources, [a_pod("s1", "a", instance="other")], *OWNER) == {"a": 5}
    unscheduled = a_pod("s1", "", instance="other")
    assert claims(resources, [unscheduled], *OWNER) == {"a": 15}
    resources[1]["metadata"]["deletionTimestamp"] = "now"
    assert claims(resources, [], *OWNER) == {}


def test_what_other_plans_hold_is_not_free():
    assert read([a_node("a", mib=10)], held={"a": 4 * MIB}).snapshot.nodes[0].memory_free_bytes == 6 * MIB
    assert read([a_node("a", mib=10)], held={"a": 40 * MIB}).snapshot.nodes[0].memory_free_bytes == 0


# --- utilization ---------------------------------------------------------------------------------------------------------------------


# --- labels --------------------------------------------------------------------------------------------------------------------------


def test_labels_say_what_a_node_can_do_and_annotations_win():
    node = a_node("a", cores=4, **{"splitinference.dev/compute-gflops": "100", "splitinference.dev/busy-watts": "80"})
    node["metadata"]["annotations"] = {"splitinference.dev/compute-gflops": "300.5", "splitinference.dev/memory-bandwidth-gbps": "20"}
    found = read([node]).snapshot.nodes[0]
    assert (found.flops_per_s, found.memory_bandwidth_bytes_per_s, found.busy_watts) == (300.5e9, 20e9, 80)


def test_without_labels_cores_count():
    assert read([a_node("a", cores=4)]).snapshot.nodes[0].flops_per_s == 200e9
    assert read([a_node("a", cores=0.5)]).snapshot.nodes[0].flops_per_s == 25e9


@pytest.mark.parametrize("text", ["fast", "", "nan", "-1", "inf", "1e300"])
def test_a_label_that_is_no_number_is_noted_and_the_default_taken(text: str):
    reading = read([a_node("a", cores=2, **{"splitinference.dev/compute-gflops": text})])
    assert reading.snapshot.nodes[0].flops_per_s == 100e9
    assert reading.notes == (
        f"splitinference.dev/compute-gflops of node a is {text!r}, which is not a number of at least 0: the default is taken",
    )


def test_zero_compute_is_as_good_as_none_said():
    assert read([a_node("a", cores=2, **{"splitinference.dev/compute-gflops": "0"})]).snapshot.nodes[0].flops_per_s == 100e9


# --- GPUs and power ------------------------------------------------------------------------------------------------------------------


# --- state ---------------------------------------------------------------------------------------------------------------------------


def test_readiness_pressure_and_cordon():
    gone, full, cordoned = a_node("a"), a_node("b"), a_node("c")
    gone["status"]["conditions"][0]["status"] = "Unknown"
    full["status"]["conditions"][1]["status"] = "True"
    full["spec"]["taints"] = [{"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"}]
    cordoned["spec"]["unschedulable"] = True
    reading = read([gone, full, cordoned])
    assert [n.ready for n in reading.snapshot.nodes] == [False, True, True]
    assert list(reading.pressured) == ["b"]
    assert [[t.key for t in n.taints] for n in reading.snapshot.nodes] == [[], [], ["node.kubernetes.io/unschedulable"]]


def test_a_node_without_conditions_is_not_ready():
    node = a_node("a")
    node["status"] = {}
    assert read([node]).snapshot.nodes[0].ready is False


# --- links ---------------------------------------------------------------------------------------------------------------------------


# --- quantities ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("100m", 0.1), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("1e3", 1000), ("128974848000m", 128974848), ("12E", 12e18), ("0", 0), (3, 3)],
)
def test_quantities(text: object, number: float):
    found = quantity(text)
    assert found is not None
    assert float(found) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "x", "1X", "Mi", "1..2", None])
def test_what_is_no_quantity(text: object):
    assert quantity(text) is None
