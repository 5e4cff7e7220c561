"""The attacks: each a bounded time of traffic against one gateway on loopback. Run as a program, so that it has a core of its own."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from e2e.hostile.sending import (
    H2_HELLO,
    INFER,
    KEY,
    MODEL,
    Target,
    asked,
    completion,
    connected,
    h2_frame,
    h2_headers,
    post,
    status_of,
    together,
)  # fmt: skip

Attack = Callable[[Target], Coroutine[Any, Any, None]]
ATTACKS: dict[str, tuple[str, Attack]] = {}
_SECONDS = 8.0
_GRPC_BYTES = 3_200_000


def attack(name: str, what: str) -> Callable[[Attack], Attack]:
    """Register an attack under a short name."""

    def register(function: Attack) -> Attack:
        ATTACKS[name] = (what, function)
        return function

    return register


def _several(number: int, *requests: bytes, path: str = "/v1/completions") -> Attack:
    async def play(target: Target) -> None:
        whole = [post(path, request) for request in requests]
        await together(number, lambda i: asked(target, whole[i % len(whole)]), at_once=16)

    return play


def _bodies() -> None:
    many = completion(prompt=["x"] * 4900, n=128)
    attack("prompts-25k", "25 kB: 4,900 prompts, n=128")(_several(3, many))
    attack("prompts-50k", "50 kB: 9,900 prompts, n=128")(_several(3, completion(prompt=["x"] * 9900, n=128)))
    ids = completion(prompt=[[1]] * 8000, n=128)
    attack("prompts-ids", "40 kB: 8,000 prompts of one token id, n=128")(_several(3, ids))
    attack("prompt-4mb", "a prompt of 4 MB, eight at once")(_several(8, completion(prompt="word " * 800_000)))
    deep = b'{"model": "toy", "prompt": ' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}"
    wide = b'{"model": "toy", "prompt": [' + b"[]," * 1_300_000 + b"[]]}"
    objects = b'{"model": "toy", "messages": [' + b'{"a":{}},' * 450_000 + b"{}]}"
    attack("json-deep", "4 MB of brackets, deep and wide, eight at once")(_several(8, deep, wide, objects))
    messages = [{"role": "user", "content": [{"type": "text", "text": ""}] * 20}] * 5000
    chat = json.dumps({"model": MODEL, "messages": messages}).encode()
    attack("chat-parts", "a chat of 100,000 content parts, eight at once")(_several(8, chat, path="/v1/chat/completions"))
    bias = completion(prompt="x", logit_bias={str(i): 1 for i in range(200_000)}, stop=["x" * 1_000_000], metadata={"a": "b" * 10})
    attack("maps", "a logit_bias of 200,000 entries and a stop string of 1 MB, eight at once")(_several(8, bias))
    broken = [
        b'{"model": "toy", "prompt": "\\ud800"}',
        b'{"model": "\\udfff", "prompt": "x"}',
        b'{"model": "toy", "prompt": "x", "user": "\\udead", "stop": ["\\ud800"]}',
        b'{"model": "toy", "prompt": "x", "temperature": NaN}',
        b'{"model": "toy", "prompt": "x", "top_p": 1e999}',
        b'{"model": "toy", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "toy", "prompt": "\xff\xfe"}',
        b"\xff\xfe{\x00}\x00",
        b'{"\\ud800": 1}',
    ]
    attack("unicode", "lone surrogates, NaN, 5,000 digits, no UTF-8: 900 requests")(_several(900, *broken))


_bodies()


@attack("header-endless", "a header that never ends, 200 MB, ten connections")
async def header_endless(target: Target) -> None:
    async def one(_: int) -> None:
        async with connected(target.http) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ")
            for _ in range(320):
                writer.write(b"a" * 65_536)
                await writer.drain()
            target.said(await status_of(reader))

    await _bounded(together(10, one))


@attack("half-sent", "2,000 half-sent requests from ten addresses, held")
async def half_sent(target: Target) -> None:
    await _hold(target, 2000, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ", 10)


@attack("idle", "2,000 connections that say nothing, from one address")
async def idle(target: Target) -> None:
    await _hold(target, 2000, b"", 1)


@attack("flood", "20,000 connections, each closed at once")
async def flood(target: Target) -> None:
    async def one(_: int) -> None:
        async with connected(target.http):
            pass

    await _bounded(together(20_000, one, at_once=200))


@attack("slow-headers", "200 connections, a byte of a header every 50 ms")
async def slow_headers(target: Target) -> None:
    async def one(_: int) -> None:
        async with connected(target.http) as (_reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.05)

    await _bounded(together(200, one, at_once=200))


@attack("slow-bodies", "100 bodies of 4 MB, all but the last byte sent, held")
async def slow_bodies(target: Target) -> None:
    request = post("/v1/completions", b"a" * 4_000_000, length=4_000_001)

    async def one(_: int) -> None:
        async with connected(target.http) as (reader, writer):
            writer.write(request)
            target.said(await status_of(reader))

    await _bounded(together(100, one, at_once=100))


@attack("body-for-nothing", "100 endless bodies to paths that read none")
async def body_for_nothing(target: Target) -> None:
    async def one(_: int) -> None:
        async with connected(target.http) as (_reader, writer):
            writer.write(post("/healthz", b"", length=1 << 40))
            for _ in range(400):
                writer.write(b"a" * 65_536)
                await writer.drain()

    await _bounded(together(100, one, at_once=100))


@attack("pipelined", "100,000 requests in one write, twenty connections")
async def pipelined(target: Target) -> None:
    async def one(_: int) -> None:
        async with connected(target.http) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 100_000)
            target.said(await status_of(reader))

    await _bounded(together(20, one))


@attack("many-headers", "60,000 small headers and trailers, twenty connections")
async def many_headers(target: Target) -> None:
    async def one(index: int) -> None:
        async with connected(target.http) as (reader, writer):
            if index % 2:
                writer.write(b"GET /healthz HTTP/1.1\r\n" + b"a:b\r\n" * 60_000 + b"\r\n")
            else:
                writer.write(post("/v1/models", b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b""))
                writer.write(b"0\r\n" + b"a:b\r\n" * 60_000 + b"\r\n")
            target.said(await status_of(reader))

    await _bounded(together(20, one))


@attack("slow-readers", "40 streams and whole answers that are never read")
async def slow_readers(target: Target) -> None:
    async def one(index: int) -> None:
        more = {"logprobs": 5, "max_tokens": 1500, "stream": bool(index % 2)}
        async with connected(target.http) as (_reader, writer):
            writer.write(post("/v1/completions", completion(prompt="x", **more)))
            await asyncio.sleep(_SECONDS)

    await _bounded(together(40, one))


@attack("greedy", "90 long requests of one client at once, again and again")
async def greedy(target: Target) -> None:
    request = post("/v1/completions", completion(prompt="x", max_tokens=1000, temperature=0))

    async def one(_: int) -> None:
        await asked(target, request)

    await _bounded(together(5000, one, at_once=90))


@attack("grpc-unknown", "400 gRPC messages of 3.2 MB without a key")
async def grpc_unknown(target: Target) -> None:
    await _grpc(target, 400, bytes(_GRPC_BYTES), key=None)


@attack("grpc-known", "200 gRPC messages of 3.2 MB with a key, and two million empty parts")
async def grpc_known(target: Target) -> None:
    await _grpc(target, 200, b"\x2a\x00" * (_GRPC_BYTES // 2), key=KEY)


@attack("h2-resets", "60,000 HTTP/2 streams that are reset at once, four connections")
async def h2_resets(target: Target) -> None:
    async def one(_: int) -> None:
        async with connected(target.grpc) as (_reader, writer):
            writer.write(H2_HELLO)
            head = h2_headers(INFER)
            for number in range(1, 30_000, 2):
                writer.write(h2_frame(1, 4, number, head) + h2_frame(3, 0, number, b"\x00\x00\x00\x08"))
                if number % 400 == 1:
                    await writer.drain()

    await _bounded(together(4, one))


@attack("h2-pings", "200,000 HTTP/2 pings and settings, and headers that never end")
async def h2_pings(target: Target) -> None:
    async def one(index: int) -> None:
        async with connected(target.grpc) as (_reader, writer):
            writer.write(H2_HELLO)
            if index % 2:
                writer.write(h2_frame(1, 0, 1, h2_headers(INFER)))
                piece = h2_frame(9, 0, 1, b"\x00\x01a\x7e" + b"b" * 126) * 100  # CONTINUATION without an end
            else:
                piece = (h2_frame(6, 0, 0, bytes(8)) + h2_frame(4, 0, 0)) * 500
            for _ in range(200):
                writer.write(piece)
                await writer.drain()

    await _bounded(together(4, one))


@attack("h2-half", "500 gRPC connections with streams that stay open")
async def h2_half(target: Target) -> None:
    async def one(_: int) -> None:
        async with connected(target.grpc) as (_reader, writer):
            writer.write(
                H2_HELLO + b"".join(h2_frame(1, 4, n, h2_headers(INFER, ("authorization", f"Bearer {KEY}"))) for n in range(1, 40, 2))
            )
            await asyncio.sleep(_SECONDS)

    await _bounded(together(500, one, at_once=500))


async def _grpc(target: Target, number: int, message: bytes, key: str | None) -> None:
    """So many calls at once, over connections of 20 each, as raw frames: the window's rules are kept by the reader of ours."""
    import grpc.aio

    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{target.grpc}", options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(number // 20)
    ]

    async def one(index: int) -> None:
        call: Any = channels[index % len(channels)].unary_unary(INFER)
        try:
            await call(message, metadata=metadata, timeout=_SECONDS)
            target.said("OK")
        except grpc.aio.AioRpcError as error:
            target.said(error.code().name)

    await _bounded(together(number, one, at_once=number))
    for channel in channels:
        await channel.close()


async def _hold(target: Target, number: int, begin: bytes, addresses: int) -> None:
    async def one(index: int) -> None:
        async with connected(target.http, f"127.0.1.{1 + index % addresses}") as (reader, writer):
            writer.write(begin)
            target.said(await status_of(reader))

    await _bounded(together(number, one, at_once=number))


async def _bounded(work: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(_SECONDS):
            await work
    except TimeoutError:
        return


def main(arguments: list[str]) -> int:
    """NAME HTTP-PORT GRPC-PORT: play one attack, print as JSON what the gateway answered, and how long it took."""
    name, http, grpc_port = arguments[0], int(arguments[1]), int(arguments[2])
    target = Target(http, grpc_port, {})
    started = time.monotonic()
    asyncio.run(ATTACKS[name][1](target))
    print(json.dumps({"answers": target.answers, "seconds": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
