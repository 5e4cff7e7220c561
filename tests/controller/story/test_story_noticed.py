"""Others take a node that serves: its steps show it at once, metrics bit by bit. The move comes sooner, and only where steps were alone."""

from datetime import timedelta

import pytest

from splitinference_protocol.report import ObservedTraffic, Percentiles, StageTimes
from tests.controller.world import Operator, World, a_body, a_node

LAYER_MS = 1.0
"""One layer of the test's profile on an idle node of 100 GFLOP/s."""


def seen(world: World, truth: dict[str, float], *, alone: bool) -> ObservedTraffic:
    """What a gateway would say while others truly take so much of these nodes: medians of a minute lag, steps of late do not."""
    stages = {}
    for segment in world.status()["plan"]["segments"]:
        node, layers = segment["node"], segment["end"] - segment["start"]
        now, lagging = (layers * LAYER_MS / (1.0 - share.get(node, 0.0)) for share in (truth, world.busy))
        lately = {"alone_ms": now, "alone_steps": 60} if alone else {}
        stages[segment["name"]] = StageTimes(compute_ms=lagging, queue_ms=0.1, link_ms=1.0, steps=600, **lately)
    each = Percentiles(p50=sum((s.compute_ms or 0.0) + 2.0 for s in stages.values()))
    return ObservedTraffic(requests=20, time_to_first_token_ms=Percentiles(p50=50), time_per_output_token_ms=each, stages=stages)


def left_after(*, alone: bool, calibrated_minutes: float = 5) -> tuple[float, World]:
    """Seconds from when others take nine tenths of a node that serves until it is in no plan any more, and the world then."""
    world = World({name: a_node(name, mib=310) for name in "abc"})
    world.add(a_body(adaptation={"window": "30s", "cooldown": "60s", "drain": "10s"}))
    operator = Operator(world)
    operator.run(6)
    world.now += timedelta(seconds=120)
    for _ in range(round(calibrated_minutes * 12)):
        world.traffic = seen(world, {}, alone=alone)
        world.step(5)
        operator.look()
    taken = world.status()["plan"]["segments"][0]["node"]
    for number in range(1, 40):
        at = 5.0 * number
        world.busy = {taken: round(0.9 * min(60.0, at - at % 15) / 60.0, 4)}
        world.traffic = seen(world, {taken: 0.9}, alone=alone)
        world.step(5)
        operator.look()
        if taken not in world.placement():
            return at, world
    raise AssertionError(f"{taken} was never left: {world.status()['decisions'][0]}")


def test_a_node_that_others_take_is_left_sooner_where_its_steps_say_so():
    soon, world = left_after(alone=True)
    late, _ = left_after(alone=False)
    assert soon <= late - 15
    decision = world.status()["decisions"][0]
    assert decision["reason"] == "UtilizationShifted"
    assert ": 90 % used by others" in decision["message"]


def test_a_node_whose_factor_was_not_measured_is_left_by_metrics_alone():
    """Where the model may be off by any factor, slow steps say nothing of others."""
    soon, _ = left_after(alone=True, calibrated_minutes=0)
    late, _ = left_after(alone=False, calibrated_minutes=0)
    assert soon == late


@pytest.mark.parametrize("pulse", [10, 15])
def test_steps_that_are_slow_for_a_moment_move_nothing(pulse: int):
    """Metrics waver with it, and each pulse alone is too short to be a sign."""
    world = World({name: a_node(name, mib=310) for name in "abc"})
    world.add(a_body(adaptation={"window": "20s", "cooldown": "30s", "drain": "10s"}))
    operator = Operator(world)
    operator.run(6)
    world.now += timedelta(seconds=120)
    first, taken = world.placement(), world.status()["plan"]["segments"][0]["node"]
    for number in range(120):
        slow = number > 60 and 5 * number % 30 < pulse
        world.busy = dict.fromkeys("abc", 0.35 + 0.05 * (number % 2))
        world.traffic = seen(world, world.busy | ({taken: 0.8} if slow else {}), alone=True)
        world.step(5)
        operator.look()
    assert world.placement() == first
