"""uvicorn's HTTP protocol within bounds: header bytes and time, body time, idle time, connections, and readers that do not read.

uvicorn bounds idle keep-alive connections and nothing else (docs/decisions/0027-http-server.md). Each bound here is a timer or a count at a
callback that the parser makes anyway, so a request that keeps within them costs a few microseconds.
"""

import asyncio
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, NoReturn

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from splitinference_protocol.addresses import plain_address

_MOST_HEADERS = 128
_MOST_PIPELINED = 8
_LINGER_BYTES = 256 << 10  # and send so much
_LINGER_SECONDS = 5.0  # a client that still sends after its answer was sent may read it for so long
_KERNEL_BYTES = 128 << 10
_LEAST_READ_PER_SECOND = 1024


@dataclass(frozen=True)
class HttpLimits:
    """Bytes, seconds and connections of one listener."""

    header_bytes: int = 64 << 10
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    stall_seconds: float = 30.0
    connections: int = 1024
    connections_per_client: int = 256
    trusted: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(eq=False)
class Connected:
    """The connections of one listener. When it is full, the one that waits longest without a request makes room for a new one."""

    limits: HttpLimits
    refused: Callable[[str], None] = lambda reason: None
    _waiting: "OrderedDict[GuardedProtocol, None]" = field(default_factory=OrderedDict)
    _of_client: Counter[str] = field(default_factory=Counter)
    total: int = 0

    def admit(self, connection: "GuardedProtocol", client: str) -> str:
        """Count a new connection; not empty: why it may not stay."""
        if not self._exempt(client) and self._of_client[client] >= self.limits.connections_per_client:
            return "connections_per_client"
        if self.total >= self.limits.connections and not self._make_room():
            return "connections"
        self.total += 1
        self._of_client[client] += 1
        self._waiting[connection] = None
        return ""

    def left(self, connection: "GuardedProtocol", client: str) -> None:
        """A counted connection is gone."""
        self.total -= 1
        self._of_client[client] -= 1
        if self._of_client[client] <= 0:
            del self._of_client[client]
        self._waiting.pop(connection, None)

    def waits(self, connection: "GuardedProtocol") -> None:
        """It has no request under way."""
        self._waiting[connection] = None

    def works(self, connection: "GuardedProtocol") -> None:
        """A request's headers are complete."""
        self._waiting.pop(connection, None)

    def _make_room(self) -> bool:
        if not self._waiting:
            return False
        oldest, _ = self._waiting.popitem(last=False)
        oldest.cut("displaced")
        return True

    def _exempt(self, client: str) -> bool:
        if not self.limits.trusted or not client:
            return not client
        address = ip_address(client)
        return any(address in network for network in self.limits.trusted if network.version == address.version)


class _StoppedError(Exception):
    """Ends the parser's work on data of a connection that was refused."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. States: a head is awaited; a body is; an answer is; the client still sends after its answer."""

    def __init__(self, *given: Any, connected: Connected, admits: Callable[[asyncio.Transport], bool] | None = None, **named: Any) -> None:
        super().__init__(*given, **named)
        self._connected = connected
        self._limits = connected.limits
        self._admits = admits
        self._address = ""
        self._counted = False
        self._deadline: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of the message that is parsed, as its parts come
        self._unparsed = 0  # bytes since the parser last said anything
        self._in_head = True
        self._in_body = False
        self._after_answer = 0  # bytes of a body whose answer was sent
        self._spoke = False

    # ---- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, or answer 503 and close."""
        super().connection_made(transport)
        self._address = plain_address(self.client[0]) if self.client else ""
        if self.client:
            self.client = (self._address, self.client[1])
        if self._admits is not None and not self._admits(transport):
            self.cut("identity")
            return
        reason = self._connected.admit(self, self._address)
        if reason:
            self._refuse(503, "Too many connections.", reason)
            return
        self._counted = True
        _end_when_unacknowledged(transport, self._limits.stall_seconds)
        self._until(self._limits.header_seconds, self._no_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it. The kernel may have seen first that its peer takes nothing any more."""
        if isinstance(exc, TimeoutError):
            self._connected.refused("stall")
        self._forget()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and look whether a head came with it."""
        if self.transport.is_closing():
            return
        self._spoke = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._unparsed = 0 if self._spoke else self._unparsed + len(data)
        if self._unparsed > self._limits.header_bytes and not self._in_body:
            self._refuse(431, "The request's headers are too large.", "header_bytes")
        elif self._in_head and self._idle and self._deadline is None:
            self._until(self._limits.header_seconds, self._no_head)

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP; also where a callback stopped the parser after it had refused the request itself."""
        if not self.transport.is_closing():
            self._connected.refused("no_http")
            super().send_400_response(msg)
            self._watch_writes()

    def timeout_keep_alive_handler(self) -> None:
        """Idle for long enough."""
        if not self.transport.is_closing():
            self._connected.refused("idle")
        super().timeout_keep_alive_handler()
        self._watch_writes()

    # ---- the parser

    def on_message_begin(self) -> None:
        """A request begins."""
        self._spoke, self._in_head, self._head_bytes = True, True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Part of the path."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer behind a body."""
        self._count(len(name) + len(value) + 4)
        if len(self.headers) >= _MOST_HEADERS:
            self._stop(431, "The request has too many headers.", "header_count")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request is handed to the application."""
        self._spoke = True
        if self.transport.is_closing():
            return
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._stop(400, "Too many requests are sent without waiting for answers.", "pipelined")
        self._after_answer = 0
        self._in_head, self._in_body = False, True
        self._connected.works(self)
        super().on_headers_complete()
        self._until(self._limits.body_seconds, self._no_body)

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        self._spoke = True
        if self.transport.is_closing():
            return
        if self.cycle.response_complete:
            self._after_answer += len(body)
            if self._after_answer > _LINGER_BYTES:
                self.cut("body_bytes")
                raise _StoppedError
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of the request is there."""
        self._spoke = True
        self._in_head, self._in_body, self._head_bytes = True, False, 0
        self._until(None)
        if not self.transport.is_closing() and self.cycle is not None:
            super().on_message_complete()

    # ---- the answer

    def on_response_complete(self) -> None:
        """An answer was written, not yet read."""
        super().on_response_complete()
        self._watch_writes()
        if self.transport.is_closing():
            return
        if self._in_body:
            self._until(_LINGER_SECONDS, self._close)
        if self._idle:
            self._connected.waits(self)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._watch_writes()

    def resume_writing(self) -> None:
        """It has read most of what was unsent."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        self._watch_writes()

    # ---- the bounds

    def cut(self, reason: str) -> None:
        """End the connection now."""
        self._connected.refused(reason)
        self.transport.abort()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def _count(self, size: int) -> None:
        self._spoke = True
        self._head_bytes += size
        if self._head_bytes > self._limits.header_bytes:
            self._stop(431, "The request's headers are too large.", "header_bytes")

    def _until(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None and then is not None:
            self._deadline = self.loop.call_later(seconds, then)

    def _no_head(self) -> None:
        self._deadline = None
        if self._idle:
            self._refuse(408, "The request's headers did not arrive in time.", "header_seconds")

    def _no_body(self) -> None:
        if self._in_body:  # the application says 408 at this time where it reads the body; what is left then is cut
            self._until(_LINGER_SECONDS, lambda: self.cut("body_seconds"))

    def _close(self) -> None:
        self._connected.refused("body_seconds")
        self.transport.close()
        self._watch_writes()

    def _refuse(self, status: int, message: str, reason: str) -> None:
        """Answer where no answer is under way, and close."""
        if self.transport.is_closing():
            return
        self._connected.refused(reason)
        if not self._idle:
            self.transport.abort()
            return
        body = message.encode()
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._watch_writes()

    def _stop(self, status: int, message: str, reason: str) -> NoReturn:
        """Refuse from within the parser, which looks at nothing more of what came."""
        self._refuse(status, message, reason)
        raise _StoppedError

    def _watch_writes(self) -> None:
        """While something is unsent, see that the client takes some of it."""
        if self._writing is None and (unsent := self._unsent()):
            self._writing = self.loop.call_later(self._limits.stall_seconds, self._look_at_writes, unsent)

    def _look_at_writes(self, before: int) -> None:
        self._writing = None
        unsent = self._unsent()
        if not unsent:
            return
        if before - unsent < _LEAST_READ_PER_SECOND * self._limits.stall_seconds and not self._below(unsent):
            self.cut("stall")
            return
        self._watch_writes()

    def _below(self, unsent: int) -> bool:
        """Little enough, and an answer under way: a stream that is read as it comes."""
        return not self._idle and not self.flow.write_paused and unsent < _LEAST_READ_PER_SECOND

    def _unsent(self) -> int:
        size: int = self.transport.get_write_buffer_size()
        return size

    def _forget(self) -> None:
        self._until(None)
        if self._counted:
            self._counted = False
            self._connected.left(self, self._address)


_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


def _end_when_unacknowledged(transport: asyncio.Transport, seconds: float) -> None:
    """The kernel ends connections whose peer takes or acknowledges nothing for so long, also where we have nothing left to write. It keeps
    little for slow ones: what it keeps counts as the pod's memory.
    """
    peer = transport.get_extra_info("socket")
    if peer is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
