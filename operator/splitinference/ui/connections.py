"""What a connection to the page may cost before it has asked for anything: time and number. aiohttp itself has no limit for headers."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Bounds:
    """`header_seconds`: from connecting to the end of the first request's headers; later requests have the keep-alive time.
    `waiting`: connections that have not asked yet; with one more the oldest is closed. `look_seconds`: how often this is looked at."""

    header_seconds: float = 10.0
    waiting: int = 100
    look_seconds: float = 1.0


class Connections:
    """Closes connections of an `AppRunner` that do not ask in time. Give `middleware` to its application as the outermost one."""

    def __init__(self, bounds: Bounds = Bounds()) -> None:
        self._bounds = bounds
        self._asked: set[Any] = set()
        self._since: dict[Any, float] = {}

    @property
    def middleware(self) -> Any:
        """Notes which connections have asked."""

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._asked.add(request.protocol)
            return await handler(request)

        return middleware

    async def watch(self, runner: web.AppRunner) -> None:
        """Until cancelled. The runner has been set up."""
        while True:
            self.look(runner.server.connections if runner.server is not None else [], time.monotonic())
            await asyncio.sleep(self._bounds.look_seconds)

    def look(self, connections: list[Any], now: float) -> None:
        """Close those that have had their time, and the oldest ones above the number. `now`: seconds of a steady clock."""
        open_now = set(connections)
        self._asked &= open_now
        self._since = {connection: since for connection, since in self._since.items() if connection in open_now}
        waiting = [connection for connection in connections if connection not in self._asked]
        for connection in waiting:
            self._since.setdefault(connection, now)
        waiting.sort(key=lambda connection: self._since[connection])
        too_many = len(waiting) - self._bounds.waiting
        for index, connection in enumerate(waiting):
            if index < too_many or now - self._since[connection] >= self._bounds.header_seconds:
                connection.force_close()
