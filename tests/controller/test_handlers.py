"""What is a reason to look, and what is not."""

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kopf

from splitinference.controller.handlers import node_content, register, resource_content
from splitinference.controller.passes import Ended, Pass, Passes

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
    register(registry, Passes(lambda key: Pass, None, 1, 1, lambda *_: None), lambda *_: None)  # type: ignore[arg-type, return-value]
    assert registry._watching.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    assert not registry._changing.get_all_handlers()


def test_a_pass_reads_what_woke_it():
    """Its own watch may be behind: a resource that it does not find is taken to be gone, and never looked at again."""
    known: set[str] = set()
    ended: list[Ended] = []

    def one_pass(key: tuple[str, str]) -> Pass:
        return Pass(Ended.DONE if key[1] in known else Ended.GONE)

    def noticed(kind: str, thing: Any, gone: bool) -> None:
        (known.discard if gone else known.add)(thing["metadata"]["name"])

    async def scenario(threads: ThreadPoolExecutor) -> None:
        registry = kopf.OperatorRegistry()
        passes = Passes(one_pass, threads, 60, 60, lambda key, done, seconds: ended.append(done.ended))
        register(registry, passes, noticed)
        (changed,) = (found for found in registry._watching.get_all_handlers() if "resource_changed" in str(found.id))
        body = {"metadata": {"name": "chat", "namespace": "team", "uid": "1", "generation": 1}}
        for kind, then in (("ADDED", Ended.DONE), ("DELETED", Ended.GONE)):
            await changed.fn(type=kind, body=kopf.Body(body), namespace="team", name="chat")
            async with asyncio.timeout(5):
                while then not in ended:
                    await asyncio.sleep(0.01)
        assert ended == [Ended.DONE, Ended.GONE]
        await passes.stop()

    with ThreadPoolExecutor(1) as threads:
        asyncio.run(scenario(threads))
