"""The operator may be killed before any of its writes, and the story ends the same."""

from datetime import timedelta
from typing import Any

import pytest

from tests.controller.stories import reasons, small
from tests.controller.world import Killed, Operator, World, a_body

WRITES = 32


def story(world: World, operator_of: Any) -> None:
    """Apply, get ready, a node gets busy, a move; `operator_of` gives the operator for each pass."""
    for step in range(45):
        if step == 10:
            world.now += timedelta(seconds=120)
            world.busy[world.status()["plan"]["segments"][1]["node"]] = 0.93
        try:
            operator_of().look()
        except Killed:
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
