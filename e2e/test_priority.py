"""Priorities on kind: a model that can move does so under load and loses no request; one that cannot gives way, and comes back."""

import json
from collections.abc import Iterator

import pytest

from e2e import stack
from e2e.cluster import Cluster
from e2e.scene import NAME, frozen_sample, played, workers_of

pytestmark = [pytest.mark.cluster, pytest.mark.long]

NODE_MIB = 900
"""Of each of the four workers: two hold the model in two segments, and one never holds two of these."""
POOL = "test/pool"


@pytest.fixture(scope="module")
def shared(operated: Cluster) -> Iterator[Cluster]:
    """The sample serves on two of four workers, and only these are in the pool. Nothing else is left afterwards."""
    operated.kubectl("delete", "si", "--all", "--ignore-not-found", "--timeout=600s")
    with workers_of(operated, NODE_MIB):
        operated.kubectl("apply", "-f", "-", stdin=asked(NAME, 0))
        found = stack.wait_ready(operated, NAME)
        operated.kubectl("label", "node", *{node for _, _, node in stack.placement(found)}, f"{POOL}=fast")
        try:
            yield operated
        finally:
            operated.kubectl("delete", "si", "--all", "--ignore-not-found", "--timeout=600s")
            operated.kubectl("label", "node", "--all", f"{POOL}-")


def asked(name: str, priority: int, **placement: object) -> str:
    """The sample in two segments, of this priority."""
    body = frozen_sample()
    body["metadata"]["name"] = name
    body["spec"] |= {"partition": {"minSegments": 2, "maxSegments": 2}, "replicas": 1, "priority": priority, "placement": placement}
    return json.dumps(body)


def test_who_can_move_moves_under_load_and_loses_nothing(shared: Cluster) -> None:
    before = {node for _, _, node in stack.placement(stack.resource(shared, NAME))}
    with played(shared, "priority") as scene:
        shared.kubectl("apply", "-f", "-", stdin=asked("vip", 10, nodeSelector={POOL: "fast"}))
        scene.leaves(*before, seconds=240)
        scene.answers()
        found = stack.wait_ready(shared, "vip")
    assert {node for _, _, node in stack.placement(found)} == before
    assert "priority 0) gives way on" in found["status"]["decisions"][-1]["message"]


def test_who_cannot_move_gives_way_and_serves_again(shared: Cluster) -> None:
    shared.kubectl("apply", "-f", "-", stdin=asked("top", 20))
    found = stack.wait_ready(shared, "top")
    assert "default/chat (priority 0) gives way on" in found["status"]["decisions"][-1]["message"], "the lowest, and nobody else"
    ready = stack.condition(stack.resource(shared, NAME), "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Preempted")
    assert stack.condition(stack.resource(shared, "vip"), "Ready")["status"] == "True"
    shared.kubectl("delete", "si", "top", "--timeout=600s")
    stack.wait_ready(shared, NAME)
