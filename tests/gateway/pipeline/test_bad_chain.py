"""What a chain may do wrong for good, and clients that do not read: a clear error after a stated time, and nothing held for nobody."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import reference, toy_segments

pytestmark = pytest.mark.anyio

BODY = {"model": MODEL, "prompt": "x", "max_tokens": 4, "temperature": 0}


async def ask(world: Serving, **more: Any) -> tuple[int, str, Any]:
    status, answer, headers = await world.post("/v1/completions", {**BODY, **more})
    return status, str(answer.get("error", {}).get("code")), headers


async def test_kv_that_stays_exhausted_is_429_with_retry_after(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments, replay_seconds=0.4) as world:
        segments[1].kv_limit = 0
        for stream in (False, True):
            status, code, headers = await ask(world, stream=stream)
            assert (status, code, headers["Retry-After"]) == (429, "kv_full", "1")
        assert await world.metric("splitinference_gateway_running_sequences") == 0
        segments[1].kv_limit = None
        assert (await ask(world))[0] == 200
        await world.idle()


@pytest.mark.parametrize("code", ["wrong_segment", "next_hop_failed", "deadline_exceeded", "kv_missing"])
async def test_a_chain_that_stays_broken_is_503_that_names_why(code: str, tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments, replay_seconds=0.4) as world:
        segments[1].errors.extend([code] * 1000)
        for n in (1, 2):
            status, told, headers = await ask(world, n=n)
            assert (status, told, headers["Retry-After"]) == (503, code, "2")
        assert (await world.get("/internal/routes"))["observed"]["failed"] == 2


async def test_numbers_that_are_not_finite_end_after_four_tries(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments, replay_seconds=60) as world:
        segments[1].errors.extend(["internal"] * 1000)
        assert (await ask(world))[:2] == (503, "internal")
        assert len(segments[1].errors) == 1000 - 4


@pytest.mark.parametrize("bad", ["NaN", "Infinity"])
async def test_a_log_probability_that_is_no_number_never_reaches_a_client(bad: str, tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        segments[0].logprob = float(bad)
        assert (await ask(world, logprobs=1))[:2] == (503, "internal")
        segments[0].logprob = float("-inf")
        _, answer, _ = await world.post("/v1/completions", {**BODY, "logprobs": 1})
        assert answer["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0] * 4


async def test_a_client_that_does_not_read_holds_no_kv(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        host, port = world.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 12)
        body = json.dumps({**BODY, "max_tokens": 1500, "logprobs": 5, "stream": True}).encode()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        while not segments[0].counts["step"] > 1000:
            await asyncio.sleep(0.02)
        await world.idle()
        assert await world.metric("splitinference_gateway_running_sequences") == 0
        text = ""
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
        assert text == bytes(reference(b"x", 1500)).decode(errors="replace")
        writer.close()
        await writer.wait_closed()
