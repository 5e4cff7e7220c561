"""How attackers speak: raw bytes over loopback, from addresses of their own, each bounded in time."""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

MODEL = "toy"
KEY = "sk-attacker"


@dataclass(frozen=True)
class Target:
    """Where the gateway listens. `answers` counts what it said, by status."""

    http: int
    grpc: int
    answers: dict[str, int]

    def said(self, status: str) -> None:
        self.answers[status] = self.answers.get(status, 0) + 1


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(port: int, source: str = "127.0.0.2") -> AsyncIterator[Connection]:
    """A connection from `source`, cut at the end whatever is under way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def post(path: str, body: bytes, *more: str, length: int | None = None) -> bytes:
    """A request's bytes."""
    size = len(body) if length is None else length
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {KEY}",
        "Content-Type: application/json",
        f"Content-Length: {size}",
    )
    return "\r\n".join([*lines, *more, "", ""]).encode() + body


def completion(**fields: Any) -> bytes:
    """A body for /v1/completions."""
    return json.dumps({"model": MODEL, **fields}).encode()


async def status_of(reader: asyncio.StreamReader) -> str:
    """The status of the next answer; what became of the connection where there is none."""
    try:
        line = await reader.readline()
    except OSError:
        return "reset"
    return line.split()[1].decode() if line.startswith(b"HTTP/") and len(line.split()) > 1 else "closed"


async def asked(target: Target, request: bytes, source: str = "127.0.0.2") -> None:
    """Send a whole request, and count its answer."""
    try:
        async with connected(target.http, source) as (reader, writer):
            writer.write(request)
            target.said(await status_of(reader))
    except OSError:
        target.said("no connection")


async def together(number: int, one: Callable[[int], Coroutine[Any, Any, None]], at_once: int = 100) -> None:
    """`one` for each index, many at once; what fails has failed."""
    gate = asyncio.Semaphore(at_once)

    async def gated(index: int) -> None:
        async with gate:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await one(index)

    await asyncio.gather(*(gated(index) for index in range(number)))


def h2_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def h2_headers(path: str, *more: tuple[str, str]) -> bytes:
    """HPACK without tables: every field as a literal."""
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
    out = bytearray()
    for name, value in (*fields, *more):
        out += b"\x00" + _string(name) + _string(value)
    return bytes(out)


def _string(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 127:
        return bytes((len(raw),)) + raw
    rest, out = len(raw) - 127, bytearray(b"\x7f")
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    out.append(rest)
    return bytes(out) + raw


H2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(4, 0, 0)
INFER = "/inference.GRPCInferenceService/ModelInfer"
