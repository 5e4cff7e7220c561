"""Connections are bounded in number, bytes and time: what is too much is refused or cut, and its sequences end."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio
HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connection(world: Serving, source: str = "127.0.0.1") -> AsyncIterator[Streams]:
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what the kernel takes in is nothing that was read
    own.bind((source, 0))
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", int(world.url.rpartition(":")[2])))
    reader, writer = await asyncio.open_connection(sock=own)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def answered(streams: Streams, *pieces: bytes) -> int | str:
    """The status of the answer to these bytes; `cut` where the connection ended without."""
    reader, writer = streams
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        line = await reader.readline()
    except OSError:
        return "cut"
    return int(line.split()[1]) if line else "cut"


async def refused(world: Serving, reason: str) -> float:
    return await world.metric(f'splitinference_gateway_refused_connections_total{{listener="clients",reason="{reason}"}}')


@asynccontextmanager
async def bounded(folder: Path, model_path: Path, **settings: Any) -> AsyncIterator[Serving]:
    async with serving(folder, model_path, await toy_segments("a"), **settings) as world:
        yield world


async def test_a_header_that_does_not_end_is_refused_by_its_bytes(tmp_path: Path, model_path: Path) -> None:
    async with bounded(tmp_path, model_path, header_bytes=4096) as world:
        async with connection(world) as streams:
            assert await answered(streams, HEAD + b"X-Long: ", *[b"a" * 10_000] * 60) in (431, "cut")
        async with connection(world) as streams:
            assert await answered(streams, b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n") == 431
        async with connection(world) as streams:
            assert await answered(streams, HEAD + b"a: b\r\n" * 200 + b"\r\n") == 431
        async with connection(world) as streams:
            assert await answered(streams, HEAD + b"X-Long: " + b"a" * 3000 + b"\r\n\r\n") == 200
        assert await refused(world, "header_bytes") == 2
        assert await refused(world, "header_count") == 1


async def test_trailers_count_as_headers(tmp_path: Path, model_path: Path) -> None:
    async with bounded(tmp_path, model_path, header_bytes=4096) as world, connection(world) as streams:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert await answered(streams, head, b"1\r\n{\r\n0\r\n", b"a: b\r\n" * 2000) in (400, "cut")
        assert await refused(world, "header_count") == 1


async def test_headers_have_to_come_in_time_also_when_they_trickle_and_after_an_answer(tmp_path: Path, model_path: Path) -> None:
    async with bounded(tmp_path, model_path, header_seconds=0.3) as world:

        async def trickle(writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while True:
                    writer.write(b"a")
                    await writer.drain()
                    await asyncio.sleep(0.02)

        async with connection(world) as streams:
            assert await answered(streams) == 408
        for before in (b"", HEAD + b"\r\n"):
            async with connection(world) as (reader, writer):
                if before:
                    assert await answered((reader, writer), before) == 200
                    await reader.readuntil(b"ok")
                writer.write(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
                trickling = asyncio.create_task(trickle(writer))
                assert await answered((reader, writer)) == 408
                trickling.cancel()
        assert await refused(world, "header_seconds") == 3


async def test_an_idle_connection_is_closed_after_its_time_and_not_before_it_asked(tmp_path: Path, model_path: Path) -> None:
    async with bounded(tmp_path, model_path, keep_alive_seconds=0.3) as world, connection(world) as (reader, writer):
        assert await answered((reader, writer), HEAD + b"\r\n") == 200
        await reader.readuntil(b"ok")
        assert await reader.read() == b""
        assert await refused(world, "idle") == 1


async def test_a_body_that_nobody_reads_does_not_keep_a_connection(tmp_path: Path, model_path: Path) -> None:
    async with bounded(tmp_path, model_path) as world, connection(world) as (reader, writer):
        writer.write(b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not reader.at_eof():
                writer.write(b"a" * 10_000)
                await writer.drain()
                await asyncio.sleep(0)
        assert await refused(world, "body_bytes") == 1


async def test_many_requests_without_waiting_are_cut_and_a_few_are_answered_in_order(tmp_path: Path, model_path: Path) -> None:
    async with bounded(tmp_path, model_path) as world:
        async with connection(world) as (reader, writer):
            writer.write((HEAD + b"\r\n") * 4)
            for _ in range(4):
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        async with connection(world) as streams:
            await answered(streams, (HEAD + b"\r\n") * 1000)
        while not await refused(world, "pipelined"):
            await asyncio.sleep(0.02)


async def test_one_address_has_its_share_of_connections_and_others_theirs(tmp_path: Path, model_path: Path) -> None:
    async with bounded(tmp_path, model_path, max_connections_per_client=3) as world, contextlib.AsyncExitStack() as held:
        for _ in range(3):
            streams = await held.enter_async_context(connection(world, "127.0.0.2"))
            assert await answered(streams, HEAD + b"\r\n") == 200
        async with connection(world, "127.0.0.2") as streams:
            assert await answered(streams, HEAD + b"\r\n") in (503, "cut")
        async with connection(world, "127.0.0.3") as streams:
            assert await answered(streams, HEAD + b"\r\n") == 200
        assert await refused(world, "connections_per_client") == 1


async def test_trusted_proxies_count_in_total_only_and_say_who_asks(tmp_path: Path, model_path: Path) -> None:
    settings = {"max_connections_per_client": 2, "trusted_proxies": "127.0.0.2/32, fd00::/8"}
    async with bounded(tmp_path, model_path, **settings) as world, contextlib.AsyncExitStack() as held:
        for _ in range(5):
            streams = await held.enter_async_context(connection(world, "127.0.0.2"))
            assert await answered(streams, HEAD + b"\r\n") == 200


async def test_who_comes_new_takes_the_place_of_who_waits_longest_without_a_request(tmp_path: Path, model_path: Path) -> None:
    async with bounded(tmp_path, model_path, max_connections=4) as world, contextlib.AsyncExitStack() as held:
        world.segments[0].seconds = 0.02
        busy, _ = await held.enter_async_context(connection(world, "127.0.0.5"))
        body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 100, "stream": True}).encode()
        _.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await busy.readuntil(b"data: ")
        waiting = [await held.enter_async_context(connection(world, f"127.0.0.{6 + number}")) for number in range(8)]
        async with connection(world) as streams:
            assert await answered(streams, HEAD + b"\r\n") == 200
        assert await answered(waiting[0]) == "cut"
        assert b"[DONE]" in await busy.readuntil(b"[DONE]")
        assert await refused(world, "displaced") >= 5


@pytest.mark.parametrize("stream", [True, False])
async def test_a_reader_that_does_not_read_is_cut_off_and_its_sequences_end(tmp_path: Path, model_path: Path, stream: bool) -> None:
    async with bounded(tmp_path, model_path, stall_seconds=0.3, max_concurrent_sequences=32, max_queue=0) as world:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 400, "n": 4, "logprobs": 4, "stream": stream, "temperature": 1}
        raw = json.dumps(body).encode()
        async with connection(world) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
            while not await refused(world, "stall"):
                await asyncio.sleep(0.1)
            await world.idle()
            assert await world.metric("splitinference_gateway_running_sequences") == 0


async def test_a_reader_that_is_slow_but_reads_gets_all(tmp_path: Path, model_path: Path) -> None:
    async with bounded(tmp_path, model_path, stall_seconds=5, max_concurrent_sequences=8) as world:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 300, "n": 4, "logprobs": 4, "stream": True, "temperature": 1}
        raw = json.dumps(body).encode()
        async with connection(world) as (reader, writer):
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
            text = b""
            while b"[DONE]" not in text:
                piece = await reader.read(4096)
                assert piece, "cut"
                text = text[-10:] + piece
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET /%zz\xff HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_400_and_closed(tmp_path: Path, model_path: Path, raw: bytes) -> None:
    async with bounded(tmp_path, model_path) as world:
        async with connection(world) as (reader, writer):
            assert await answered((reader, writer), raw) in (400, 404)
        async with connection(world) as streams:
            assert await answered(streams, HEAD + b"\r\n") == 200
