"""A long prompt goes through the stages in chunks that overlap: the text is the same, and what fails is run again in order."""

import asyncio
from pathlib import Path

import pytest

from splitinference_gateway.pipeline.flight import MOST, chunk_tokens, most_under_way
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import ToySegment, reference, toy_segments

PROMPT = "a long prompt that has many chunks of eight tokens each, and so it takes a while to go through all the stages"


@pytest.mark.parametrize(("stages", "most"), [(1, 1), (2, 3), (3, 4), (40, MOST)])
def test_so_many_chunks_keep_the_stages_busy(stages: int, most: int) -> None:
    assert most_under_way(stages) == most


@pytest.mark.parametrize(
    ("tokens", "stages", "most", "expected"),
    [(100, 3, 256, 256), (1000, 1, 256, 256), (1000, 3, 256, 128), (300, 4, 256, 64), (9000, 3, 256, 256), (1000, 3, 8, 8)],
)
def test_chunks_are_short_enough_for_the_stages_to_overlap(tokens: int, stages: int, most: int, expected: int) -> None:
    assert chunk_tokens(tokens, stages, most) == expected


pytestmark = pytest.mark.anyio


def told(tokens: int) -> str:
    return bytes(reference(PROMPT.encode(), tokens)).decode(errors="replace")


async def chain(*names: str, seconds: float = 0.01) -> list[ToySegment]:
    """Stages that compute one step at a time, as real ones do."""
    segments = await toy_segments(*names)
    for segment in segments:
        segment.seconds = seconds
        segment.one_by_one = asyncio.Lock()
    return segments


async def replays(world: Serving) -> int:
    found = await world.get("/internal/routes")
    return int(found["observed"]["replays"])


async def test_several_stages_work_at_once_and_the_text_is_the_same(tmp_path: Path, model_path: Path) -> None:
    segments = await chain("a", "b", "c")
    busy: list[int] = []

    async def watch() -> None:
        while True:
            busy.append(sum(segment.one_by_one is not None and segment.one_by_one.locked() for segment in segments))
            await asyncio.sleep(0.001)

    async with serving(tmp_path, model_path, segments) as world:
        watching = asyncio.create_task(watch())
        assert await world.complete(PROMPT, 5) == told(5)
        watching.cancel()
        assert max(busy) == 3
        assert segments[0].chunks == segments[2].chunks
        assert sum(segments[0].chunks) == len(PROMPT) + 4
        assert await replays(world) == 0


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("code", ["kv_missing", "internal", "overloaded"])
async def test_a_chunk_that_fails_amid_others_is_mended(tmp_path: Path, model_path: Path, stage: int, code: str) -> None:
    segments = await chain("a", "b", "c")
    async with serving(tmp_path, model_path, segments) as world:
        reading = asyncio.create_task(world.complete(PROMPT, 12))
        while segments[stage].counts["step"] < 3:
            await asyncio.sleep(0)
        segments[stage].errors.append(code)
        assert await reading == told(12)
        assert await replays(world) >= 1


async def test_a_client_that_leaves_amid_a_prompt_leaves_nothing(tmp_path: Path, model_path: Path) -> None:
    segments = await chain("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        reading = asyncio.create_task(world.complete(PROMPT, 12))
        while segments[1].counts["step"] < 2:
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert await world.complete(PROMPT, 3) == told(3)
        async with asyncio.timeout(20):
            while (await world.get("/internal/routes"))["routes"]["r1"]["inFlight"]:
                await asyncio.sleep(0.02)


async def test_a_route_that_drains_amid_a_prompt_is_left_between_chunks(tmp_path: Path, model_path: Path) -> None:
    segments = await chain("a", "b", "c")
    a, b, c = segments
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b], revision="r1")
        await world.routed("r1")
        reading = asyncio.create_task(world.complete(PROMPT, 12))
        while b.counts["step"] < 2:
            await asyncio.sleep(0)
        world.route([a, c], revision="r2", drain_seconds=0)
        assert await reading == told(12)
        assert c.counts["step"] > 0
