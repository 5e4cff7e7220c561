"""Adapters as clients meet them: named as the model, each with its own text, its own KV and its own kept answers."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from splitinference_gateway.pipeline.adapters import AdapterUse
from splitinference_gateway.routing.routes import Routes
from splitinference_protocol.route import RouteDocument, RouteError
from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import reference, toy_segments

pytestmark = pytest.mark.anyio
FRENCH, LEGAL, OTHER = (letter * 32 for letter in "abd")


def named(**digests: str) -> list[dict[str, str]]:
    return [{"name": name, "digest": digest} for name, digest in digests.items()]


@asynccontextmanager
async def adapting(folder: Path, model_path: Path, **settings: Any) -> AsyncIterator[Serving]:
    """A gateway whose segments hold two adapters, which the route names."""
    async with serving(folder, model_path, await toy_segments("a", "b"), routed=False, **settings) as world:
        for segment in world.segments:
            segment.adapters = {FRENCH, LEGAL}
        await told(world, "r1", french=FRENCH, legal=LEGAL)
        yield world


async def told(world: Serving, revision: str, **digests: str) -> None:
    world.route(world.segments, revision=revision, adapters=named(**digests))
    await world.routed(revision)


def text(adapter: str, prompt: str = "hello", tokens: int = 12) -> str:
    sampling = {"temperature": 1, "seed": adapter} if adapter else None
    return bytes(reference(prompt.encode(), tokens, sampling)).decode()


async def ask(world: Serving, model: str, prompt: str = "hello", tokens: int = 12, **more: Any) -> tuple[int, Any, Any]:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}
    return await world.post("/v1/completions", body)


async def test_each_name_has_its_own_text(tmp_path: Path, model_path: Path) -> None:
    async with adapting(tmp_path, model_path) as world:
        answers = await asyncio.gather(*(ask(world, name) for name in ("french", MODEL, "legal", "french")))
        assert [answer["model"] for _, answer, _ in answers] == ["french", MODEL, "legal", "french"]
        found = [answer["choices"][0]["text"] for _, answer, _ in answers]
        assert found == [text(FRENCH), text(""), text(LEGAL), text(FRENCH)]
        assert len(set(found)) == 3, "texts that are all alike tell nothing"
        async with world.client as client:
            chat = await client.chat.completions.create(model="legal", messages=[{"role": "user", "content": "x"}], max_tokens=4)
        assert chat.model == "legal"
        assert set(world.segments[1].ran_with[-4:]) == {LEGAL}


async def test_adapters_are_listed_and_come_and_go_with_the_route(tmp_path: Path, model_path: Path) -> None:
    async with adapting(tmp_path, model_path) as world:
        async with world.client as client:
            listed = [model async for model in client.models.list()]
            assert [model.id for model in listed] == [MODEL, "french", "legal"]
            one = await client.models.retrieve("french")
            assert (one.id, one.parent, one.root) == ("french", MODEL, FRENCH)  # type: ignore[attr-defined]
        await told(world, "r2", legal=LEGAL)
        status, answer, _ = await ask(world, "french")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert (await ask(world, "legal"))[0] == 200
        async with world.client as client:
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("french")


async def test_kserve_knows_adapters_too(tmp_path: Path, model_path: Path) -> None:
    async with adapting(tmp_path, model_path) as world:
        assert (await world.get("/v2/models/french"))["name"] == "french"
        inputs = [{"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [5, 6]}]
        status, answer, _ = await world.post("/v2/models/french/infer", {"inputs": inputs})
        assert (status, answer["model_name"]) == (200, "french")
        assert world.segments[0].ran_with == [FRENCH]
        assert (await world.post("/v2/models/other/infer", {"inputs": inputs}))[0] == 404


async def test_kv_of_a_beginning_is_not_shared_between_adapters(tmp_path: Path, model_path: Path) -> None:
    prompt = "the same beginning " * 20

    async def reused(world: Serving) -> float:
        return await world.metric("splitinference_gateway_prefix_reused_tokens_total")

    async with adapting(tmp_path, model_path) as world:
        for name in (MODEL, "french", "legal"):
            assert (await ask(world, name, prompt))[0] == 200
            await world.idle()
        assert await reused(world) == 0
        assert (await ask(world, "french", prompt))[1]["choices"][0]["text"] == text(FRENCH, prompt)
        assert await reused(world) > 0


async def test_kept_answers_are_of_one_adapter_and_of_one_content(tmp_path: Path, model_path: Path) -> None:
    async with adapting(tmp_path, model_path, reuse="all") as world:
        seen = [(await ask(world, name))[2]["X-Cache"] for name in (MODEL, "french", "legal", "french", MODEL)]
        assert seen == ["MISS", "MISS", "MISS", "HIT", "HIT"]
        for segment in world.segments:
            segment.adapters.add(OTHER)
        await told(world, "r2", french=OTHER)
        status, answer, headers = await ask(world, "french")
        assert (status, headers["X-Cache"], answer["choices"][0]["text"]) == (200, "MISS", text(OTHER))


async def test_a_segment_without_the_adapter_is_waited_for(tmp_path: Path, model_path: Path) -> None:
    """It was started anew, say; nothing is wrong with it."""
    async with adapting(tmp_path, model_path) as world:
        last = world.segments[1]
        last.adapters = set()
        asked = asyncio.create_task(ask(world, "french"))
        async with asyncio.timeout(20):
            while last.counts["step"] < 3:
                await asyncio.sleep(0.02)
        assert (await world.get("/internal/routes"))["adapters"] == {FRENCH: 1}
        assert (await ask(world, MODEL))[0] == 200
        last.adapters = {FRENCH}
        status, answer, _ = await asked
        assert (status, answer["choices"][0]["text"]) == (200, text(FRENCH))
        report = await world.get("/internal/routes")
        assert (report["failing"], report["adapters"]) == ({}, {})


async def test_who_waits_for_an_adapter_that_is_removed_is_told(tmp_path: Path, model_path: Path) -> None:
    async with adapting(tmp_path, model_path) as world:
        world.segments[0].adapters = set()
        asked = asyncio.create_task(ask(world, "french"))
        async with asyncio.timeout(20):
            while world.segments[0].counts["step"] < 1:
                await asyncio.sleep(0.02)
        await told(world, "r2", legal=LEGAL)
        status, answer, _ = await asked
        assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_the_endpoint_picker_finds_its_figures(tmp_path: Path, model_path: Path) -> None:
    async with adapting(tmp_path, model_path) as world:
        world.segments[0].seconds = 0.05
        asked = asyncio.create_task(ask(world, "french", tokens=40))
        async with asyncio.timeout(20):
            while not (lines := await _info(world)) or 'running_lora_adapters="french"' not in lines[0]:
                await asyncio.sleep(0.02)
        (line,) = lines
        assert re.fullmatch(r'splitinference_gateway_lora_requests_info\{max_lora="2",running.*,waiting_lora_adapters=""\} [\d.e+]+', line)
        assert float(line.rpartition(" ")[2]) > 1.7e9, "when it changed, in Unix seconds"
        assert 0 < await world.metric("splitinference_gateway_kv_usage") <= 1
        await asked
        (line,) = await _info(world)
        assert 'running_lora_adapters=""' in line
        assert await world.metric("splitinference_gateway_kv_usage") == 0


async def _info(world: Serving) -> list[str]:
    async with world.http.get(f"{world.metrics_url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return [line for line in lines if line.startswith("splitinference_gateway_lora_requests_info{")]


def test_those_that_wait_are_told_apart_from_those_that_run() -> None:
    use = AdapterUse(clock=lambda: 5.0)
    with use.waiting("a", FRENCH), use.running("b", LEGAL), use.waiting("b", LEGAL), use.running("m", ""):
        assert (use.names_running, use.names_waiting) == (("b",), ("a",))
        assert use.in_flight == {FRENCH: 1, LEGAL: 2}
    assert (use.names_running, use.names_waiting, use.in_flight) == ((), (), {})


def test_a_route_that_is_withdrawn_for_a_moment_says_nothing_of_adapters() -> None:
    routes, hop = Routes(), {"segment": "a", "model": "seg-a"}

    def apply(**fields: Any) -> None:
        routes.apply(RouteDocument.model_validate({"revision": "r", "pipelines": [], **fields}))

    apply(revision="r1", pipelines=[[hop]], adapters=named(french=FRENCH))
    apply(revision="stopped")
    assert routes.adapters == {"french": FRENCH}
    apply(revision="asleep", asleep={"wakesInSeconds": 5, "holdSeconds": 5}, adapters=named(legal=LEGAL))
    assert routes.adapters == {"legal": LEGAL}
    apply(revision="r2", pipelines=[[hop]])
    assert routes.adapters == {}


@pytest.mark.parametrize("wrong", [[{"name": "a", "digest": "short"}], [{"name": "", "digest": FRENCH}], [{"name": "a"}]])
def test_a_route_with_something_else_than_adapters_is_no_route(wrong: list[dict[str, str]]) -> None:
    document = RouteDocument.model_validate({"revision": "r", "pipelines": []}).text()
    with pytest.raises(RouteError):
        RouteDocument.parse(document[:-1] + f', "adapters": {str(wrong).replace(chr(39), chr(34))}}}')
