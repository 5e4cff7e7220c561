"""How an answer goes out: as one JSON body, or as server-sent events; both notice when the client is gone."""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from splitinference_gateway.answers.generation import Generation, Piece
from splitinference_gateway.errors import ApiError

_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_NAMED = 16
DONE = b"data: [DONE]\n\n"
CLIENT_GONE = 499  # not an HTTP status that is ever sent: how access logs name it
_KEEP_ALIVE_SECONDS = 15.0
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """What all objects of one answer begin with."""

    prefix: str
    model: str
    usage_follows: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: uuid.uuid4().hex)

    def fields(self, kind: str) -> dict[str, object]:
        """id, object, created, model."""
        return {"id": f"{self.prefix}-{self.number}", "object": kind, "created": self.created, "model": self.model}


def usage(prompt: int, generated: int) -> Mapping[str, int]:
    """OpenAI's usage object."""
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


class Format(Protocol):
    """How one endpoint writes pieces."""

    def opening(self) -> Sequence[Mapping[str, object]]:
        """Events before the first piece."""

    def event(self, piece: Piece) -> Sequence[Mapping[str, object]]:
        """Events of one piece."""

    def usage_event(self, generated: int) -> Mapping[str, object]:
        """The event with the usage."""

    def whole(self, pieces: Sequence[Piece], generated: int) -> Mapping[str, object]:
        """The body of an answer in one piece."""

    def failed(self, error: ApiError) -> Mapping[str, object]:
        """The event of an error in the middle of a stream."""

    @property
    def done(self) -> bytes:
        """What a stream ends with."""


@dataclass(frozen=True)
class Reply:
    """The answer to one request, an ASGI application. `ended` is told the status, `CLIENT_GONE` when nobody waits any more."""

    generation: Generation
    format: Format
    stream: bool
    with_usage: bool
    ended: Callable[[int], None]
    headers: Mapping[str, str] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run until the answer is out, or the client is gone."""
        answering = asyncio.ensure_future(self._stream(send) if self.stream else self._collect(scope, receive, send))
        leaving = asyncio.ensure_future(gone(receive))
        status = CLIENT_GONE
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                status = answering.result()
        except OSError:
            status = CLIENT_GONE
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            self.generation.abandon()
            self.ended(status)

    async def _collect(self, scope: Scope, receive: Receive, send: Send) -> int:
        pieces: list[Piece] = []
        try:
            async with aclosing(self.generation.pieces()) as source:
                async for piece in source:
                    pieces.append(piece)
        except Exception as error:  # noqa: BLE001 - becomes the answer
            problem = told(error)
            await error_response(problem)(scope, receive, send)
            return problem.status
        await JSONResponse(self.format.whole(pieces, _generated(pieces)), headers=dict(self.headers))(scope, receive, send)
        return 200

    async def _stream(self, send: Send) -> int:
        """The answer's head waits for the first piece: until then an error still has a status of its own."""
        events = _Events(send, self.headers)
        generated: dict[int, int] = {}
        try:
            async with aclosing(self.generation.pieces()) as source:
                async for piece in source:
                    if not events.started:
                        await events.start()
                        await events.send(*self.format.opening())
                    generated[piece.index] = piece.generated
                    await events.send(*self.format.event(piece))
            if self.with_usage:
                await events.send(self.format.usage_event(sum(generated.values())))
            await events.end(self.format.done)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - becomes the answer
            problem = told(error)
            return await events.fail(problem, self.format.failed(problem))
        finally:
            events.stop()
        return 200


class _Events:
    """A stream of server-sent events. While nothing is said, comments keep the connection from looking dead."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = [*_STREAM_HEADERS, *((name.lower().encode(), value.encode("latin-1")) for name, value in headers.items())]
        self._lock = asyncio.Lock()
        self._last = 0.0
        self._keeping: asyncio.Task[None] | None = None
        self.started = False

    async def start(self) -> None:
        """Send the head: from here on the status is 200."""
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        self._keeping = asyncio.create_task(self._keep_alive())

    async def send(self, *events: Mapping[str, object]) -> None:
        """Send events in one write."""
        if events:
            await self._write(b"".join(_data(event) for event in events))

    async def fail(self, error: ApiError, event: Mapping[str, object]) -> int:
        """Before the start an ordinary error, afterwards an event in its place. No [DONE] follows."""
        if self.started:
            await self.end(_data(event))
        else:
            body = json.dumps(error.body).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
            encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": error.status, "headers": encoded})
            await self._send({"type": "http.response.body", "body": body})
        return error.status

    async def end(self, last: bytes) -> None:
        """Say the last thing."""
        self.stop()
        async with self._lock:
            await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def stop(self) -> None:
        """No more comments."""
        if self._keeping is not None:
            self._keeping.cancel()

    async def _write(self, data: bytes) -> None:
        async with self._lock:
            self._last = time.monotonic()
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_ALIVE_SECONDS)
            if time.monotonic() - self._last >= _KEEP_ALIVE_SECONDS:
                await self._write(b": still working\n\n")


def told(error: Exception) -> ApiError:
    """The error as the client is told; what we did not foresee goes to the log, and to the client as 500."""
    if isinstance(error, ApiError):
        # Its frames hold the request's body, and who handles it holds the error: a circle, which would stay until the next collection.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        return error
    _log.error("a request failed unexpectedly", exc_info=error)
    return ApiError(500, "The gateway had an unexpected error.", kind="server_error", code="internal")


def error_response(error: ApiError) -> JSONResponse:
    """The error as an HTTP response."""
    return JSONResponse(error.body, error.status, dict(error.headers))


def warning(ignored: Sequence[str]) -> dict[str, str]:
    """The header that names fields which were left out. What is no plain name is not repeated."""
    if not ignored:
        return {}
    named = [name for name in ignored if _PLAIN.fullmatch(name)][:_MOST_NAMED]
    others = len(ignored) - len(named)
    said = ", ".join([*named, *([f"{others} more"] if others else [])])
    return {"Warning": f'299 splitinference "ignored fields: {said}"'}


async def gone(receive: Callable[[], Awaitable[Message]]) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _generated(pieces: Sequence[Piece]) -> int:
    return sum({piece.index: piece.generated for piece in pieces}.values())


def _data(event: Mapping[str, object]) -> bytes:
    """Events of responses have a type, which is also the event's name."""
    name = f"event: {event['type']}\n".encode() if "sequence_number" in event else b""
    return name + b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
