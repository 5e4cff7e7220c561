"""Two pipelines on kind under load: one is killed, and the resource is scaled up and down with `kubectl scale`. No request fails."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import pytest

from e2e import stack
from e2e.cluster import Cluster, faults
from e2e.scene import NAME, OURS, Scene, frozen_sample, played, workers_of

pytestmark = pytest.mark.cluster

NODE_MIB = 1150
"""Of each of the four workers: two of them hold the model, in two segments."""
Play = Callable[[str], AbstractContextManager[Scene]]


@pytest.fixture(scope="module")
def served(operated: Cluster) -> Iterator[Cluster]:
    """One pipeline of two segments, and room for another."""
    body = frozen_sample()
    body["spec"] |= {"partition": {"minSegments": 2, "maxSegments": 2}, "replicas": 1}
    operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
    with workers_of(operated, NODE_MIB):
        operated.kubectl("apply", "-f", "-", stdin=json.dumps(body))
        stack.wait_ready(operated, NAME)
        yield operated


@pytest.fixture
def play(served: Cluster) -> Play:
    """Clients ask all the time, and none of their requests fails."""
    return partial(played, served)


def scale(cluster: Cluster, replicas: int) -> None:
    """As a user does it, and until so many pipelines serve and nothing is under way."""
    cluster.kubectl("scale", f"si/{NAME}", f"--replicas={replicas}")

    def arrived() -> bool:
        found = stack.resource(cluster, NAME)
        return stack.settled(found) and found["status"].get("replicas") == replicas

    stack.until(arrived, 180, f"{replicas} pipelines serve", progress=lambda: stack.pods_of(cluster, "default"))


def segments(cluster: Cluster) -> dict[str, str]:
    """Segment pods that are not leaving, with their nodes."""
    pods = json.loads(cluster.kubectl("get", "pods", "-l", f"{OURS},app.kubernetes.io/component=segment", "-o", "json"))["items"]
    return {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def test_scaled_from_one_to_two_and_back_under_load(served: Cluster, play: Play) -> None:
    with play("kubectl scale 1 → 2 → 1") as scene:
        before = segments(served)
        scale(served, 2)
        both = segments(served)
        assert before.items() <= both.items(), "the first pipeline's pods are the same"
        assert len(both) == len(set(both.values())) == 4, "the second one is on nodes of its own"
        found = json.loads(
            served.kubectl("get", "--raw", f"/apis/splitinference.dev/v1alpha1/namespaces/default/splitinferences/{NAME}/scale")
        )
        assert (found["spec"]["replicas"], found["status"]["replicas"]) == (2, 2)
        selected = served.kubectl("get", "pods", "-l", found["status"]["selector"], "-o", "name").split()
        assert len(selected) == 2, "one pod for each pipeline"
        scene.answers()
        scale(served, 1)
        scene.answers()
    assert len(segments(served)) == 2


def test_beyond_capacity_a_condition_has_the_numbers_and_what_serves_stays(served: Cluster, play: Play) -> None:
    with play("kubectl scale to 9") as scene:
        scale(served, 2)
        before = segments(served)
        served.kubectl("scale", f"si/{NAME}", "--replicas=9")
        wanted = ("False", "InsufficientCapacity")

        def said() -> str:
            shown = stack.condition(stack.resource(served, NAME), "Scaled")
            return str(shown["message"]) if shown and (shown["status"], shown["reason"]) == wanted and "MiB" in shown["message"] else ""

        message = stack.until(said, 120, "the condition Scaled says why")
        assert message.startswith("9 pipelines are requested, the plan has 2: ")
        scene.answers()
        assert segments(served) == before
        scale(served, 2)


def test_one_of_two_pipelines_is_killed_under_load(served: Cluster, play: Play) -> None:
    scale(served, 2)
    with play("a pipeline is killed") as scene:
        plan = stack.resource(served, NAME)["status"]["plan"]["segments"]
        for killed in [segment for segment in plan if segment["pipeline"] == 0]:
            faults.kill_pod(served.engine(), killed["node"], killed["name"])
        scene.answers(12)
        stack.until(lambda: stack.condition(stack.resource(served, NAME), "Scaled").get("status") == "True", 180, "both pipelines serve")
        scene.answers()
