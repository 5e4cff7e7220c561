"""The operator may be killed before any of its writes, and the story ends the same."""

from datetime import timedelta
from typing import Any

import pytest

from tests.controller.stories import images, reasons, serving, small
from tests.controller.world import KilledError, Operator, World, a_body

WRITES = 39


def story(world: World, operator_of: Any) -> None:
    """Apply, get ready, a node gets busy, a move; `operator_of` gives the operator for each pass."""
    for step in range(45):
        if step == 10:
            world.now += timedelta(seconds=120)
            world.busy[world.status()["plan"]["segments"][1]["node"]] = 0.93
        try:
            operator_of().look()
        except KilledError:
            world.killed_after = None
        world.step()


def test_a_new_operator_at_every_pass_is_a_non_event():
    steady, restarted = World(small("a", "b", "c")), World(small("a", "b", "c"))
    for world in (steady, restarted):
        world.add(a_body())
    one = Operator(steady)
    story(steady, lambda: one)
    story(restarted, lambda: Operator(restarted))
    assert steady.placement() == restarted.placement()
    assert reasons(steady) == reasons(restarted) == ["UtilizationShifted", "NoPlan"]
    assert steady.routes_seen == restarted.routes_seen
    assert len(restarted.proved) == len(steady.proved), "a restart asked for proofs anew"


def test_the_story_has_not_more_writes_than_the_operator_is_killed_before():
    world = World(small("a", "b", "c"))
    world.add(a_body())
    one = Operator(world)
    story(world, lambda: one)
    assert WRITES - 3 <= len(world.writes) <= WRITES


@pytest.mark.parametrize("writes", range(WRITES))
def test_killed_before_any_write_the_story_ends_the_same(writes):
    world = World(small("a", "b", "c"))
    world.add(a_body())
    world.killed_after = writes
    story(world, lambda: Operator(world))
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Progressing")["status"] == "False"
    assert len(world.segments()) == 2
    assert set(world.serving()) == set(world.segments())
    assert "UtilizationShifted" in reasons(world)


UPGRADE_WRITES = 33


def upgrade(world: World, killed_after: int | None) -> None:
    """The image changes and nodes are full; the operator is killed before one of its writes, and a new one goes on."""
    world.settings = world.settings.model_copy(update={"segment_image": "segment:next"})
    world.writes.clear()
    world.killed_after = killed_after
    operator = Operator(world)
    for _ in range(30):
        try:
            operator.look()
        except KilledError:
            world.killed_after = None
            operator = Operator(world)
        world.step()
    world.killed_after = None


@pytest.mark.parametrize("strategy", ["Surge", "BreakFirst"])
@pytest.mark.parametrize("writes", range(UPGRADE_WRITES))
def test_killed_before_any_write_an_upgrade_of_full_nodes_ends_the_same(strategy: str, writes: int):
    """With Surge it goes over the spare node, with BreakFirst one node at a time."""
    nodes = small("a", "b", "c") if strategy == "Surge" else small("a", "b")
    world, _ = serving(nodes, adaptation={"window": "20s", "cooldown": "60s", "drain": "1s", "strategy": strategy})
    world.break_first = strategy == "BreakFirst"
    upgrade(world, writes)
    assert images(world) == ["segment:next"] * 2
    assert set(world.serving()) == set(world.segments())
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Progressing")["reason"] == "Settled"


@pytest.mark.parametrize("strategy", ["Surge", "BreakFirst"])
def test_an_upgrade_has_not_more_writes_than_the_operator_is_killed_before(strategy: str):
    world, _ = serving(small("a", "b", "c"), adaptation={"window": "20s", "cooldown": "60s", "drain": "1s", "strategy": strategy})
    world.break_first = strategy == "BreakFirst"
    upgrade(world, None)
    assert UPGRADE_WRITES - 5 <= len(world.writes) <= UPGRADE_WRITES
