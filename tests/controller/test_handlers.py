"""What is a reason to look, and what is not."""

import copy
from typing import Any

import kopf

from splitinference.controller.handlers import node_content, register, resource_content
from splitinference.controller.passes import Pass, Passes

NODE: dict[str, Any] = {
    "metadata": {"name": "a", "labels": {"x": "1"}, "annotations": {"other/y": "1"}, "resourceVersion": "1"},
    "spec": {"podCIDR": "10.0.0.0/24"},
    "status": {
        "allocatable": {"cpu": "2", "memory": "2Gi"},
        "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "1"}],
        "images": [],
    },
}


def changed(*path: str, value: Any) -> dict[str, Any]:
    node = copy.deepcopy(NODE)
    target = node
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return node


def test_a_heartbeat_is_no_reason():
    beat = changed("status", "conditions", value=[{"type": "Ready", "status": "True", "lastHeartbeatTime": "2"}])
    beat["metadata"]["resourceVersion"] = "2"
    beat["status"]["images"] = [{"names": ["x"]}]
    beat["metadata"]["annotations"]["other/y"] = "2"
    assert node_content(beat) == node_content(NODE)


def test_what_the_planner_goes_by_is_one():
    for node in (
        changed("metadata", "labels", value={"x": "2"}),
        changed("metadata", "annotations", value={"splitinference.dev/links": "{}"}),
        changed("spec", "unschedulable", value=True),
        changed("spec", "taints", value=[{"key": "k", "effect": "NoExecute"}]),
        changed("status", "allocatable", value={"cpu": "1", "memory": "2Gi"}),
        changed("status", "conditions", value=[{"type": "Ready", "status": "Unknown"}]),
    ):
        assert node_content(node) != node_content(NODE)


def test_the_status_that_passes_write_is_none():
    body = {"metadata": {"generation": 1, "resourceVersion": "1"}, "status": {"segments": "1/2"}}
    later = {"metadata": {"generation": 1, "resourceVersion": "9"}, "status": {"segments": "2/2"}}
    assert resource_content(body) == resource_content(later)
    assert resource_content({"metadata": {"generation": 2}}) != resource_content(body)
    assert resource_content({"metadata": {"generation": 1, "deletionTimestamp": "now"}}) != resource_content(body)


def test_no_handler_needs_a_finalizer_or_keeps_progress_on_the_resource():
    registry = kopf.OperatorRegistry()
    register(registry, Passes(lambda key: Pass, None, 1, 1, lambda *_: None))  # type: ignore[arg-type, return-value]
    assert registry._watching.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    assert not registry._changing.get_all_handlers()
