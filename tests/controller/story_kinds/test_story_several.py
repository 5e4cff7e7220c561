"""Stories of several resources, and of one that is deleted."""

from datetime import timedelta
from typing import Any

from tests.controller.stories import serving, small
from tests.controller.world import NAMESPACE, Operator, World, a_body


def test_two_resources_never_plan_the_same_memory_twice():
    world = World(small("a", "b", "c", mib=380))
    for name in ("chat", "other"):
        world.add(a_body(name))
    first, second = Operator(world), Operator(world)
    first.run(1, "chat", "other", seconds=1)
    first.look("chat")
    second.look("other")
    held: dict[str, int] = {}
    for name in ("chat", "other"):
        for segment in (world.status(name).get("plan") or {}).get("segments", []):
            held[segment["node"]] = held.get(segment["node"], 0) + segment["memoryBytes"]
    assert held
    assert all(amount <= 380 * 1024 * 1024 for amount in held.values()), held
    first.run(8, "chat", "other")
    assert world.condition("Ready", "chat")["status"] == "True"


def test_a_plan_made_while_another_resource_took_the_memory_is_not_kept():
    """The other resource's plan is written after this one's pass has read, and before it writes."""
    world = World(small("a", "b", mib=310))
    world.add(a_body())
    world.add(a_body("other"))
    operator, other = Operator(world), Operator(world)
    operator.look("chat")
    operator.look("other")
    world.now += timedelta(seconds=11)  # their gateways get no node

    class Slow(type(operator.solver)):  # type: ignore[misc]
        def __call__(self, *given: Any, **more: Any) -> Any:
            answer = super().__call__(*given, **more)
            other.look("other")
            return answer

    slow = Operator(world, Slow())
    assert slow.look("chat").again_seconds == 1.0
    assert "plan" not in world.status("chat")
    assert "another resource's plan took the memory" in world.status("chat")["decisions"][0]["message"]


def test_what_is_deleted_is_let_go():
    world, operator = serving()
    world.body()["metadata"]["deletionTimestamp"] = "2026-01-01T00:10:00Z"
    world.writes.clear()
    assert not operator.look().gone
    del world.objects["SplitInference", NAMESPACE, "chat"]
    assert operator.look().gone
    assert world.writes == [], "owner references do the rest"
