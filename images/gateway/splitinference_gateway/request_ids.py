"""One ID for each request of a client: in the answer's header, in each line of the log, and in the META of each step, to the last segment.

It is the trace ID of W3C trace context: that of the client's `traceparent`, else of the trace that this gateway begins, else a random one.
Segments hand `traceparent` on as it came, so nothing but the gateway needs to know of IDs. A client's own X-Request-Id is logged beside it.
"""

import logging
import re
import secrets
import time
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_PATHS = ("/v1/", "/v2/models/", "/tokenize", "/detokenize")
_TRACEPARENT = re.compile(rb"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$")
_THEIRS = re.compile(rb"^[\x21-\x7e]{1,128}$")
_CURRENT: ContextVar[str] = ContextVar("request_id", default="")
_log = logging.getLogger(__name__)


def current() -> str:
    """The ID of the request that this runs for; empty where it runs for none."""
    return _CURRENT.get()


def traceparent() -> str:
    """For META of a step without a span of its own: the ID, as a trace that is not sampled. The same for all steps of a request."""
    request = _CURRENT.get()
    return f"00-{request}-{request[:16]}-00" if request else ""


class RequestIds:
    """Gives each request its ID, and logs a line when it has ended. `traced`: an OpenTelemetry span is around it."""

    def __init__(self, app: ASGIApp, traced: bool = False) -> None:
        self._app, self._traced = app, traced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith(_PATHS):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        theirs = given.decode() if _THEIRS.match(given) else ""
        request = self._id(headers.get(b"traceparent", b""))
        token = _CURRENT.set(request)
        began, status = time.monotonic(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (HEADER.lower().encode(), request.encode())]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            facts = {
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "seconds": round(time.monotonic() - began, 4),
            }
            _log.info("%(method)s %(path)r: %(status)s after %(seconds)s s", facts, extra={**facts, "client_request_id": theirs})
            _CURRENT.reset(token)

    def _id(self, given: bytes) -> str:
        if self._traced:
            from opentelemetry.trace import format_trace_id, get_current_span

            context = get_current_span().get_span_context()
            if context.is_valid:
                return format_trace_id(context.trace_id)
        found = _TRACEPARENT.match(given)
        if found and set(found[1]) != {ord("0")} and set(found[2]) != {ord("0")}:
            return found[1].decode()
        return secrets.token_hex(16)
