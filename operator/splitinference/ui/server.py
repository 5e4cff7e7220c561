"""The page over HTTP: files, a stream of events, history and what-if. Nothing here changes a cluster."""

import asyncio
import hashlib
import json
import mimetypes
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any

from aiohttp import web

from splitinference.controller.ports import RefusedError, UnavailableError
from splitinference.ui.access import Access, ForbiddenError, Guard, UnauthenticatedError, bearer
from splitinference.ui.connections import Connections
from splitinference.ui.origins.feed import Feed, Sent, message
from splitinference.ui.page.document import Scope
from splitinference.ui.questions.asked import UnanswerableError, read_question
from splitinference.ui.questions.what_if import BusyError, WhatIf

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; "
        "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
MOST_BODY = 16 * 1024
HEARTBEAT_SECONDS = 10.0
WRITE_SECONDS = 20.0
"""A browser that has not taken a message after so long is let go. It comes again by itself."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Bounds:
    """Streams at once: of all, and of one token."""

    streams: int = 50
    of_one: int = 8


@dataclass(frozen=True)
class Page:
    """What the server serves. `signs_in`: people give a token themselves; `what_if` None: the form is off."""

    feed: Feed
    access: Access
    guard: Guard
    what_if: WhatIf | None = None
    signs_in: bool = False
    bounds: Bounds = Bounds()
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    write_seconds: float = WRITE_SECONDS
    body_seconds: float = 10.0


def application(page: Page, connections: Connections | None = None) -> web.Application:
    """The server's routes. `connections`: who bounds them."""
    outer = [connections.middleware] if connections is not None else []
    app = web.Application(middlewares=[*outer, _guarded(page.guard)], client_max_size=MOST_BODY)
    api = _Api(page)
    files = _files()
    app.router.add_get("/", _file(files["index.html"]))
    for name, content in files.items():
        app.router.add_get(f"/static/{name}", _file(content))
    app.router.add_get("/api/about", api.about)
    app.router.add_get("/api/events", api.events)
    app.router.add_get("/api/history", api.history)
    app.router.add_post("/api/what-if", api.what_if)
    return app


def _guarded(guard: Guard) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if why := guard.why_not(request.headers):
            return _refusal(403, why)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            return _refusal(error.status, error.reason)
        except UnauthenticatedError as error:
            return _refusal(401, str(error))
        except ForbiddenError as error:
            return _refusal(403, str(error))
        except (UnanswerableError, RefusedError) as error:
            return _refusal(422, str(error))
        except UnavailableError as error:
            return _refusal(503, f"The API server cannot be asked: {error}")
        except BusyError as error:
            return _refusal(429, str(error))
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    return middleware


def _refusal(status: int, words: str) -> web.Response:
    return web.json_response({"error": words[:2000]}, status=status, headers=HEADERS)


@dataclass(frozen=True)
class _File:
    body: bytes
    kind: str
    tag: str


def _files() -> Mapping[str, _File]:
    """The page's own files, read once: no path of a request reaches the disk."""
    found = {}
    for entry in resources.files("splitinference.ui").joinpath("static").iterdir():
        body = entry.read_bytes()
        kind = mimetypes.guess_type(entry.name)[0] or "application/octet-stream"
        found[entry.name] = _File(body, "text/javascript" if kind.endswith("javascript") else kind, hashlib.sha256(body).hexdigest()[:16])
    return found


def _file(content: _File) -> Handler:
    async def serve(request: web.Request) -> web.Response:
        tag = f'"{content.tag}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"ETag": tag})
        charset = "utf-8" if content.kind.startswith("text/") else None
        return web.Response(body=content.body, content_type=content.kind, charset=charset, headers={"ETag": tag})

    return serve


class _Api:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._streams: Counter[str] = Counter()

    async def about(self, request: web.Request) -> web.Response:
        """What the page needs to begin; tells nothing of the cluster."""
        return web.json_response({"signIn": self._page.signs_in, "whatIf": self._page.what_if is not None})

    async def _scope(self, request: web.Request) -> Scope:
        document = self._page.feed.state.document
        return await self._page.access.scope(bearer(request.headers), {str(item["namespace"]) for item in document.resources.values()})

    async def history(self, request: web.Request) -> web.Response:
        """Figures and decisions of one resource."""
        scope, key = await self._scope(request), request.query.get("resource", "")
        _must_see(scope, key)
        return web.json_response(self._page.feed.history(key))

    async def what_if(self, request: web.Request) -> web.Response:
        """An answer of the planner. It shows figures of all nodes, so it is for who may list them."""
        scope = await self._scope(request)
        if self._page.what_if is None:
            return _refusal(404, "What-if is off here.")
        if request.content_type != "application/json":
            return _refusal(415, "Expected a question as application/json.")
        try:
            async with asyncio.timeout(self._page.body_seconds):
                text = await request.text()
            body = json.loads(text)
        except TimeoutError:
            return _refusal(408, f"The question did not arrive within {self._page.body_seconds:g} s.")
        except (ValueError, RecursionError):
            return _refusal(400, "The question is not JSON.")
        question = read_question(body)
        _must_see(scope, question.resource)
        if not scope.nodes:
            raise ForbiddenError("The answer shows figures of nodes, and you may not list nodes.")
        return web.json_response(await self._page.what_if.ask(question))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The state as server-sent events: first all of it, then what changes."""
        await self._scope(request)
        async with self._stream_of(bearer(request.headers)):
            response = web.StreamResponse(
                headers={**HEADERS, "Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
            )
            await response.prepare(request)
            with suppress(ConnectionError, TimeoutError):
                await self._send(request, response)
            return response

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        sent, page = Sent(), self._page
        while True:
            state = await page.feed.newer(sent.version, page.heartbeat_seconds)
            try:
                # Rights may have been taken away since.
                scope = await self._scope(request)
            except (UnauthenticatedError, ForbiddenError) as error:
                await self._write(response, {"error": str(error)}, "end")
                return
            except (UnavailableError, RefusedError) as error:
                await self._write(response, {"problem": f"Your rights cannot be checked: {error}"}, "beat")
                await asyncio.sleep(page.heartbeat_seconds)
                continue
            if state.version == sent.version:
                await self._write(response, {}, "beat")
                continue
            found, sent = message(sent, state, scope)
            await self._write(response, found, "state")

    async def _write(self, response: web.StreamResponse, content: Mapping[str, Any], event: str) -> None:
        data = json.dumps(content, separators=(",", ":"))
        async with asyncio.timeout(self._page.write_seconds):
            await response.write(f"event: {event}\ndata: {data}\n\n".encode())

    @asynccontextmanager
    async def _stream_of(self, token: str) -> AsyncIterator[None]:
        """A stream's place. 503 where all are taken."""
        who = hashlib.sha256(token.encode()).hexdigest()
        bounds = self._page.bounds
        if self._streams.total() >= bounds.streams or self._streams[who] >= bounds.of_one:
            raise web.HTTPServiceUnavailable(reason="Too many pages are open. Close one and load this page again.")
        self._streams[who] += 1
        try:
            yield
        finally:
            self._streams[who] -= 1
            if not self._streams[who]:
                del self._streams[who]


def _must_see(scope: Scope, key: str) -> None:
    if not scope.sees(key.partition("/")[0]):
        raise ForbiddenError("You may not see resources of this namespace.")
