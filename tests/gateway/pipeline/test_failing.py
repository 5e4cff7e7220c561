"""Which stages are reported as failing, since when, and when no longer."""

import asyncio
from pathlib import Path

import pytest

from splitinference_gateway.pipeline.recovery.failing import suspicion
from splitinference_gateway.pipeline.step_answers import StepError
from splitinference_protocol.wire.request import Hop
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import toy_segments

PIPELINE = tuple(Hop(segment=name, model="m") for name in "abc")


@pytest.mark.parametrize(
    ("code", "segment", "stages", "certain"),
    [
        ("transport", "a", "a", True),
        ("next_hop_failed", "a", "b", True),
        ("next_hop_failed", "b", "c", True),
        ("wrong_segment", "c", "c", True),
        ("internal", "b", "b", False),
        ("stalled", "a", "abc", False),
        ("deadline_exceeded", "b", "abc", False),
        ("kv_missing", "b", "", False),
        ("kv_full", "b", "", False),
        ("overloaded", "b", "", False),
        ("no_route", "", "", False),
    ],
)
def test_a_failure_points_at_the_stage_that_broke(code: str, segment: str, stages: str, certain: bool) -> None:
    points_at = suspicion(PIPELINE, StepError(code, "", segment))
    assert "".join(hop.segment for hop in points_at.stages) == stages
    assert points_at.certain is certain


async def failing(world: Serving) -> dict[str, dict[str, str]]:
    report: dict[str, dict[str, str]] = (await world.get("/internal/routes"))["failing"]
    return report


@pytest.mark.anyio
async def test_a_link_that_is_cut_is_reported_since_its_first_failure_although_the_stage_answers_probes(
    tmp_path: Path, model_path: Path
) -> None:
    segments = await toy_segments("a", "b")
    segments[0].errors.extend(["next_hop_failed"] * 1000)
    async with serving(tmp_path, model_path, segments) as world:
        asking = asyncio.create_task(world.complete("x", 5))
        async with asyncio.timeout(20):
            while not (first := await failing(world)):
                await asyncio.sleep(0.02)
        async with asyncio.timeout(60):
            while segments[1].counts["probe"] < 3:
                await asyncio.sleep(0.02)
        assert await failing(world) == first
        assert first["b"]["code"] == "next_hop_failed"
        segments[0].errors.clear()
        assert await asking
        assert await failing(world) == {}


@pytest.mark.anyio
async def test_one_sequences_bad_numbers_are_not_a_failing_stage(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[1].errors.extend(["internal"] * 2)
    async with serving(tmp_path, model_path, segments) as world:
        await world.complete("x", 5)
        assert segments[1].counts["probe"] >= 1
        assert await failing(world) == {}
        assert await world.metric('splitinference_gateway_failing_segments{segment="b"}') == 0


@pytest.mark.anyio
async def test_a_stage_that_died_without_traffic_after_it_is_cleared_when_it_is_back(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments, replay_seconds=0.3) as world:
        await segments[1].die()
        await world.post("/v1/completions", {"model": "toy", "prompt": "x"})
        assert (await failing(world)).keys() == {"b"}
        await asyncio.sleep(1.5)  # it is dead: nothing that it does meanwhile can clear it
        assert (await failing(world)).keys() == {"b"}
        await segments[1].start()
        async with asyncio.timeout(20):
            while await failing(world):
                await asyncio.sleep(0.05)


@pytest.mark.anyio
async def test_a_failing_segment_that_no_route_has_any_more_is_forgotten(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b", "c")
    async with serving(tmp_path, model_path, segments, replay_seconds=0.3) as world:
        await segments[1].die()
        await world.post("/v1/completions", {"model": "toy", "prompt": "x"})
        world.route([segments[0], segments[2]], revision="r2")
        await world.routed("r2")
        async with asyncio.timeout(20):
            while await failing(world):
                await asyncio.sleep(0.05)
        await segments[1].start()
