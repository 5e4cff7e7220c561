"""Stories of spec.priority: who gives way to whom where memory does not do for all, and who serves again afterwards."""

import pytest

from splitinference.settings import PreemptionScope
from tests.controller.stories import reasons, small
from tests.controller.world import NAMESPACE, Operator, World, a_body

LOW, HIGH = "batch", "chat"


def beside(nodes: str, low: int = 0, high: int = 100, scope: PreemptionScope = PreemptionScope.NAMESPACE) -> tuple[World, Operator]:
    """A world where the resource of lower priority serves, and another one comes."""
    world = World(small("0", mib=200) | small(*nodes))  # all gateways are on the first
    world.settings = world.settings.model_copy(update={"preemption": scope})
    world.add(a_body(LOW, priority=low))
    operator = Operator(world)
    operator.run(8, LOW)
    assert world.condition("Ready", LOW)["status"] == "True", world.status(LOW)
    world.add(a_body(HIGH, priority=high))
    return world, operator


def nodes_of(world: World, name: str) -> set[str]:
    return {segment["node"] for segment in world.status(name)["plan"]["segments"]}


def test_the_higher_one_serves_and_the_lower_one_waits_with_its_gateway_there() -> None:
    world, operator = beside("ab")
    operator.run(30, LOW, HIGH)
    assert world.condition("Ready", HIGH)["status"] == "True", world.status(HIGH)["conditions"]
    assert world.segments(LOW) == []
    ready = world.condition("Ready", LOW)
    assert (ready["status"], ready["reason"]) == ("False", "Preempted")
    assert f"{NAMESPACE}/{HIGH} (priority 100)" in ready["message"]
    assert world.condition("Stalled", LOW)["status"] == "True"
    decision = world.status(HIGH)["decisions"][-1]
    assert f"{NAMESPACE}/{LOW} (priority 0) gives way on" in decision["message"]
    assert any(name.startswith(f"{LOW}-gateway") for kind, _, name in world.objects if kind == "Pod")


def test_it_serves_again_when_the_higher_one_is_gone() -> None:
    world, operator = beside("ab")
    operator.run(30, LOW, HIGH)
    plan = world.status(LOW)["plan"]["revision"]
    del world.objects["SplitInference", NAMESPACE, HIGH]
    operator.run(16, LOW)
    assert world.condition("Ready", LOW)["reason"] == "Serving", world.status(LOW)["conditions"]
    assert world.status(LOW)["plan"]["revision"] == plan


def test_where_there_is_room_nobody_gives_way() -> None:
    world, operator = beside("abcd")
    before = world.segments(LOW)
    operator.run(12, LOW, HIGH)
    assert world.condition("Ready", HIGH)["status"] == "True"
    assert world.segments(LOW) == before
    assert not nodes_of(world, LOW) & nodes_of(world, HIGH)
    assert "Preempted" not in reasons(world, LOW)


def test_who_can_move_moves_and_serves_on() -> None:
    """The higher one may be on `a` and `b` alone, where the lower one is."""
    world, operator = beside("ab")
    for name in "ab":
        world.nodes[name]["metadata"]["labels"]["pool"] = "fast"
    world.nodes |= small("c", "d")
    world.body(HIGH)["spec"]["placement"] = {"nodeSelector": {"pool": "fast"}}
    seen_ready = []
    for _ in range(40):
        operator.run(1, LOW, HIGH)
        seen_ready.append(world.condition("Ready", LOW)["status"])
    assert nodes_of(world, HIGH) == {"a", "b"}
    assert world.condition("Ready", HIGH)["status"] == "True"
    assert nodes_of(world, LOW) == {"c", "d"}
    assert set(seen_ready) == {"True"}, "it serves all the time"
    assert "Preempted" in reasons(world, LOW)


@pytest.mark.parametrize(("low", "high", "scope"), [(5, 5, "Namespace"), (5, 4, "Namespace"), (0, 100, "Never")])
def test_equals_lower_ones_and_where_it_is_forbidden_nobody_gives_way(low: int, high: int, scope: str) -> None:
    world, operator = beside("ab", low, high, PreemptionScope(scope))
    before = world.segments(LOW)
    operator.run(12, LOW, HIGH)
    assert world.segments(LOW) == before
    assert world.condition("Planned", HIGH)["reason"] == "Infeasible"


def test_nothing_is_created_where_those_who_give_way_still_are() -> None:
    world, operator = beside("ab")
    world.in_flight["r"] = 1  # a request is under way, so the lower one's segments stay for now
    operator.run(12, LOW, HIGH)
    assert world.segments(HIGH) == []
    assert len(world.segments(LOW)) == 2
    assert f"{NAMESPACE}/{LOW} (priority 0) gives way on" in world.condition("Progressing", HIGH)["message"]
    world.in_flight.clear()
    operator.run(20, LOW, HIGH)
    assert world.condition("Ready", HIGH)["status"] == "True"


def test_only_the_lowest_gives_way_if_that_is_enough() -> None:
    world, operator = beside("ab", low=0)
    world.nodes |= small("c", "d")
    world.add(a_body("middle", priority=50))
    operator.run(12, LOW, "middle")
    assert world.condition("Ready", "middle")["status"] == "True"
    before = world.segments("middle")
    operator.run(30, LOW, "middle", HIGH)
    assert world.condition("Ready", HIGH)["status"] == "True"
    assert world.segments("middle") == before
    assert world.condition("Ready", LOW)["reason"] == "Preempted"


def test_a_restarted_operator_goes_on_where_the_other_was() -> None:
    world, operator = beside("ab")
    operator.run(3, LOW, HIGH)
    Operator(world).run(30, LOW, HIGH)
    assert world.condition("Ready", HIGH)["status"] == "True"
    assert world.condition("Ready", LOW)["reason"] == "Preempted"


def test_other_namespaces_are_left_alone_unless_the_cluster_says_otherwise() -> None:
    from splitinference.controller.reconcile.planning.preemption import precedence

    mine, others = a_body(HIGH, priority=100), a_body(LOW)
    others["metadata"]["namespace"] = "elsewhere"
    assert precedence(mine, [mine, others], PreemptionScope.NAMESPACE).lower == ()
    assert [rank.owner for rank in precedence(mine, [mine, others], PreemptionScope.CLUSTER).lower] == [("elsewhere", LOW)]
    others["spec"]["operatorClass"] = "another"
    assert precedence(mine, [mine, others], PreemptionScope.CLUSTER).lower == ()
