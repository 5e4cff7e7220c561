"""Weights brought to likely targets: pods that fetch what a segment would, once, and only where the resource and the model ask for it."""

from typing import Any

import pytest

from splitinference.controller.cluster_state.pods import node_of
from tests.controller.stories import busy_node, reasons, small
from tests.controller.world import SETTINGS, Operator, World, a_body

HUB = {"id": "m", "source": {"huggingFace": {"repository": "org/model"}}, "dtype": "float32"}
ADAPTATION = {"window": "20s", "cooldown": "60s", "drain": "10s", "prefetch": "LikelyTargets"}


def a_world(cache: str = "/var/cache/models", **spec: Any) -> tuple[World, Operator]:
    world = World(small("a", "b", "c", "d"), settings=SETTINGS.model_copy(update={"model_cache_path": cache}))
    world.add(a_body(**{"model": HUB, "adaptation": ADAPTATION, **spec}))
    operator = Operator(world)
    operator.run(8)
    assert world.condition("Ready")["status"] == "True", world.status()
    return world, operator


def prefetches(world: World) -> list[dict[str, Any]]:
    pods = world.owned("Pod", "team", "chat")
    return [dict(pod) for pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "prefetch"]


def end(world: World) -> None:
    """What is being fetched is there."""
    for (kind, _, name), thing in world.objects.items():
        if kind == "Pod" and "-prefetch-" in name:
            thing["status"] = {"phase": "Succeeded", "conditions": []}


def test_each_segment_has_a_target_outside_of_the_plan_and_fetches_there_what_its_pod_would():
    world, operator = a_world()
    pods = prefetches(world)
    assert len(pods) == 2
    plan = {s["node"] for s in world.status()["plan"]["segments"]}
    for pod, segment in zip(sorted(pods, key=lambda pod: pod["metadata"]["labels"]["splitinference.dev/layers"]), (0, 2), strict=True):
        assert node_of(pod) not in plan
        (fetch,) = pod["spec"]["containers"]
        assert fetch["command"][-3] == f"{segment}:{segment + 2}/4"
        (served,) = [p for p in world.owned("Pod", "team", "chat") if p["metadata"]["name"].startswith(f"chat-{segment}-{segment + 2}-")]
        assert fetch["command"] == served["spec"]["initContainers"][0]["command"]
        assert pod["spec"]["volumes"][0] == served["spec"]["volumes"][0]
        assert pod["spec"]["restartPolicy"] == "Never"
    end(world)
    world.writes.clear()
    operator.run(20)
    assert not [write for write in world.writes if "prefetch" in write], "what ended is not fetched again"


def test_targets_do_not_wander_with_the_load():
    world, operator = a_world()
    end(world)
    before = {pod["metadata"]["name"] for pod in prefetches(world)}
    for target in {node_of(pod) for pod in prefetches(world)}:
        world.busy[target] = 0.5
    operator.run(10)
    assert {pod["metadata"]["name"] for pod in prefetches(world)} == before


def test_a_target_that_is_lost_is_replaced_and_a_new_plan_has_its_own():
    world, operator = a_world()
    end(world)
    lost = node_of(prefetches(world)[0])
    world.nodes[lost]["spec"]["unschedulable"] = True
    operator.run(3)
    assert lost not in {node_of(pod) for pod in prefetches(world)}
    world.nodes[lost]["spec"].clear()
    world.busy[busy_node(world)] = 0.95
    operator.run(30)
    assert "UtilizationShifted" in reasons(world)
    plan = {s["node"] for s in world.status()["plan"]["segments"]}
    assert prefetches(world)
    assert not plan & {node_of(pod) for pod in prefetches(world)}
    assert world.condition("Ready")["status"] == "True"


@pytest.mark.parametrize(
    ("cache", "spec"),
    [
        ("", {}),
        ("/var/cache/models", {"adaptation": {**ADAPTATION, "prefetch": "Off"}}),
        ("/var/cache/models", {"adaptation": {"window": "20s"}}),
        ("/var/cache/models", {"model": {"id": "m", "source": {"hostPath": {"path": "/m"}}, "dtype": "float32"}}),
    ],
)
def test_without_a_cache_a_hub_or_a_wish_nothing_is_fetched(cache: str, spec: dict[str, Any]):
    world, _ = a_world(cache, **spec)
    assert prefetches(world) == []


def test_who_does_not_want_it_any_more_gets_rid_of_the_pods():
    world, operator = a_world()
    assert prefetches(world)
    world.change(adaptation={**ADAPTATION, "prefetch": "Off"})
    operator.run(2)
    assert prefetches(world) == []
    assert reasons(world) == ["NoPlan"], "nothing is planned anew for it"


def test_what_is_refused_is_said_and_serves_on():
    world, operator = a_world()
    for pod in prefetches(world):
        world.delete("Pod", "team", pod["metadata"]["name"])
    world.step()
    world.refuse.add("Pod")
    operator.run(2)
    assert "prefetch of [0, 2) to" in world.condition("Progressing")["message"]
    assert "exceeded quota" in world.condition("Progressing")["message"]
    assert world.condition("Ready")["status"] == "True"
