"""The page's server for tests: a source that does as it is told, and the real server over it on the loopback."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from splitinference.controller.ports import UnavailableError
from splitinference.ui.access import Access, Guard, LocalAccess
from splitinference.ui.connections import Bounds as Patience
from splitinference.ui.connections import Connections
from splitinference.ui.origins.feed import Feed
from splitinference.ui.origins.sources import Objects, Source, document_of
from splitinference.ui.page.document import Document
from splitinference.ui.questions.asked import Basis, UnanswerableError
from splitinference.ui.questions.what_if import Bounds as Limits
from splitinference.ui.questions.what_if import WhatIf
from splitinference.ui.server import Bounds, Page, application
from tests.controller.pretend import SETTINGS
from tests.controller.world import World

TOKEN = "a-token-for-tests"
HOST = "127.0.0.1"
PATIENT = Patience()


def document_from(world: World, **more: Any) -> Document:
    """What the page shows of a pretend cluster."""
    return document_of(objects_from(world, **more), SETTINGS)[0]


def objects_from(world: World, **more: Any) -> Objects:
    things = [{"kind": kind, **thing} for (kind, _, _), thing in world.objects.items()]
    return Objects(
        now=world.now,
        resources=[t for t in things if t["kind"] == "SplitInference"],
        nodes=list(world.nodes.values()),
        pods=[t for t in things if t["kind"] == "Pod"],
        **more,
    )


@dataclass
class Told:
    """A source that gives `document`, or fails with `error`."""

    document: Document = field(default_factory=lambda: Document(read=datetime(2026, 1, 1, tzinfo=UTC)))
    error: Exception | None = None
    bases: dict[str, Basis] = field(default_factory=dict)
    reads: int = 0

    def read(self) -> Document:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.document

    def basis(self, key: str) -> Basis:
        if self.error is not None:
            raise UnavailableError(str(self.error))
        if key not in self.bases:
            raise UnanswerableError(f"There is no SplitInference {key}.")
        return self.bases[key]

    def close(self) -> None:
        """Nothing is held."""


def a_page(source: Source, port: int, access: Access | None = None, **more: Any) -> Page:
    asks = WhatIf(source, Limits(seconds=5)) if more.pop("what_if", False) else None
    hosts = frozenset({f"{HOST}:{port}"})
    return Page(Feed(source, 0.1), access or LocalAccess(TOKEN), Guard(hosts), asks, signs_in=access is not None, **more)


@contextmanager
def served(source: Source, access: Access | None = None, *, port: int = 0, patience: Patience = PATIENT, **more: Any) -> Iterator[str]:
    """The page on a free port, in a thread of its own, until the block ends; its address."""
    started = threading.Event()
    found: dict[str, Any] = {}

    async def run() -> None:
        stop = found["stop"] = asyncio.Event()
        found["loop"] = asyncio.get_running_loop()
        listener = found["socket"]
        connections = Connections(patience)
        page = a_page(source, listener.getsockname()[1], access, **more)
        runner = web.AppRunner(application(page, connections), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        watching = asyncio.create_task(connections.watch(runner))
        await web.SockSite(runner, listener).start()
        reading = asyncio.create_task(page.feed.run())
        started.set()
        await stop.wait()
        reading.cancel()
        watching.cancel()
        await asyncio.gather(reading, watching, return_exceptions=True)
        await runner.cleanup()
        if page.what_if is not None:
            page.what_if.close()

    import socket

    found["socket"] = socket.create_server((HOST, port))
    found["port"] = found["socket"].getsockname()[1]
    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield f"http://{HOST}:{found['port']}/"
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(30)
        assert not thread.is_alive()


__all__ = ["Bounds", "Told", "a_page", "document_from", "objects_from", "served"]
