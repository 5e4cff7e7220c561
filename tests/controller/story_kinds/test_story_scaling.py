"""Stories of spec.scaling: the load makes the number, to zero and back, beside `kubectl scale`, and beyond what fits."""

import json
from typing import Any
from unittest.mock import Mock

import pytest

from splitinference.controller.api.spec import Rejected, read_resource
from splitinference_protocol.report import ObservedTraffic
from tests.controller.stories import busy_node, small
from tests.controller.story_kinds.test_story_pipelines import solve
from tests.controller.world import NAMESPACE, Operator, World, a_body

WORKLOAD = {"promptTokens": 100, "outputTokens": 20}


def arriving(world: World, per_second: float) -> None:
    """So many requests arrive, of the workload's lengths."""
    count = round(60 * per_second)
    means = {"prompt_tokens_mean": 100.0, "output_tokens_mean": 20.0} if count else {}
    world.traffic = ObservedTraffic(arrived=count, requests=count, **means)


def scaling(nodes: str = "abcdef", per_second: float = 0.0, **limits: Any) -> tuple[World, Operator]:
    """A world with six nodes, two for each pipeline, where a resource serves that scales by itself."""
    world = World(small(*nodes))
    world.add(a_body(scaling=limits, workload=WORKLOAD))
    arriving(world, per_second)
    operator = Operator(world, solve)
    operator.run(8)
    assert world.condition("Ready")["status"] == "True", world.status()
    return world, operator


def counted_passes(world: World, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Its call count is the number of full passes from now on: each reads the pods once."""
    counted = Mock(side_effect=world.pods)
    monkeypatch.setattr(world, "pods", counted)
    return counted


def wanted(world: World) -> int:
    return int(world.status()["scaling"]["pipelines"])


def document(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.objects["ConfigMap", NAMESPACE, "chat-route"]["data"]["route.json"])
    return found


def test_load_adds_pipelines_and_what_serves_stays() -> None:
    world, operator = scaling(min=1, max=3)
    assert wanted(world) == 1
    before, carries = set(world.segments()), world.status()["scaling"]["carries"]
    assert carries > 0
    arriving(world, 1.2 * carries)
    operator.run(30)
    assert wanted(world) >= 2
    assert world.status()["replicas"] == wanted(world)
    assert before <= set(world.segments())
    found = world.condition("ScalingActive")
    assert found["status"] == "True"
    assert "a pipeline carries" in found["message"]


def test_it_goes_down_after_a_while_and_not_at_once() -> None:
    world, operator = scaling(min=1, max=3, downAfter="2m")
    arriving(world, 1.2 * world.status()["scaling"]["carries"])
    operator.run(30)
    most = wanted(world)
    arriving(world, 0.0)
    operator.run(10)
    assert wanted(world) == most
    operator.run(80)
    assert wanted(world) == 1
    assert world.status()["replicas"] == 1


def test_to_zero_and_back_with_the_first_request() -> None:
    world, operator = scaling(min=0, max=2, idleAfter="1m")
    plan = world.status()["plan"]["revision"]
    operator.run(40)
    assert world.segments() == []
    assert wanted(world) == 0
    assert world.status()["replicas"] == 0
    assert document(world)["asleep"]["holdSeconds"] == 120
    ready, progressing = world.condition("Ready"), world.condition("Progressing")
    assert (ready["status"], ready["reason"]) == ("True", "Unloaded")
    assert (progressing["status"], progressing["reason"]) == ("False", "Unloaded")
    assert any(name.startswith("chat-gateway") for kind, _, name in world.objects if kind == "Pod"), "the gateway stays"
    world.held = 1
    operator.run(8)
    assert world.status()["replicas"] == 1
    assert world.status()["plan"]["revision"] == plan
    assert world.condition("Ready")["reason"] == "Serving"
    assert "asleep" not in document(world)


def test_while_a_model_sleeps_only_its_gateway_is_asked_between_full_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    world, operator = scaling(min=0, max=2, idleAfter="1m")
    operator.run(40)
    assert world.segments() == []
    full = counted_passes(world, monkeypatch)
    operator.run(30, seconds=1.0)
    assert 2 <= full.call_count <= 4, "one in ten seconds"
    world.held = 1
    operator.run(1, seconds=1.0)
    assert wanted(world) == 1, "a client does not wait for the next full pass"


@pytest.mark.parametrize("change", ["spec", "annotation", "gateway"])
def test_a_sleeping_model_gets_a_full_pass_at_once_when_something_changed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world, operator = scaling(min=0, max=2, idleAfter="1m")
    operator.run(40)
    operator.run(1, seconds=1.0)
    full = counted_passes(world, monkeypatch)
    operator.run(1, seconds=1.0)
    assert full.call_count == 0
    if change == "spec":
        world.change(replicas=2)
    elif change == "annotation":
        world.body()["metadata"].setdefault("annotations", {})["splitinference.dev/approve"] = "x"
    else:
        monkeypatch.setattr(operator.reconciler.ports.gateways, "routes", lambda _: None)
    operator.run(1, seconds=1.0)
    assert full.call_count == 1


def test_nothing_is_deleted_while_requests_are_under_way() -> None:
    world, operator = scaling(min=0, max=2, idleAfter="1m")
    segments = world.segments()
    while not document(world).get("asleep"):
        operator.run(1)
    world.in_flight["r"] = 1  # it came between the last look and the route that says that the model sleeps
    operator.run(20)
    assert world.segments() == segments
    assert world.status()["replicas"] == 1, "what is under way is a reason to serve on"
    world.in_flight.clear()
    operator.run(30)
    assert world.segments() == []


def test_a_node_that_is_lost_while_the_model_sleeps_does_not_keep_it_from_waking() -> None:
    world, operator = scaling(min=0, max=1, idleAfter="1m")
    operator.run(40)
    assert world.segments() == []
    lost = busy_node(world)
    del world.nodes[lost]
    operator.run(4)
    world.held = 2
    operator.run(12)
    assert world.status()["replicas"] == 1
    assert lost not in {segment["node"] for segment in world.status()["plan"]["segments"]}


def test_a_restarted_operator_goes_on_where_the_other_was() -> None:
    world, operator = scaling(min=0, max=2, idleAfter="1m")
    operator.run(40)
    again = Operator(world, solve)
    again.run(10)
    assert world.segments() == []
    assert wanted(world) == 0


def test_who_scales_by_hand_is_told_that_scaling_wins() -> None:
    world, operator = scaling(min=1, max=2)
    world.change(replicas=2)
    operator.run(6)
    assert world.status()["replicas"] == 1
    assert "spec.replicas is 2 and is not used" in world.condition("ScalingActive")["message"]
    spec = dict(world.body()["spec"])
    del spec["scaling"]
    world.body()["spec"] = spec
    operator.run(8)
    assert world.status()["replicas"] == 2
    assert "scaling" not in world.status()
    assert not any(c["type"] == "ScalingActive" for c in world.status()["conditions"])


def test_more_than_fit_is_a_condition_with_numbers_and_what_serves_stays() -> None:
    world, operator = scaling("abcd", min=1, max=5)
    serving = set(world.segments())
    arriving(world, 10 * world.status()["scaling"]["carries"])
    operator.run(40)
    assert wanted(world) == 5
    assert world.status()["replicas"] == 2
    found = world.condition("Scaled")
    assert (found["status"], found["reason"]) == ("False", "InsufficientCapacity")
    assert "5 pipelines are requested, the plan has 2" in found["message"]
    assert serving <= set(world.segments())


def test_a_gateway_that_cannot_be_asked_changes_nothing() -> None:
    world, operator = scaling(min=0, max=3, idleAfter="1m")
    world.traffic = ObservedTraffic()  # a gateway that does not say what arrived
    operator.run(40)
    assert wanted(world) == 1
    found = world.condition("ScalingActive")
    assert (found["status"], found["reason"]) == ("Unknown", "LoadUnknown")


def test_at_rest_the_status_is_not_written_with_each_pass() -> None:
    world, operator = scaling(min=1, max=2)
    operator.run(30)
    world.writes.clear()
    operator.run(10, seconds=1.0)
    assert sum("status" in str(write) for write in world.writes) <= 2


@pytest.mark.parametrize(
    ("limits", "more", "words"),
    [
        ({"min": 3, "max": 2}, {}, "min 3 must be at most max 2"),
        ({"max": 17}, {}, "less than or equal to 16"),
        ({"max": 2}, {"objective": {"goal": "throughput"}}, "scaling contradicts objective.goal throughput"),
        ({"max": 2}, {"objective": {"then": ["cost"]}}, "objective.then is for one pipeline"),
        ({"min": 0, "max": 1}, {"verification": {"samplePercent": 1}}, "scaling.min must be at least 1 with verification"),
        ({"max": 2}, {"partition": {"pins": [{"layers": "first", "node": "a"}]}}, "scaling.max 2 contradicts partition.pins"),
        ({"max": 3}, {"placement": {"maxNodes": 2}}, "scaling.max 3 with partition.minSegments 1 need 3 nodes"),
        ({"max": 1, "hold": "0s"}, {}, "greater than 0"),
    ],
)
def test_what_contradicts_itself_is_rejected(limits: dict[str, Any], more: dict[str, Any], words: str) -> None:
    found = read_resource(a_body(scaling=limits, **more))
    assert isinstance(found, Rejected)
    assert words in str(found)
