"""Several pipelines of one resource: scaled up and down, one broken, one exposed; what serves stays, and the status says so."""

import json
from typing import Any

import pytest

from splitinference.controller.api.spec import Rejected, read_spec
from splitinference.controller.plan_io.plan_status import asked_for
from splitinference.core.planner.solver import solve as solve_within
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import Limits, Outcome
from tests.controller.stories import images, reasons, small
from tests.controller.world import NAMESPACE, Operator, World, a_body
from tests.core.planning import a_profile


def solve(problem: Problem, _: Limits, hint: Plan | None = None) -> Outcome:
    """The real solver, with a limit of the processor's time: how busy the machine is decides nothing."""
    return solve_within(problem, Limits(seconds=8.0, cpu_time=True), hint)


def scaled(replicas: int, *names: str, **spec: Any) -> tuple[World, Operator]:
    """A world where so many pipelines are requested and what fits serves."""
    world = World(small(*(names or "abcdef")))
    world.add(a_body(replicas=replicas, **spec))
    operator = Operator(world, solve)
    operator.run(8)
    assert world.condition("Ready")["status"] == "True", world.status()
    return world, operator


def pipelines(world: World) -> list[list[str]]:
    """The serving route."""
    route = json.loads(world.objects["ConfigMap", NAMESPACE, "chat-route"]["data"]["route.json"])
    return [[hop["segment"] for hop in pipeline] for pipeline in route["pipelines"]]


def where(world: World) -> dict[int, str]:
    """Nodes of each pipeline of the plan."""
    return {entry["number"]: entry["nodes"] for entry in world.status()["pipelines"]}


def replicas(world: World) -> int:
    return int(world.status()["replicas"])


def test_two_pipelines_serve_on_nodes_of_their_own() -> None:
    world, _ = scaled(2, *"abcd")
    assert replicas(world) == 2
    assert len(pipelines(world)) == 2
    assert sorted(",".join(where(world).values()).split(",")) == list("abcd")
    names = [name for pipeline in pipelines(world) for name in pipeline]
    assert len(set(names)) == 4, "names do not clash"
    found = world.condition("Scaled")
    assert (found["status"], found["reason"], found["message"]) == ("True", "AllPipelinesServe", "2 pipelines serve")
    assert [entry["segments"] for entry in world.status()["pipelines"]] == ["2/2", "2/2"]
    assert [entry["serves"] for entry in world.status()["pipelines"]] == [True, True]
    assert world.status()["selector"].endswith(f"splitinference.dev/segment in ({','.join(sorted(p[0] for p in pipelines(world)))})")
    for number, pipeline in enumerate(pipelines(world)):
        assert [s["name"] for s in world.status()["plan"]["segments"] if s["pipeline"] == number] == pipeline


def test_at_rest_nothing_is_written() -> None:
    world, operator = scaled(2, *"abcd")
    operator.run(4)
    writes = len(world.writes)
    operator.run(4)
    assert [write for write in world.writes[writes:] if not write.startswith("status")] == []


def test_the_first_pipeline_that_is_ready_serves_while_the_other_starts() -> None:
    world = World(small(*"abcd"))
    world.add(a_body(replicas=2))
    operator = Operator(world, solve)
    operator.run(1)
    operator.look()
    late = world.status()["plan"]["segments"][3]["name"]
    world.stuck = {late}
    operator.run(6)
    assert len(pipelines(world)) == 1
    assert world.condition("Ready")["status"] == "True"
    assert (world.condition("Scaled")["status"], world.condition("Scaled")["reason"]) == ("False", "PipelinesNotServing")
    assert replicas(world) == 1
    world.stuck = set()
    operator.run(5)
    assert replicas(world) == 2


def test_scaling_up_adds_a_pipeline_and_touches_no_pod_of_the_others() -> None:
    world, operator = scaled(1)
    before, route = world.segments(), pipelines(world)
    world.change(replicas=2)
    operator.run(8)
    assert set(before) <= set(world.segments())
    assert pipelines(world)[0] == route[0], "the first pipeline keeps its number"
    assert replicas(world) == 2
    assert not [what for what in world.writes if what.startswith("delete Pod")]
    assert world.status()["decisions"][0]["transition"] == "scaling"


def test_scaling_down_drains_a_pipeline_before_its_pods_go() -> None:
    world, operator = scaled(2, *"abcd")
    kept_route, both = pipelines(world)[0], json.loads(world.objects["ConfigMap", NAMESPACE, "chat-route"]["data"]["route.json"])
    world.in_flight = {both["revision"]: 3}
    world.change(replicas=1)
    operator.run(2, seconds=1.0)
    assert pipelines(world) == [kept_route], "new requests go to the one that stays"
    assert len(world.segments()) == 4, "requests are in flight on the other"
    world.in_flight = {}
    operator.run(3, seconds=1.0)
    assert world.segments() == sorted(kept_route)
    assert replicas(world) == 1
    assert world.condition("Scaled") == {}


def test_a_request_beyond_capacity_becomes_a_condition_with_numbers_and_what_serves_stays() -> None:
    world, operator = scaled(2, *"abcd")
    before, route = world.segments(), pipelines(world)
    world.change(replicas=5)
    operator.run(6)
    assert (world.segments(), pipelines(world)) == (before, route)
    condition = world.condition("Scaled")
    assert (condition["status"], condition["reason"]) == ("False", "InsufficientCapacity")
    assert condition["message"].startswith("5 pipelines are requested, the plan has 2: ")
    assert condition["message"].endswith(
        "5 pipelines are required, and there can be at most 2; "
        "the model needs 441 MiB in one segment, 4 places have 1176 MiB free, the largest 310 MiB"
    )
    assert world.condition("Planned")["status"] == "True"
    assert world.condition("Ready")["status"] == "True"
    world.nodes |= small("e", "f")
    operator.run(8)
    assert replicas(world) == 3
    assert pipelines(world)[:2] == route
    assert "PipelinesMissing" in reasons(world)


def test_a_lost_node_moves_its_pipeline_and_no_other() -> None:
    world, operator = scaled(2)
    broken = world.status()["plan"]["segments"][3]
    stays = pipelines(world)[0]
    del world.nodes[broken["node"]]
    operator.run(2)
    assert pipelines(world) == [stays], "the broken one is out of the route at once"
    assert world.condition("Ready")["status"] == "True"
    operator.run(8)
    assert replicas(world) == 2
    assert pipelines(world)[0] == stays
    assert broken["node"] not in where(world)[1].split(",")


def test_without_a_spare_node_the_other_pipeline_serves_on_and_the_lost_one_comes_back_with_its_node() -> None:
    world, operator = scaled(2, *"abcd")
    stays = pipelines(world)[0]
    lost = world.status()["plan"]["segments"][3]["node"]
    node = world.nodes.pop(lost)
    operator.run(6)
    assert pipelines(world) == [stays]
    assert (world.condition("Ready")["status"], world.condition("Scaled")["reason"]) == ("True", "InsufficientCapacity")
    world.nodes[lost] = node
    operator.run(10)
    assert replicas(world) == 2
    assert pipelines(world)[0] == stays


def test_a_rule_of_privacy_takes_the_pipeline_that_breaks_it_out_of_the_route_at_once() -> None:
    rule = {"rules": [{"layers": "first", "nodeLabels": {"trusted": "yes"}}], "onViolation": "Stop"}
    world = World(small(*"abcd"))
    for name in "ab":
        world.nodes[name]["metadata"]["labels"]["trusted"] = "yes"
    world.add(a_body(replicas=2, privacy=rule))
    operator = Operator(world, solve)
    operator.run(8)
    assert replicas(world) == 2, world.status()
    kept, exposed = (next(p for p in pipelines(world) if _node(world, p[0]) == node) for node in "ab")
    world.nodes["b"]["metadata"]["labels"].pop("trusted")
    operator.look()
    assert pipelines(world) == [kept]
    assert json.loads(world.objects["ConfigMap", NAMESPACE, "chat-route"]["data"]["route.json"])["drainSeconds"] == 0
    operator.run(6)
    assert world.condition("Ready")["status"] == "True"
    assert pipelines(world) == [kept]
    assert exposed[0] not in world.segments()


def test_an_upgrade_of_full_nodes_goes_pipeline_by_pipeline_and_never_stops_what_serves() -> None:
    """Strategy Surge, no spare node, no room beside what serves: a single pipeline would be blocked. Of two, one stands aside."""
    world, operator = scaled(2, *"abcd")
    before = world.segments()
    world.settings = world.settings.model_copy(update={"segment_image": "segment:next"})
    operator = Operator(world, solve)
    for _ in range(40):
        operator.run(1)
        assert world.condition("Ready")["status"] == "True", world.condition("Ready")
        assert replicas(world) >= 1
    assert not set(before) & set(world.segments())
    assert replicas(world) == 2
    assert set(images(world)) == {"segment:next"}


def _node(world: World, segment: str) -> str:
    return next(s["node"] for s in world.status()["plan"]["segments"] if s["name"] == segment)


def test_killed_between_any_two_writes_of_scaling_the_operator_goes_on() -> None:
    from tests.controller.world import KilledError

    for writes in range(12):
        world, operator = scaled(1, *"abcd")
        world.change(replicas=2)
        world.killed_after = writes
        try:
            operator.run(8)
        except KilledError:
            world.killed_after = None
            operator = Operator(world, solve)
        world.killed_after = None
        operator.run(8)
        assert replicas(world) == 2, writes


def test_one_pipeline_asked_for_by_name_is_the_specification_of_before() -> None:
    """The API server adds the default to resources of an earlier version: their plans, names and pods stay."""
    before = {"model": {"id": "m"}, "adaptation": {}}
    assert asked_for({**before, "replicas": 1}, a_profile()) == asked_for(before, a_profile())
    assert asked_for({**before, "replicas": 2}, a_profile()) != asked_for(before, a_profile())
    world = World(small(*"abcd"))
    world.add(a_body())
    operator = Operator(world, solve)
    operator.run(8)
    names, decisions = world.segments(), world.status()["decisions"]
    world.change(replicas=1)
    operator.run(4)
    assert (world.segments(), world.status()["decisions"]) == (names, decisions)
    assert world.condition("Scaled") == {}


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"replicas": 0}, "greater than or equal to 1"),
        ({"replicas": 17}, "less than or equal to 16"),
        ({"replicas": 1.5}, "replicas"),
        ({"replicas": 2, "partition": {"pins": [{"layers": "first", "node": "a"}]}}, "contradicts partition.pins"),
        ({"replicas": 3, "partition": {"minSegments": 2}, "placement": {"maxNodes": 5}}, "need 6 nodes, more than placement.maxNodes 5"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field_and_the_limit(spec: dict[str, Any], sentence: str) -> None:
    found = read_spec({**a_body()["spec"], **spec})
    assert isinstance(found, Rejected)
    assert sentence in str(found)
