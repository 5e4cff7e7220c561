"""What two probes say to each other, over TCP: lines of ASCII, and the bytes of a burst.

    → hello <node>          ← hello <node> free|busy       who is there, and whether a burst is under way
    → echo <n>              ← echo <n>                     for the round trip
    → burst                 ← go | busy
    → bytes, then the end of the stream                    ← took <bytes> <microseconds>

`took` counts what came after the first quarter: a shaper lets the first bytes pass at once, and they say nothing about the rate.
A node takes part in one burst at a time, sent or received.
"""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
ECHOES = 8
ANSWER_S = 2.0  # a peer that does not answer a line within this is not measured
BURST_S = 10.0  # a burst that is not through by then is given up
SENDING_S = 0.5  # a burst stops sending after this: on a thin link less is enough
CHUNK = 32 << 10
KERNEL_BYTES = 128 << 10  # send buffer: what is written when time is over still has to go out
MOST_CONNECTIONS = 64
LINE_LIMIT = 64 << 10


class ProtocolError(Exception):
    """The peer said something else than expected, nothing, or too late."""


@dataclass(frozen=True)
class Sent:
    """A burst: bytes sent, and the rate in Mbit/s; None where it was too quick to be measured."""

    size: int
    mbps: float | None


class Station:
    """One node's end. `line` is held by whatever measures, `bursting` says that it is a burst: then round trips would be too long."""

    def __init__(self, node: str, most_bytes: int) -> None:
        """`most_bytes`: a burst of more than this is cut off."""
        self.node, self._most_bytes = node, most_bytes
        self.line = asyncio.Lock()
        self.bursting = False
        self._connections = 0

    async def serve(self, host: str, port: int) -> asyncio.Server:
        """Listen. OSError where the port is taken."""
        return await asyncio.start_server(self._connected, host, port, limit=LINE_LIMIT)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MOST_CONNECTIONS:
                await self._answer(reader, writer)
        except (OSError, ValueError, ProtocolError):
            pass  # the peer is gone, or is no probe: it sees the connection end
        finally:
            self._connections -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while words := (await _line(reader)).split():
            match words:
                case ["hello", _]:
                    writer.write(f"hello {self.node} {'busy' if self.bursting else 'free'}\n".encode())
                case ["echo", number]:
                    writer.write(f"echo {number}\n".encode())
                case ["burst"] if self.line.locked():
                    writer.write(b"busy\n")
                case ["burst"]:
                    async with self.burst(), asyncio.timeout(BURST_S):
                        writer.write(b"go\n")
                        size, seconds = await self._take(reader)
                        writer.write(f"took {size} {round(seconds * 1e6)}\n".encode())
                        await writer.drain()
                    return
                case _:
                    return
            await writer.drain()

    @asynccontextmanager
    async def burst(self) -> AsyncIterator[None]:
        """Take part in a burst, as the only one."""
        async with self.line:
            self.bursting = True
            try:
                yield
            finally:
                self.bursting = False

    async def _take(self, reader: asyncio.StreamReader) -> tuple[int, float]:
        total, came = 0, []
        while total <= self._most_bytes and (data := await reader.read(CHUNK)):
            total += len(data)
            came.append((time.monotonic(), total))
        start = next(((at, so_far) for at, so_far in came if so_far * 4 >= total), None)
        return (total - start[1], came[-1][0] - start[0]) if start else (0, 0.0)


class Call:
    """A connection to a peer's station. Every method raises ProtocolError or OSError when the peer does not keep to the protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node: str, busy: bool) -> None:
        self._reader, self._writer = reader, writer
        self.node, self.busy = node, busy

    async def rtt_s(self) -> float:
        """Shortest of some round trips, in seconds."""
        times = []
        for number in range(ECHOES):
            started = time.monotonic()
            if await _ask(self._reader, self._writer, f"echo {number}") != ["echo", str(number)]:
                raise ProtocolError("an echo came back as something else")
            times.append(time.monotonic() - started)
        return min(times)

    async def burst(self, size: int, rtt_s: float) -> Sent | None:
        """Send up to `size` bytes, and stop early when they take long; None when the peer is busy. Ends the connection's use.

        The rate is the lower of the peer's (what came after the first quarter) and ours (until the peer said so): a processor that is
        busy elsewhere can make one of them too high, hardly both.
        """
        if await _ask(self._reader, self._writer, "burst") != ["go"]:
            return None
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        self._writer.transport.set_write_buffer_limits(high=0)
        chunk, sent, started = bytes(CHUNK), 0, time.monotonic()
        async with asyncio.timeout(BURST_S):
            while sent < size and time.monotonic() - started < SENDING_S:
                part = chunk[: size - sent]
                self._writer.write(part)
                await self._writer.drain()
                sent += len(part)
            self._writer.write_eof()
            words = (await self._reader.readline()).decode("ascii", "replace").split()
        seconds = time.monotonic() - started - rtt_s
        match words:
            case ["took", some, micros] if some.isdecimal() and micros.isdecimal():
                rates = [_mbps(sent, seconds), _mbps(int(some), int(micros) / 1e6)]
                return Sent(sent, min(rates) if None not in rates else None)  # type: ignore[type-var]
        raise ProtocolError(f"a burst was answered with {' '.join(words)!r:.100}")


@asynccontextmanager
async def calling(host: str, port: int, own_node: str) -> AsyncIterator[Call]:
    """Connect and say hello."""
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection(host, port)
    try:
        match await _ask(reader, writer, f"hello {own_node}"):
            case ["hello", node, "free" | "busy" as state] if NODE_NAME.fullmatch(node):
                yield Call(reader, writer, node, state == "busy")
            case words:
                raise ProtocolError(f"hello was answered with {' '.join(words)!r:.100}")
    finally:
        writer.close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: str) -> list[str]:
    writer.write(line.encode() + b"\n")
    return (await _line(reader)).split()


async def _line(reader: asyncio.StreamReader) -> str:
    async with asyncio.timeout(ANSWER_S):
        return (await reader.readline()).decode("ascii", "replace")


def _mbps(size: int, seconds: float) -> float | None:
    return size * 8e-6 / seconds if size > 0 and seconds > 0 else None
