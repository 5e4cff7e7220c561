"""The wire from the gateway to a first stage: frames over one lasting TCP connection to its Python backend, past Triton's frontends.

The format is that of segments among themselves (docs/reference/data-plane.md), here for asyncio. An answer that nobody waits for any more
is read and dropped: what a cancelled step made is freed by its release.
"""

import asyncio
import itertools
import socket
import struct
from typing import cast

MAGIC = b"SIW1"
HEAD = struct.Struct("<QII")  # number, bytes of META, bytes of DATA
MAX_META = 1 << 20
MAX_DATA = 1 << 31
OPEN_SECONDS = 5.0  # to connect, and to be greeted
_KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 5_000))  # seconds; the last one ms


class WireError(Exception):
    """The connection cannot be had or is no more; the message says why."""


def fits(meta: bytes, data: bytes) -> bool:
    """Whether a frame can carry this; more goes by gRPC."""
    return len(meta) <= MAX_META and len(data) <= MAX_DATA


class Wire(asyncio.Protocol):
    """One connection to one segment. A lost one fails all that is awaited, and stays lost."""

    def __init__(self, model: str) -> None:
        """Not connected yet: see `connect`."""
        self.model = model
        self._loop = asyncio.get_running_loop()
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._awaited: dict[int, asyncio.Future[tuple[bytes, bytes]]] = {}
        self._numbers = itertools.count()
        self._came = bytearray()
        self._leaving = False

    @classmethod
    async def connect(cls, host: str, port: int, model: str) -> "Wire":
        """Connect, and be sure that `model` is what answers there.

        Raises:
            WireError: nobody listens, not in time, or it serves another model.
        """
        wire = cls(model)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await wire._loop.create_connection(lambda: wire, host, port)
                await wire._greeted
        except (OSError, TimeoutError) as problem:
            wire.close()
            raise WireError(f"{host}:{port}: {str(problem) or 'no greeting in time'}") from problem
        except BaseException:
            wire.close()
            raise
        return wire

    @property
    def alive(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and not self._leaving and not self._transport.is_closing()

    async def exchange(self, meta: bytes, data: bytes, seconds: float) -> tuple[bytes, bytes]:
        """Send META and DATA; the answer's. What is sent before this first waits, so `alive` may be asked just before.

        Raises:
            WireError: the connection is lost; whether the other side got the request is not known.
            TimeoutError: no answer within `seconds`.
        """
        if self._transport is None or not self.alive:
            raise WireError("the connection is closed")
        number = next(self._numbers)
        answer: asyncio.Future[tuple[bytes, bytes]] = self._loop.create_future()
        self._awaited[number] = answer
        self._transport.write(b"".join((HEAD.pack(number, len(meta), len(data)), meta, data)))
        late = self._loop.call_later(seconds, _late, answer)
        try:
            return await answer
        finally:
            late.cancel()
            self._awaited.pop(number, None)
            self._close_if_done()

    def leave(self) -> None:
        """Take nothing more, and close when what is awaited was answered or is given up."""
        self._leaving = True
        self._close_if_done()

    def close(self) -> None:
        """Close at once; what is awaited fails."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio: greet."""
        self._transport = stream = cast(asyncio.Transport, transport)
        with socket.fromfd(stream.get_extra_info("socket").fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
            same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:  # a node that is lost sends no word
                same.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        name = self.model.encode()
        stream.write(MAGIC + struct.pack("<H", len(name)) + name)

    def data_received(self, data: bytes) -> None:
        """Of asyncio: complete frames wake those who wait for them."""
        self._came += data
        try:
            start = self._greeting()
            while (frame := self._frame(start)) is not None:
                number, meta, content, start = frame
                answer = self._awaited.get(number)
                if answer is not None and not answer.done():
                    answer.set_result((meta, content))
            del self._came[:start]
        except WireError as problem:
            self._lose(problem)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio: nothing more will come."""
        self._lose(WireError(f"the connection was lost: {exc or 'the other side closed it'}"))

    def _greeting(self) -> int:
        """Where frames begin in what has come."""
        if self._greeted.done():
            return 0
        if len(self._came) <= len(MAGIC):
            return 0
        if self._came[: len(MAGIC) + 1] != MAGIC + b"\0":
            raise WireError(f"it does not serve {self.model}")
        self._greeted.set_result(None)
        return len(MAGIC) + 1

    def _frame(self, start: int) -> tuple[int, bytes, bytes, int] | None:
        """The frame that begins at `start`, and where the next one does; None: not all of it has come."""
        if not self._greeted.done() or len(self._came) < start + HEAD.size:
            return None
        number, meta_bytes, data_bytes = HEAD.unpack_from(self._came, start)
        if meta_bytes > MAX_META or data_bytes > MAX_DATA:
            raise WireError(f"{meta_bytes} bytes of META and {data_bytes} of DATA are no frame")
        middle = start + HEAD.size + meta_bytes
        end = middle + data_bytes
        if len(self._came) < end:
            return None
        return number, bytes(self._came[start + HEAD.size : middle]), bytes(self._came[middle:end]), end

    def _lose(self, why: WireError) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(why)
        for answer in self._awaited.values():
            if not answer.done():
                answer.set_exception(why)
        self._awaited.clear()

    def _close_if_done(self) -> None:
        if self._leaving and not self._awaited and self._transport is not None:
            self._transport.close()


def _late(answer: "asyncio.Future[tuple[bytes, bytes]]") -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
