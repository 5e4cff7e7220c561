"""A model that is unloaded: requests are held until its first pipeline serves, within limits, and the operator is told of them."""

import asyncio
from pathlib import Path

import pytest

from splitinference_gateway.errors import ApiError
from splitinference_gateway.routing.routes import Routes
from splitinference_protocol.route import RouteDocument, RouteError, asleep, withdrawn
from tests.gateway.routing.test_routes import document
from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio
SLEEP = {"asleep": {"wakesInSeconds": 20, "holdSeconds": 60}}


async def held(world: Serving, count: int) -> None:
    """Until so many sequences are held, as the operator sees it."""
    async with asyncio.timeout(20):
        while (await world.get("/internal/routes"))["held"] != count:
            await asyncio.sleep(0.02)


async def fell_asleep(world: Serving, **more: object) -> None:
    world.route(revision="asleep", **{**SLEEP, **more})
    async with asyncio.timeout(20):
        while world.gateway.routes.asleep is None:
            await asyncio.sleep(0.02)


async def test_a_request_is_held_until_the_first_pipeline_serves(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        expected = await world.complete("held", 6)
        await fell_asleep(world)
        waiting = asyncio.create_task(world.complete("held", 6))
        await held(world, 1)
        assert not waiting.done()
        world.route(segments, revision="r2")
        assert await waiting == expected
        await held(world, 0)


async def test_a_gateway_that_starts_while_the_model_sleeps_is_ready_and_holds(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        await fell_asleep(world)
        assert world.gateway.ready
        waiting = asyncio.create_task(world.complete("first", 3))
        await held(world, 1)
        world.route(segments, revision="r1")
        assert await waiting


async def test_who_is_held_too_long_is_told_when_to_come_again(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        await fell_asleep(world, asleep={"wakesInSeconds": 19.5, "holdSeconds": 0.2})
        status, body, headers = await world.post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 2})
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "model_starting", "20")
        await held(world, 0)


async def test_more_than_may_wait_are_told_when_to_come_again(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments, max_concurrent_sequences=1, max_queue=1) as world:
        await fell_asleep(world)
        limit = world.gateway.admission.most
        waiting = [asyncio.create_task(world.complete("x", 2)) for _ in range(limit)]
        async with asyncio.timeout(20):
            while world.gateway.admission.running + world.gateway.admission.waiting < limit:
                await asyncio.sleep(0.02)
        status, _, headers = await world.post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 2})
        assert (status, headers["Retry-After"]) == (429, "20")
        world.route(segments, revision="r2")
        assert all(await asyncio.gather(*waiting))


async def test_a_sequence_under_way_goes_on_where_it_is_when_the_model_is_put_to_sleep(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        expected = await world.complete("under way", 60)
        for segment in segments:
            segment.step_seconds = 0.02
        running = asyncio.create_task(world.complete("under way", 60))
        async with asyncio.timeout(20):
            while not segments[0].sequences:
                await asyncio.sleep(0.01)
        await fell_asleep(world)
        assert await running == expected


async def test_the_report_says_what_came_and_how_long_it_was(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        assert (await world.get("/internal/routes"))["observed"]["arrived"] == 0
        await world.complete("one", 4)
        await world.complete("two", 8)
        observed = (await world.get("/internal/routes"))["observed"]
        assert observed["arrived"] == 2
        assert observed["promptTokensMean"] > 0
        assert 0 < observed["outputTokensMean"] <= 8


async def test_held_sequences_hear_that_the_model_was_withdrawn() -> None:
    routes = Routes()
    routes.apply(asleep(5, 60))
    waiting = asyncio.create_task(routes.awake())
    await asyncio.sleep(0)
    assert routes.held == 1
    routes.apply(withdrawn())
    await asyncio.wait_for(waiting, 20)
    assert (routes.held, routes.asleep) == (0, None)


async def test_the_time_to_hold_is_that_of_the_newest_document() -> None:
    routes = Routes()
    routes.apply(document("r1", "a"))
    routes.apply(asleep(5, 60))
    assert (routes.takes, routes.wakes_in) == (True, 5)
    routes.apply(asleep(7.2, 1e-9))
    assert routes.wakes_in == 8
    with pytest.raises(ApiError, match="is not loaded"):
        await routes.awake()


def test_a_document_is_asleep_or_has_pipelines() -> None:
    assert RouteDocument.parse(asleep(1, 2).text()) == asleep(1, 2)
    text = asleep(1, 2).text().replace('"pipelines": []', '"pipelines": [[{"segment": "a", "model": "m"}]]')
    with pytest.raises(RouteError, match="has no pipelines"):
        RouteDocument.parse(text)
