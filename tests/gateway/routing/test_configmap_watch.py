"""The route's ConfigMap is followed through all that an API server does to a watch.

The server here speaks the API's HTTP and plays what a real one does only now and then: it ends watches, forgets versions, goes away.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from splitinference_gateway.routing.configmap_watch import ApiServer, watch_configmap
from splitinference_gateway.routing.route_source import RouteReader, poll_file
from splitinference_protocol.route import RouteDocument

pytestmark = pytest.mark.anyio

NAME = "chat-route"


def route(revision: str) -> str:
    return json.dumps({"v": 1, "revision": revision, "pipelines": [[{"segment": "a", "model": "m"}]], "drainSeconds": 1})


@dataclass
class ToyApiServer:
    """One namespace's ConfigMaps. Watches get each change as an event; `oldest` is the oldest version it still knows."""

    token_file: Path
    version: int = 100
    oldest: int = 0
    item: dict[str, Any] | None = None
    refuse: int | None = None
    lists: int = 0
    watches: list["asyncio.Queue[dict[str, Any] | None]"] = field(default_factory=list)
    selectors: set[str] = field(default_factory=set)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert request.path == "/api/v1/namespaces/ns/configmaps"
        self.selectors.add(request.query["fieldSelector"])
        if request.headers.get("Authorization") != f"Bearer {self.token_file.read_text()}":
            return web.json_response({"code": 401}, status=401)
        if self.refuse:
            return web.json_response({"code": self.refuse}, status=self.refuse)
        if request.query.get("watch") != "true":
            self.lists += 1
            items = [self.item] if self.item else []
            return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})
        response = web.StreamResponse()
        await response.prepare(request)
        if int(request.query["resourceVersion"]) < self.oldest:
            gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
            await response.write(json.dumps(gone).encode() + b"\n")
            return response
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.watches.append(events)
        while (event := await events.get()) is not None:
            data = json.dumps(event).encode() + b"\n"
            await response.write(data[:20])
            await response.write(data[20:])
        return response

    def write(self, text: str | None, kind: str = "MODIFIED", padding: int = 0) -> None:
        self.version += 1
        data = {} if text is None else {"route.json": text}
        metadata = {"name": NAME, "resourceVersion": str(self.version), "annotations": {"padding": "x" * padding}}
        self.item = {"metadata": metadata, "data": data}
        for watch in self.watches:
            watch.put_nowait({"type": kind, "object": self.item})

    def send(self, event: dict[str, Any]) -> None:
        for watch in self.watches:
            watch.put_nowait(event)

    def end_watches(self) -> None:
        for watch in self.watches:
            watch.put_nowait(None)
        self.watches.clear()

    async def watched(self) -> None:
        async with asyncio.timeout(20):
            while not self.watches:
                await asyncio.sleep(0.005)


@dataclass
class Followed:
    """What came out of the watch."""

    documents: list[RouteDocument] = field(default_factory=list)
    unreadable: int = 0

    def broken(self) -> None:
        self.unreadable += 1

    async def revision(self, wanted: str, seconds: float = 20.0) -> None:
        """Until this revision is the last."""
        async with asyncio.timeout(seconds):
            while not self.documents or self.documents[-1].revision != wanted:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def following(folder: Path, before: str | None = None) -> AsyncIterator[tuple[ToyApiServer, Followed]]:
    token = folder / "token"
    token.write_text("first")
    server = ToyApiServer(token)
    if before is not None:
        server.write(before)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    followed = Followed()
    reader = RouteReader(followed.documents.append, followed.broken)
    task = asyncio.create_task(watch_configmap(ApiServer(f"http://127.0.0.1:{port}", token), "ns", NAME, reader))
    try:
        yield server, followed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.end_watches()
        await runner.cleanup()


async def test_a_change_acts_when_it_is_written(tmp_path: Path) -> None:
    async with following(tmp_path, route("r1")) as (server, followed):
        await followed.revision("r1")
        await server.watched()
        lists = server.lists
        server.write(route("r2"))
        await followed.revision("r2")
        assert server.lists == lists, "the watch told it, and nobody had to ask again"
        assert server.selectors == {f"metadata.name={NAME}"}


async def test_an_object_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    async with following(tmp_path) as (server, followed):
        await server.watched()
        server.write(route("r1"), "ADDED")
        await followed.revision("r1")


async def test_a_watch_that_the_server_ends_goes_on_where_it_was(tmp_path: Path) -> None:
    async with following(tmp_path, route("r1")) as (server, followed):
        for revision in ("r2", "r3"):
            await server.watched()
            server.end_watches()
            await server.watched()
            server.write(route(revision))
            await followed.revision(revision)
        assert server.lists == 1


async def test_a_forgotten_version_is_read_anew(tmp_path: Path) -> None:
    async with following(tmp_path, route("r1")) as (server, followed):
        await server.watched()
        watches, server.watches = server.watches, []
        server.write(route("r2"))  # while nobody watches
        server.oldest = server.version
        watches[0].put_nowait(None)
        await followed.revision("r2")
        assert server.lists == 2


async def test_refusals_are_outlived_and_a_replaced_token_is_used(tmp_path: Path) -> None:
    async with following(tmp_path, route("r1")) as (server, followed):
        await server.watched()
        server.refuse = 500
        server.end_watches()
        await asyncio.sleep(0.3)
        server.token_file.write_text("second")
        server.write(route("r2"))
        server.refuse = None
        await followed.revision("r2")


async def test_a_deleted_object_leaves_the_route_as_it_is(tmp_path: Path) -> None:
    async with following(tmp_path, route("r1")) as (server, followed):
        await server.watched()
        server.write(route("r1"), "DELETED")
        server.send({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "200"}}})
        server.write(route("r2"), "ADDED")
        await followed.revision("r2")
        assert [document.revision for document in followed.documents] == ["r1", "r2"]


async def test_a_document_that_is_no_route_is_counted_and_skipped(tmp_path: Path) -> None:
    async with following(tmp_path, route("r1")) as (server, followed):
        await server.watched()
        server.write("{")
        server.write(None)
        server.write(route("r2"))
        await followed.revision("r2")
        assert followed.unreadable == 1


async def test_an_object_larger_than_any_read_buffer_is_read(tmp_path: Path) -> None:
    async with following(tmp_path, route("r1")) as (server, followed):
        await server.watched()
        server.write(route("r2"), padding=900_000)
        await followed.revision("r2")


async def test_lines_that_are_no_events_start_the_watch_over(tmp_path: Path) -> None:
    async with following(tmp_path, route("r1")) as (server, followed):
        await server.watched()
        server.send({"unexpected": True})
        server.watches.clear()
        await server.watched()
        server.write(route("r2"))
        await followed.revision("r2")


async def test_a_file_is_followed_outside_a_cluster(tmp_path: Path) -> None:
    file, followed = tmp_path / "route.json", Followed()
    task = asyncio.create_task(poll_file(file, RouteReader(followed.documents.append, followed.broken)))
    await asyncio.sleep(0.05)
    file.write_text(route("r1"))
    await followed.revision("r1")
    file.write_text(route("r2"))
    await followed.revision("r2")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [document.revision for document in followed.documents] == ["r1", "r2"]
