"""What of nodes and pods is kept: what planning goes by, each alike thing once, and nothing that changes by itself."""

import copy
from typing import Any

import pytest

from splitinference.adapters.kubernetes.trim import node_kept, pod_kept
from splitinference.controller.cluster_state.figures.series_owners import speakers_of
from splitinference.controller.cluster_state.node_capacity import NOBODY, ground_of
from splitinference.controller.cluster_state.pods import node_of, requested_bytes, requested_millicores
from splitinference.controller.manifests.pod_parts import MANAGED_BY, OURS
from splitinference.settings import Settings

NODE: dict[str, Any] = {
    "metadata": {
        "name": "a",
        "uid": "1",
        "resourceVersion": "1",
        "labels": {"x": "1", "splitinference.dev/compute-gflops": "80"},
        "annotations": {"other/y": "1", "splitinference.dev/links": "{}"},
        "managedFields": [{"manager": "kubelet"}],
    },
    "spec": {"podCIDR": "10.0.0.0/24", "taints": [{"key": "k", "effect": "NoSchedule", "timeAdded": "1"}]},
    "status": {
        "allocatable": {"cpu": "2", "memory": "2Gi"},
        "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "1"}],
        "images": [{"names": ["x"]}],
    },
}


def changed(thing: dict[str, Any], *path: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(thing)
    target = found
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return found


def test_a_heartbeat_changes_nothing():
    beat = changed(NODE, "status", "conditions", value=[{"type": "Ready", "status": "True", "lastHeartbeatTime": "2"}])
    beat["metadata"]["resourceVersion"] = "2"
    beat["status"]["images"] = []
    beat["metadata"]["annotations"]["other/y"] = "2"
    assert node_kept(beat) == node_kept(NODE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("metadata", "labels"), {"x": "2"}),
        (("metadata", "annotations"), {"splitinference.dev/links": '{"b": {"mbps": 5}}'}),
        (("metadata", "deletionTimestamp"), "2026-01-01T00:00:00Z"),
        (("spec", "unschedulable"), True),
        (("spec", "taints"), [{"key": "k", "effect": "NoExecute"}]),
        (("status", "allocatable"), {"cpu": "1", "memory": "2Gi"}),
        (("status", "conditions"), [{"type": "Ready", "status": "Unknown"}]),
        (("status", "addresses"), [{"type": "InternalIP", "address": "10.0.0.1"}]),
        (("status", "nodeInfo"), {"machineID": "m", "kernelVersion": "6.1", "architecture": "amd64"}),
        (("metadata", "uid"), "2"),
    ],
)
def test_what_the_planner_goes_by_is_a_change(path: tuple[str, ...], value: Any):
    assert node_kept(changed(NODE, *path, value=value)) != node_kept(NODE)


def test_what_is_kept_of_a_node_says_the_same_to_the_planner():
    ground, kept = (ground_of(node, (), NOBODY, Settings()) for node in (NODE, node_kept(NODE)))
    assert kept.node == ground.node
    assert kept.free_bytes == ground.free_bytes == 2 * 2**30


POD: dict[str, Any] = {
    "metadata": {"name": "web-0", "namespace": "team", "resourceVersion": "5", "labels": {"app": "web"}, "annotations": {"a": "b"}},
    "spec": {
        "nodeName": "a",
        "overhead": {"memory": "8Mi"},
        "containers": [
            {"name": "main", "image": "x", "env": [], "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}},
            {"name": "y"},
        ],
        "initContainers": [
            {"name": "first", "resources": {"requests": {"memory": "300Mi"}}},
            {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"memory": "1Mi"}}},
        ],
    },
    "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
}


def test_of_others_pods_where_they_are_and_what_they_request_is_kept():
    kept = pod_kept(POD)
    assert (requested_bytes(kept), requested_millicores(kept)) == (requested_bytes(POD), requested_millicores(POD)) == (308 * 2**20, 100)
    assert node_of(kept) == "a"
    assert (kept["metadata"], kept["status"]) == ({"namespace": "team", "name": "web-0"}, {"phase": "Running"})
    assert pod_kept(changed(POD, "status", "podIP", value="10.0.0.2")) == kept
    assert pod_kept(changed(POD, "status", "phase", value="Succeeded")) != kept


def test_what_many_pods_have_alike_is_kept_once():
    one, other = pod_kept(POD), pod_kept(changed(POD, "metadata", "name", value="web-1"))
    assert one["spec"]["containers"] is other["spec"]["containers"]


def test_our_own_pods_are_kept_whole_but_for_who_wrote_what():
    ours = changed(POD, "metadata", "labels", value={MANAGED_BY: OURS})
    assert pod_kept(changed(ours, "metadata", "managedFields", value=[{"manager": "kubelet"}])) == ours


def test_of_link_probes_is_kept_who_they_are_and_of_others_that_look_alike_not():
    labels = {"app.kubernetes.io/name": "splitinference", "app.kubernetes.io/component": "probe", "pod-template-generation": "1"}
    probe = changed(changed(POD, "metadata", "labels", value=labels), "status", "podIP", value="10.0.0.7")
    (speaker,) = speakers_of([pod_kept(probe)], "team")
    assert (speaker.name, speaker.node, speaker.addresses, speaker.segment) == ("web-0", "a", {"10.0.0.7"}, False)
    assert "pod-template-generation" not in pod_kept(probe)["metadata"]["labels"]
    assert "labels" not in pod_kept(POD)["metadata"]
