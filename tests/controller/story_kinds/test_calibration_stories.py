"""Nodes that are not what their figures say, over an hour of passes: the factor is learned, kept, and no reason to wander."""

from collections.abc import Mapping
from datetime import timedelta

import pytest

from splitinference_protocol.report import ObservedTraffic, Percentiles, StageTimes
from tests.controller.world import Operator, World, a_body, a_node

LAYER_MS = 1.0
"""One layer of the test's profile on an idle node of 100 GFLOP/s."""


def serving(*names: str) -> tuple[World, Operator]:
    """A resource that serves on nodes that hold two of the four layers each, past its cooldown."""
    world = World({name: a_node(name, mib=310) for name in names})
    world.add(a_body())
    operator = Operator(world)
    operator.run(6)
    assert world.condition("Ready")["status"] == "True"
    world.now += timedelta(seconds=120)
    return world, operator


def steps(world: World, operator: Operator, minutes: float, slower: Mapping[str, float]) -> list[str]:
    """So many minutes of requests over nodes (or layers, by their first) that are so much slower than their figures; the placements met."""
    met: list[str] = []
    for _ in range(round(minutes * 12)):
        operator.look()
        if not met or met[-1] != world.placement():
            met.append(world.placement())
        world.traffic = seen(world, slower)
        world.step(5)
    return met


def seen(world: World, slower: Mapping[str, float]) -> ObservedTraffic:
    """What a gateway would say of the plan's stages."""
    stages = {}
    for segment in world.status()["plan"]["segments"]:
        node = segment["node"]
        factor = slower.get(node, 1.0) * slower.get(f"layer {segment['start']}", 1.0)
        compute = (segment["end"] - segment["start"]) * LAYER_MS * factor / (1.0 - world.busy.get(node, 0.0))
        stages[segment["name"]] = StageTimes(compute_ms=compute, queue_ms=0.1, link_ms=1.0, steps=600)
    each = Percentiles(p50=sum((s.compute_ms or 0.0) + 2.0 for s in stages.values()))
    return ObservedTraffic(requests=20, time_to_first_token_ms=Percentiles(p50=50), time_per_output_token_ms=each, stages=stages)


def test_an_error_that_all_nodes_share_moves_nothing_and_is_mended():
    world, operator = serving("a", "b", "c")
    met = steps(world, operator, 20, dict.fromkeys("abc", 3.0))
    calibration = world.status()["calibration"]
    assert len(met) == 1, met
    assert [d["reason"] for d in world.status()["decisions"]] == ["NoPlan"]
    assert [entry["factor"] for entry in calibration["nodes"].values()] == [pytest.approx(3.0, rel=1e-3)] * 2
    assert (calibration["errorPercent"], calibration["uncalibratedErrorPercent"]) == (pytest.approx(0, abs=0.1), pytest.approx(66.7))


def test_a_node_slower_than_its_label_is_left_once_and_for_good():
    """What was learned of it outlives the move and the operator: otherwise it would look quick again and be gone back to."""
    world, operator = serving("a", "b", "c")
    first = steps(world, operator, 1, {})[0]
    slow = first[0]
    met = steps(world, operator, 15, {slow: 5.0})
    assert len(met) == 2, met
    assert slow not in met[-1]
    assert world.status()["decisions"][0]["reason"] == "BetterPlan"
    assert world.status()["decisions"][0]["outcome"]["paid"] is True
    for _ in range(3):
        operator = Operator(world)
        assert steps(world, operator, 4, {slow: 5.0}) == met[-1:]
    assert world.status()["calibration"]["nodes"][slow]["factor"] == pytest.approx(5.0, rel=0.05)


def test_an_error_of_certain_layers_is_followed_once_and_not_from_node_to_node():
    """The second half of the model is slow wherever it is: one move finds that out."""
    world, operator = serving("a", "b", "c", "d")
    met = steps(world, operator, 20, {"layer 2": 3.0})
    assert len(met) == 2, met
    assert world.status()["adaptation"]["unpaid"] == 1


def test_after_a_lost_node_a_plan_that_only_looks_better_is_not_gone_to_before_the_new_stage_was_measured():
    """c replaces b and looks slow for two minutes, as a node does that was just started on; d was never used. Its cooldown is a minute."""

    def lost(stabilization: str) -> list[str]:
        world = World({name: a_node(name, mib=310) for name in "abcd"})
        adaptation = {"window": "20s", "cooldown": "60s", "drain": "10s", "stabilization": stabilization}
        world.add(a_body(adaptation=adaptation))
        operator = Operator(world)
        operator.run(6)
        steps(world, operator, 5, {})
        before = world.placement()
        gone = world.status()["plan"]["segments"][1]["node"]
        world.nodes[gone]["status"]["conditions"][0]["status"] = "Unknown"
        steps(world, operator, 1, {})
        new = next(s["node"] for s in world.status()["plan"]["segments"] if f"{s['node']}[" not in before)
        world.busy = {new: 0.6}
        steps(world, operator, 1.5, {})
        assert "optional moves wait" in world.condition("Progressing")["message"] or stabilization == "0s"
        world.busy = {}
        steps(world, operator, 8, {})
        assert world.condition("Progressing")["message"] == "the plan serves"
        return [d["reason"] for d in reversed(world.status()["decisions"]) if d["transition"] != "keep"]

    assert lost("10m") == ["NoPlan", "NodeLost"]
    assert lost("0s") == ["NoPlan", "NodeLost", "BetterPlan"]


def test_use_by_others_below_the_threshold_is_no_calibration_and_idle_nodes_stay_good():
    world, operator = serving("a", "b")
    world.busy = {"a": 0.5}
    steps(world, operator, 10, {})
    learned = {node: entry["factor"] for node, entry in world.status()["calibration"]["nodes"].items()}
    assert "b" in learned
    assert learned == dict.fromkeys(learned, pytest.approx(1.0, abs=0.02))


def test_use_by_others_that_swings_does_not_make_a_node_look_slow():
    """The gateway's minute and the metrics' minute never fit exactly: such windows are not learned from."""
    world, operator = serving("a", "b", "c")
    for minute in range(12):
        world.busy = {"a": 0.65 * (minute % 2), "b": 0.6 * ((minute + 1) % 2)}
        steps(world, operator, 1, {})
    for entry in world.status().get("calibration", {}).get("nodes", {}).values():
        assert entry["factor"] == pytest.approx(1.0, abs=0.15)


def test_without_prometheus_nothing_is_learned():
    world, operator = serving("a", "b")
    steps(world, operator, 1, {})
    world.prometheus = "Prometheus at http://prometheus cannot be reached"
    steps(world, operator, 6, {"a": 4.0, "b": 4.0})
    assert all(entry["windows"] < 2 for entry in world.status().get("calibration", {}).get("nodes", {}).values())


def test_an_absurd_stage_time_is_said_in_the_condition_and_learned_from_never():
    world, operator = serving("a", "b")
    steps(world, operator, 1, {})
    name = world.status()["plan"]["segments"][0]["name"]
    world.traffic = ObservedTraffic(requests=9, stages={name: StageTimes(compute_ms=1e9, steps=600)})
    operator.look()
    condition = world.condition("MetricsAvailable")
    assert (condition["status"], condition["reason"]) == ("True", "Doubtful")
    assert f"compute time of segment {name} is 1e+09 ms, which is implausible and ignored" in condition["message"]


def test_with_requests_the_status_is_written_six_times_a_minute_at_most_and_without_them_nothing_is_learned():
    world, operator = serving("a", "b")
    steps(world, operator, 5, {"a": 2.0})
    world.writes.clear()
    steps(world, operator, 5, {"a": 2.0})
    written = [what for what in world.writes if what.startswith("status")]
    assert len(written) <= 5 * 6, written
    world.traffic = ObservedTraffic()
    operator.look()
    learned = world.status()["calibration"]
    assert "window" not in learned
    for _ in range(20):
        operator.look()
        world.step(5)
    assert world.status()["calibration"] == learned
