"""A stage that dies, stalls, forgets or refuses in the middle of a text: the client gets the same text, later."""

import asyncio
import json
from pathlib import Path

import openai
import pytest

from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import ToySegment, at_rest, reference, toy_segments

pytestmark = pytest.mark.anyio

PROMPT = "a prompt of more than one chunk"
TOKENS = 60


def expected(tokens: int = TOKENS, **sampling: object) -> str:
    return bytes(reference(PROMPT.encode(), tokens, sampling or None)).decode(errors="replace")


async def streamed(world: Serving, tokens: int = TOKENS, **more: object) -> str:
    async with world.client as client:
        stream = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=tokens, stream=True, **{"temperature": 0, **more})
        return "".join([chunk.choices[0].text async for chunk in stream])


@pytest.mark.parametrize("stage", [0, 1, 2])
async def test_a_stage_that_dies_and_comes_back_costs_a_pause(tmp_path: Path, model_path: Path, stage: int) -> None:
    segments = await toy_segments("a", "b", "c")
    segments[stage].die_at_step = 25

    async def mend() -> None:
        while not hasattr(segments[stage], "_dying"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        segments[stage].die_at_step = None
        await segments[stage].start()

    async with serving(tmp_path, model_path, segments) as world:
        mending = asyncio.create_task(mend())
        assert await streamed(world) == expected()
        await mending
        assert await world.metric('splitinference_gateway_requests_total{code="200"}') == 1
        reason = "transport" if stage == 0 else "next_hop_failed"
        assert await world.metric(f'splitinference_gateway_replays_total{{reason="{reason}"}}') >= 1


async def test_all_choices_go_on_after_a_stage_died(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[1].die_at_step = 60

    async def mend() -> None:
        while not hasattr(segments[1], "_dying"):
            await asyncio.sleep(0.01)
        segments[1].die_at_step = None
        await segments[1].start()

    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        mending = asyncio.create_task(mend())
        answer = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=TOKENS, n=3, temperature=1, seed=11)
        await mending
        texts = [choice.text for choice in answer.choices]
        assert texts[0] == expected(temperature=1, seed=11)
        assert len(set(texts)) == 3
        again = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=TOKENS, n=3, temperature=1, seed=11)
        assert [choice.text for choice in again.choices] == texts


@pytest.mark.parametrize("code", ["kv_missing", "next_hop_failed", "overloaded", "deadline_exceeded", "internal", "wrong_segment"])
async def test_an_error_of_a_stage_is_mended_by_replay(tmp_path: Path, model_path: Path, code: str) -> None:
    segments = await toy_segments("a", "b", "c")
    async with serving(tmp_path, model_path, segments) as world:
        reading = asyncio.create_task(streamed(world))
        while segments[1].counts["step"] < 20:
            await asyncio.sleep(0)
        segments[1].errors.append(code)
        assert await reading == expected()
        assert await world.metric(f'splitinference_gateway_replays_total{{reason="{code}"}}') == 1


async def test_kv_that_a_stage_dropped_is_made_again(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b", "c")
    async with serving(tmp_path, model_path, segments) as world:
        reading = asyncio.create_task(streamed(world))
        while segments[2].counts["step"] < 30:
            await asyncio.sleep(0)
        segments[2].sequences.clear()
        assert await reading == expected()
        assert await world.metric('splitinference_gateway_replays_total{reason="kv_missing"}') == 1


@pytest.mark.parametrize("stage", [0, 1])
async def test_a_stage_that_is_silent_is_given_up_after_the_step_timeout(tmp_path: Path, model_path: Path, stage: int) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments, step_seconds=2, step_seconds_per_token=0) as world:
        reading = asyncio.create_task(streamed(world))
        while segments[stage].counts["step"] < 20:
            await asyncio.sleep(0)
        segments[stage].stalled = True
        async with asyncio.timeout(20):
            while not (failing := (await world.get("/internal/routes"))["failing"]):
                await asyncio.sleep(0.05)
        segments[stage].stalled = False
        assert await reading == expected()
    assert failing[segments[stage].name]["code"] == "deadline_exceeded"
    assert set(failing) == {segments[stage].name}  # the probes of the others answered


async def test_a_route_without_the_dead_stage_takes_over(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b", "spare")
    a, b, spare = segments
    b.die_at_step = 25
    async with serving(tmp_path, model_path, segments) as world:
        world.route([a, b], revision="r2")
        await world.routed("r2")
        reading = asyncio.create_task(streamed(world))
        while not hasattr(b, "_dying"):
            await asyncio.sleep(0.01)
        world.route([a, spare], revision="r3")
        assert await reading == expected()
        routes = await world.get("/internal/routes")
        assert set(routes["routes"]) == {"r3"}


async def test_another_pipeline_is_preferred_to_the_broken_one(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b", "c", "d")
    a, b, c, d = segments
    b.die_at_step = 25
    async with serving(tmp_path, model_path, segments) as world:
        world.route([a, b], [c, d], revision="r2")
        await world.routed("r2")
        assert await streamed(world) == expected()
        assert d.counts["step"] > 0
        routes = await world.get("/internal/routes")
        assert routes["failing"].keys() == {"b"}
        assert routes["failing"]["b"]["code"] == "next_hop_failed"


async def test_a_full_kv_cache_is_waited_for(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[1].kv_limit = 1
    async with serving(tmp_path, model_path, segments) as world:
        texts = await asyncio.gather(streamed(world), streamed(world))
        assert texts == [expected(), expected()]


async def test_a_chain_that_stays_broken_is_an_error_after_the_stated_time(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments, replay_seconds=0.5) as world, world.client as client:
        await segments[1].die()
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=5)
        assert caught.value.status_code == 503
        assert caught.value.code == "next_hop_failed"
        assert caught.value.response.headers["retry-after"] == "2"
        await segments[1].start()
        assert await streamed(world) == expected()


async def test_a_stream_that_cannot_go_on_ends_with_an_error_event(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[1].die_at_step = 20
    async with serving(tmp_path, model_path, segments, replay_seconds=0.5) as world:
        with pytest.raises(openai.APIError, match="was not mended within"):
            await streamed(world)
        assert await world.metric('splitinference_gateway_requests_total{code="503"}') == 1
        await segments[1].start()


async def test_wrong_numbers_are_not_retried_for_the_whole_replay_time(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    segments[0].errors.extend(["internal"] * 50)
    async with serving(tmp_path, model_path, segments, replay_seconds=60) as world, world.client as client:
        with pytest.raises(openai.InternalServerError, match="internal"):
            await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=5)
        assert segments[0].counts["step"] == 4


async def test_a_request_that_the_model_refuses_is_the_clients_error(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    segments[0].errors.append("bad_request")
    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        with pytest.raises(openai.BadRequestError, match="told to: bad_request"):
            await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=5)
        assert segments[0].counts["step"] == 1


async def test_the_request_deadline_holds_while_the_chain_is_broken(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    segments[0].seconds = 0.05
    async with serving(tmp_path, model_path, segments, request_seconds=0.5) as world, world.client as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=500)
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        await world.idle()


async def test_segments_forget_the_sequence_of_a_client_that_is_gone(tmp_path: Path, model_path: Path) -> None:
    segments: list[ToySegment] = await toy_segments("a", "b")
    segments[0].seconds = 0.01
    async with serving(tmp_path, model_path, segments) as world:
        async with world.client as client:
            stream = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2000, stream=True)
            async for _ in stream:
                break
            assert segments[1].sequences
            await stream.close()
        await world.idle()
        asking = asyncio.create_task(world.complete(PROMPT, 2000))
        while not segments[1].sequences:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await world.idle()
        steps = await at_rest(segments[0])
        assert steps < 2000, "the rest of what was asked for is not computed"
        assert await world.metric('splitinference_gateway_requests_total{code="499"}') == 2
        assert (await world.get("/internal/routes"))["routes"]["r1"]["inFlight"] == 0


async def test_a_client_that_does_not_read_does_not_hold_the_segments(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        host, port = world.url.removeprefix("http://").split(":")
        body = json.dumps({"model": MODEL, "prompt": PROMPT, "max_tokens": 3000, "stream": True, "logprobs": 5}).encode()
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        async with asyncio.timeout(30):
            while not segments[0].counts["release"]:
                await asyncio.sleep(0.02)
        assert not segments[0].sequences
        assert await world.metric("splitinference_gateway_running_sequences") == 0
        assert await world.complete("others", 5)
        writer.close()
