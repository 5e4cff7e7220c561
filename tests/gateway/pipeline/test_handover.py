"""A sequence that outlives the drain of its route takes its KV along; where it cannot, its tokens are run again. The text is the same."""

import asyncio
from pathlib import Path

import pytest

from splitinference_gateway.pipeline.chain import RESUMED
from splitinference_gateway.pipeline.recovery.handover import Speeds, copy_is_quicker, copy_seconds, newcomers
from splitinference_gateway.pipeline.step_answers import Pulled
from splitinference_protocol.wire.request import Hop
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import ToySegment, reference, toy_segments

PROMPT = "a prompt of more than one chunk"


def pipeline(*segments: str) -> tuple[Hop, ...]:
    """`a:0-4` is segment a with layers 0 to 4."""
    pairs = [segment.split(":") for segment in segments]
    return tuple(Hop(segment=name, model=f"seg-0123abcd-{layers}") for name, layers in pairs)


def test_newcomers_are_the_segments_that_the_old_pipeline_does_not_have() -> None:
    old = pipeline("a:0-4", "b:4-7")
    assert newcomers(old, pipeline("a:0-4", "c:4-7")) == pipeline("c:4-7")
    assert newcomers(old, pipeline("d:0-2", "e:2-7")) == pipeline("d:0-2", "e:2-7")
    assert newcomers(old, old) == ()


def test_models_that_are_not_the_same_whole_model_have_nothing_to_hand_over() -> None:
    old = pipeline("a:0-4", "b:4-7")
    assert newcomers(old, (Hop(segment="x", model="seg-ffff0000-0-7"),)) is None
    assert newcomers(old, pipeline("x:0-9")) is None
    assert newcomers(old, (Hop(segment="x", model="something"),)) is None


def test_copying_takes_the_bytes_over_the_bandwidth() -> None:
    assert copy_seconds(1000, 23_040, 115_200_000) == pytest.approx(0.2)


def test_what_is_quicker_is_chosen_and_what_is_not_known_is_tried() -> None:
    assert copy_is_quicker(1000, 1000, 0.0002, 0.003)
    assert not copy_is_quicker(1000, 1000, 0.004, 0.003)
    assert copy_is_quicker(100, 1000, 0.004, 0.003)  # most of it is there already
    assert copy_is_quicker(1000, 1000, None, 0.003)
    assert copy_is_quicker(1000, 1000, 0.004, None)


def test_the_slowest_segment_says_how_long_copying_takes() -> None:
    speeds = Speeds()
    assert speeds.seconds_per_copied(["a", "b"]) is None
    speeds.pulled("a", 100, Pulled(1_000_000, 0.1))
    speeds.pulled("b", 100, Pulled(1_000_000, 0.4))
    speeds.pulled("c", 100, Pulled(0, 0.001))  # no blocks: nothing to measure
    assert speeds.seconds_per_copied(["a", "b", "c"]) == pytest.approx(0.004)
    assert speeds.seconds_per_copied(["a", "c"]) == pytest.approx(0.001)
    speeds.forget({"a"})
    assert speeds.seconds_per_copied(["b"]) is None


async def four(seconds: float = 0.004) -> list[ToySegment]:
    """Two pipelines of the same model: cut at 4, and at 2."""
    segments = await toy_segments("a", "b", "c", "d")
    for segment, layers in zip(segments, ((0, 4), (4, 7), (0, 2), (2, 7)), strict=True):
        segment.layers, segment.seconds = layers, seconds
    return segments


async def fallbacks(world: Serving, reason: str) -> float:
    return await world.metric(f'splitinference_gateway_handover_fallbacks_total{{reason="{reason}"}}')


async def paused(world: Serving) -> dict[str, float]:
    """How many waits for a token there were in which a sequence came onto another route, by how it did."""
    return {by: await world.metric(f'splitinference_gateway_pause_seconds_count{{by="{by}"}}') for by in RESUMED}


async def moved(world: Serving, old: list[ToySegment], new: list[ToySegment], tokens: int, drain_seconds: float = 0.3) -> str:
    """The text of a sequence during which the route changes."""
    world.route(old, revision="r2")
    await world.routed("r2")
    asking = asyncio.create_task(world.complete(PROMPT, tokens))
    while sum(segment.counts["step"] for segment in old) < 60:
        await asyncio.sleep(0.005)
    world.route(new, revision="r3", drain_seconds=drain_seconds)
    return await asking


async def holds_a_sequence(segment: ToySegment) -> None:
    """Wait until a copy to this segment has begun."""
    async with asyncio.timeout(20):
        while not segment.sequences:
            await asyncio.sleep(0.005)


def text(tokens: int) -> str:
    return bytes(reference(PROMPT.encode(), tokens)).decode(errors="replace")


@pytest.mark.anyio
async def test_a_sequence_takes_its_kv_along_and_no_token_is_run_again(tmp_path: Path, model_path: Path) -> None:
    segments = await four()
    a, b, c, d = segments
    async with serving(tmp_path, model_path, segments) as world:
        assert await moved(world, [a, b], [c, d], 200) == text(200)
        assert await world.metric("splitinference_gateway_handovers_total") == 1
        assert await world.metric('splitinference_gateway_replays_total{reason="superseded"}') == 0
        assert await world.metric("splitinference_gateway_handover_bytes_total") == 1000 * (sum(c.pulled) + sum(d.pulled)) > 0
        assert await world.metric("splitinference_gateway_handover_pause_seconds_count") == 1
        assert await paused(world) == {"handover": 1, "replay": 0, "mending": 0}
        assert c.counts["step"] > 50
        assert max(c.chunks) == 1  # it never saw the prompt
        assert len(c.pulled) >= 2  # ahead, and what was left
        await world.idle()
        assert (await world.get("/internal/routes"))["routes"] == {"r3": {"inFlight": 0, "state": "serving"}}


@pytest.mark.anyio
async def test_a_segment_of_both_routes_keeps_what_it_has(tmp_path: Path, model_path: Path) -> None:
    segments = await four()
    a, b, _, d = segments
    d.layers = (4, 7)
    async with serving(tmp_path, model_path, segments) as world:
        assert await moved(world, [a, b], [a, d], 200) == text(200)
        assert await world.metric("splitinference_gateway_handovers_total") == 1
        assert a.pulled == []
        await world.idle()
        assert a.counts["release"] == 1
        assert a.chunks.count(8) == 3  # the prompt's own prefill and no other


@pytest.mark.anyio
async def test_the_same_segments_under_another_revision_go_on_as_they_are(tmp_path: Path, model_path: Path) -> None:
    segments = await four()
    a, b, *_ = segments
    async with serving(tmp_path, model_path, segments) as world:
        assert await moved(world, [a, b], [a, b], 200) == text(200)
        assert await world.metric("splitinference_gateway_handovers_total") == 0, "there is nothing to hand over"
        assert await world.metric('splitinference_gateway_replays_total{reason="superseded"}') == 0
        assert (a.pulled, b.pulled) == ([], [])


@pytest.mark.anyio
@pytest.mark.parametrize("code", ["kv_missing", "kv_full", "wrong_segment", "next_hop_failed", "internal"])
async def test_a_pull_that_fails_is_replaced_by_replay(code: str, tmp_path: Path, model_path: Path) -> None:
    segments = await four()
    a, b, c, d = segments
    d.pull_errors.append(code)
    async with serving(tmp_path, model_path, segments) as world:
        assert await moved(world, [a, b], [c, d], 200) == text(200)
        assert await fallbacks(world, code) == 1
        assert await world.metric('splitinference_gateway_replays_total{reason="superseded"}') == 1
        assert await world.metric("splitinference_gateway_handovers_total") == 0
        assert await paused(world) == {"handover": 0, "replay": 1, "mending": 0}
        await world.idle()


@pytest.mark.anyio
async def test_where_running_the_tokens_again_is_quicker_they_are_run_again(tmp_path: Path, model_path: Path) -> None:
    segments = await four()
    a, b, c, d = segments
    d.pull_seconds = 0.02  # a token; a prefill step of eight takes about as long as one of those
    async with serving(tmp_path, model_path, segments) as world:
        assert await moved(world, [a, b], [c, d], 300, drain_seconds=2) == text(300)
        assert await fallbacks(world, "replay_quicker") == 1
        assert await world.metric('splitinference_gateway_replays_total{reason="superseded"}') == 1
        await world.idle()


@pytest.mark.anyio
async def test_a_sequence_that_ends_early_in_a_long_drain_is_not_copied(tmp_path: Path, model_path: Path) -> None:
    segments = await four()
    a, b, c, d = segments
    async with serving(tmp_path, model_path, segments) as world:
        assert await moved(world, [a, b], [c, d], 100, drain_seconds=30) == text(100)
        assert (c.pulled, d.pulled) == ([], [])


@pytest.mark.anyio
async def test_a_client_that_leaves_during_the_copy_leaves_nothing_behind(tmp_path: Path, model_path: Path) -> None:
    segments = await four()
    a, b, c, d = segments
    d.pull_seconds = 0.005
    async with serving(tmp_path, model_path, segments) as world:
        moving = asyncio.create_task(moved(world, [a, b], [c, d], 2000, drain_seconds=1))
        await holds_a_sequence(c)
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)
        await world.http.close()  # the connection of the request goes with its task
        async with asyncio.timeout(20):
            while any(segment.sequences for segment in segments) or any(world.gateway.routes.in_flight().values()):
                await asyncio.sleep(0.02)


@pytest.mark.anyio
async def test_back_to_the_old_route_in_time_the_sequence_stays_there(tmp_path: Path, model_path: Path) -> None:
    segments = await four()
    a, b, c, d = segments
    d.pull_seconds = 0.03
    async with serving(tmp_path, model_path, segments) as world:
        world.route([a, b], revision="r2")
        await world.routed("r2")
        asking = asyncio.create_task(world.complete(PROMPT, 300))
        while a.counts["step"] < 30:
            await asyncio.sleep(0.005)
        world.route([c, d], revision="r3", drain_seconds=3)
        await holds_a_sequence(c)
        world.route([a, b], revision="r2")
        assert await asking == text(300)
        await world.idle()
        assert c.counts["step"] == 0
        assert await world.metric('splitinference_gateway_replays_total{reason="superseded"}') == 0


@pytest.mark.anyio
async def test_a_stage_that_dies_during_the_copy_is_mended_by_replay(tmp_path: Path, model_path: Path) -> None:
    segments = await four()
    a, b, c, d = segments
    d.pull_seconds = 0.005
    async with serving(tmp_path, model_path, segments) as world:
        moving = asyncio.create_task(moved(world, [a, b], [c, d], 200, drain_seconds=3))
        await holds_a_sequence(c)
        await b.die()
        assert await moving == text(200)
        assert await paused(world) == {"handover": 0, "replay": 0, "mending": 1}
        await b.start()  # with nothing: as a stage that was killed
        await world.idle()
