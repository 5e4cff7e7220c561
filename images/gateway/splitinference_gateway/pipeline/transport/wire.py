"""The wire from the gateway to segments: frames over one lasting TCP connection with mutual TLS, past Triton's frontends.

The format is in splitinference_protocol.wire.frames; this is its side for asyncio. An answer that nobody waits for any more
is skipped as it comes: what a cancelled step made is freed by its release. An answer is never larger than the one who waits for it said.
"""

import asyncio
import itertools
import socket
from dataclasses import dataclass
from typing import cast

from splitinference_gateway.pipeline.transport.wire_tls import Identity, IdentityError
from splitinference_protocol.wire import frames
from splitinference_protocol.wire.frames import ANSWER_BYTES, HEAD, IDLE_SECONDS, MAX_META, MOST_ANSWER, OPEN_SECONDS, UNSENT


class WireError(Exception):
    """The connection cannot be had or is no more; the message says why."""


@dataclass(slots=True)
class _Awaited:
    answer: "asyncio.Future[tuple[bytes, bytes]]"
    most: int


class Wire(asyncio.Protocol):
    """One connection to one segment. A lost one fails all that is awaited, and stays lost."""

    def __init__(self, model: str, identity: Identity | None, *, idle_seconds: float = IDLE_SECONDS) -> None:
        """Not connected yet: see `connect`."""
        self.model = model
        self._identity, self._idle_seconds = identity, idle_seconds
        self._loop = asyncio.get_running_loop()
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._awaited: dict[int, _Awaited] = {}
        self._numbers = itertools.count()
        self._came = bytearray()
        self._skip = 0
        self._frame_late: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._leaving = False

    @classmethod
    async def connect(cls, host: str, port: int, model: str, identity: Identity | None, *, idle_seconds: float = IDLE_SECONDS) -> "Wire":
        """Connect, and be sure that a segment of this resource answers there, with `model`.

        Raises:
            WireError: nobody listens, not in time, it is somebody else, or it serves another model.
        """
        wire = cls(model, identity, idle_seconds=idle_seconds)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                context = None if identity is None else identity.context()
                name = None if context is None else ""  # no host name is checked, and none is told
                await wire._loop.create_connection(lambda: wire, host, port, ssl=context, server_hostname=name)
                await wire._greeted
        except (OSError, TimeoutError, IdentityError, WireError) as problem:
            wire.close()
            raise WireError(f"{host}:{port}: {str(problem) or 'no greeting in time'}") from problem
        except BaseException:
            wire.close()
            raise
        wire._rest()
        return wire

    @property
    def alive(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and not self._leaving and not self._transport.is_closing()

    async def exchange(self, meta: bytes, data: bytes, seconds: float, most: int = MOST_ANSWER) -> tuple[bytes, bytes]:
        """Send META and DATA; the answer's. What is sent before this first waits, so `alive` may be asked just before.

        `most`: bytes that the answer's DATA may have.

        Raises:
            WireError: the connection is lost; whether the other side got the request is not known.
            TimeoutError: no answer within `seconds`.
        """
        if self._transport is None or not self.alive:
            raise WireError("the connection is closed")
        if self._transport.get_write_buffer_size() > UNSENT:
            raise WireError("the segment does not read what is sent to it")
        self._rest(cancel=True)
        number = next(self._numbers)
        answer: asyncio.Future[tuple[bytes, bytes]] = self._loop.create_future()
        self._awaited[number] = _Awaited(answer, most)
        self._transport.write(b"".join((frames.head(number, meta, data), meta, data)))
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
        """Of asyncio, after the handshake: see who it is, and greet."""
        self._transport = stream = cast(asyncio.Transport, transport)
        with socket.fromfd(stream.get_extra_info("socket").fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
            frames.keep(same)
        try:
            if self._identity is not None:
                self._identity.check(stream.get_extra_info("ssl_object"))
        except IdentityError as stranger:
            self._lose(WireError(str(stranger)))
            stream.abort()
            return
        stream.write(frames.greeting(self.model))

    def data_received(self, data: bytes) -> None:
        """Of asyncio: complete frames wake those who wait for them."""
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._came += data[skipped:] if skipped else data
        try:
            start = self._greeting()
            while (end := self._frame(start)) is not None:
                start = end
            del self._came[:start]
            self._watch_frame(ended=start > 0 or (skipped > 0 and not self._skip))
        except WireError as problem:
            self._lose(problem)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio: nothing more will come."""
        self._lose(WireError(f"the connection was lost: {exc or 'the other side closed it'}"))
        for timer in (self._frame_late, self._idle):
            if timer is not None:
                timer.cancel()

    def _greeting(self) -> int:
        """Where frames begin in what has come."""
        if self._greeted.done():
            return 0
        if len(self._came) < ANSWER_BYTES:
            return 0
        if self._came[:ANSWER_BYTES] != frames.YES:
            raise WireError(f"it does not serve {self.model}")
        self._greeted.set_result(None)
        return ANSWER_BYTES

    def _frame(self, start: int) -> int | None:
        """Take the frame that begins at `start`; where the next one does. None: not all of it has come."""
        if not self._greeted.done() or len(self._came) < start + HEAD.size:
            return None
        number, meta_bytes, data_bytes = cast(tuple[int, int, int], HEAD.unpack_from(self._came, start))
        middle = start + HEAD.size + meta_bytes
        end = middle + data_bytes
        awaited = self._awaited.get(number)
        if awaited is None:
            self._skip = max(0, end - len(self._came))
            return min(end, len(self._came))
        if meta_bytes > MAX_META or data_bytes > awaited.most:
            raise WireError(f"an answer of {meta_bytes} bytes of META and {data_bytes} of DATA, expected {awaited.most} at most")
        if len(self._came) < end:
            return None
        if not awaited.answer.done():
            awaited.answer.set_result((bytes(self._came[start + HEAD.size : middle]), bytes(self._came[middle:end])))
        return end

    def _watch_frame(self, ended: bool) -> None:
        """A frame that has begun has a time limit. `ended`: the one before is complete."""
        begun = bool(self._came or self._skip)
        if self._frame_late is not None and (ended or not begun):
            self._frame_late.cancel()
            self._frame_late = None
        if begun and self._frame_late is None:
            announced = self._skip
            if len(self._came) >= HEAD.size:
                _, meta_bytes, data_bytes = HEAD.unpack_from(self._came)
                announced += meta_bytes + data_bytes
            self._frame_late = self._loop.call_later(frames.frame_seconds(announced), self._unfinished)

    def _unfinished(self) -> None:
        self._lose(WireError("an answer was not finished in time"))
        self.close()

    def _rest(self, *, cancel: bool = False) -> None:
        """Close when nothing is sent for a while."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = None if cancel else self._loop.call_later(self._idle_seconds, self.leave)

    def _lose(self, why: WireError) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(why)
            self._greeted.exception()  # maybe nobody waits for it any more
        for awaited in self._awaited.values():
            if not awaited.answer.done():
                awaited.answer.set_exception(why)
        self._awaited.clear()

    def _close_if_done(self) -> None:
        if not self._awaited and self._transport is not None and not self._transport.is_closing():
            if self._leaving:
                self._transport.close()
            else:
                self._rest()


def _late(answer: "asyncio.Future[tuple[bytes, bytes]]") -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
