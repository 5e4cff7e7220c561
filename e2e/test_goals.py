"""Goals and budgets on kind, under load: the cheapest plan, a budget that nothing meets, and the next that something does."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e import stack
from e2e.cluster import Cluster
from e2e.scene import NAME, frozen_sample, played, workers_of

pytestmark = [pytest.mark.cluster, pytest.mark.long]

NODE_MIB = 1150
"""Of each of the four workers: two of them hold the model, in two segments."""
LABELS = ("splitinference.dev/cost-per-hour", "splitinference.dev/idle-watts", "splitinference.dev/busy-watts")


@pytest.fixture(scope="module")
def priced(operated: Cluster) -> Iterator[Cluster]:
    """Workers that cost 1, 2, 3 and 4 per hour and draw 400, 300, 200 and 100 W."""
    workers = operated.settings.worker_names()
    operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
    with workers_of(operated, NODE_MIB):
        for number, worker in enumerate(workers):
            watts = 100 * (len(workers) - number)
            given = (number + 1, watts // 2, watts)
            operated.kubectl("label", "node", worker, "--overwrite", *(f"{key}={value}" for key, value in zip(LABELS, given, strict=True)))
        try:
            yield operated
        finally:
            for worker in workers:
                operated.kubectl("label", "node", worker, *(f"{key}-" for key in LABELS))


def asked(**objective: Any) -> str:
    """The sample in two segments, with this objective."""
    body = frozen_sample()
    body["spec"] |= {"partition": {"minSegments": 2, "maxSegments": 2}, "replicas": 1, "objective": objective}
    return json.dumps(body)


def nodes(found: dict[str, Any]) -> set[str]:
    return {node for _, _, node in stack.placement(found)}


def test_goals_and_budgets_under_load(priced: Cluster) -> None:
    workers = priced.settings.worker_names()
    priced.kubectl("apply", "-f", "-", stdin=asked(goal="cost"))
    found = stack.wait_ready(priced, NAME)
    assert nodes(found) == {*workers[:2]}, "the two cheapest"
    assert found["status"]["cost"] == "3/h, 700 W"
    with played(priced, "budgets") as scene:
        priced.kubectl("apply", "-f", "-", stdin=asked(goal="latency", maxWatts=299))

        def refused() -> bool:
            planned = stack.condition(scene.found(), "Planned")
            return planned["status"] == "False" and "300 W instead of 299 W" in planned["message"]

        stack.until(refused, 120, "the condition says the least that would do")
        assert nodes(scene.found()) == {*workers[:2]}, "what serves stays"
        scene.answers()
        priced.kubectl("apply", "-f", "-", stdin=asked(goal="latency", maxWatts=300))
        scene.settles(lambda placed: {node for _, _, node in placed} == {*workers[2:]}, 240, "the two that draw least")
        assert "300 of at most 300 W" in scene.found()["status"]["decisions"][0]["message"]
