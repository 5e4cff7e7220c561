"""Serve the page until told to stop: on the loopback with a token of its own, or in a cluster with the cluster's tokens."""

import asyncio
import logging
import secrets
import signal
import socket
import ssl
import sys
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from splitinference.ui.access import LOOPBACK, Access, Guard, LocalAccess
from splitinference.ui.connections import Connections
from splitinference.ui.origins.feed import Feed
from splitinference.ui.origins.sources import Source
from splitinference.ui.questions.what_if import Bounds, WhatIf
from splitinference.ui.server import Page, application

log = logging.getLogger(__name__)

LOCAL = "127.0.0.1"
EVERYWHERE = ""
READ_SECONDS = 2.0


@dataclass(frozen=True)
class Listen:
    """Where the page listens. `tls`: folder with tls.crt and tls.key; `hosts`: further names of this server; `health_port`: 0 is none."""

    address: str = LOCAL
    port: int = 0
    tls: Path | None = None
    hosts: frozenset[str] = frozenset()
    health_port: int = 0


@dataclass(frozen=True)
class Ready:
    """What is told once the page can be reached."""

    port: int
    url: str


async def serve(
    source: Source, listen: Listen, access: Access | None = None, *, what_if: Bounds | None = None, told: Callable[[Ready], None]
) -> None:
    """Serve until SIGTERM or SIGINT. `access` None: a random token in the URL's fragment, which no browser sends to anybody.

    Raises OSError where the port cannot be had.
    """
    token = secrets.token_urlsafe(32)
    feed = Feed(source, READ_SECONDS)
    asks = WhatIf(source, what_if) if what_if is not None else None
    site = _socket(listen)
    port = site.getsockname()[1]
    # With a port: another server on the same machine is another origin.
    names = frozenset(f"{name}:{port}" for name in LOOPBACK) if access is None else LOOPBACK
    page = Page(feed, access or LocalAccess(token), Guard(names | listen.hosts), asks, signs_in=access is not None)
    bounded = Connections()
    runner = web.AppRunner(application(page, bounded), access_log=None, shutdown_timeout=1.0, keepalive_timeout=30.0)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    tasks = [asyncio.create_task(feed.run())]
    bounded_health = Connections()
    health = _health(listen, bounded_health)
    try:
        await runner.setup()
        tasks.append(asyncio.create_task(bounded.watch(runner)))
        await web.SockSite(runner, site, ssl_context=_tls(listen.tls)).start()
        if health is not None:
            await health.setup()
            tasks.append(asyncio.create_task(bounded_health.watch(health)))
            await web.TCPSite(health, None, listen.health_port).start()
        scheme = "http" if listen.tls is None else "https"
        told(Ready(port, f"{scheme}://{LOCAL}:{port}/" + ("" if access is not None else f"#token={token}")))
        await stopped.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
        if health is not None:
            await health.cleanup()
        if asks is not None:
            asks.close()
        source.close()


def _socket(listen: Listen) -> socket.socket:
    """On `EVERYWHERE`: of both families where the machine has both."""
    if listen.address == EVERYWHERE:
        both = socket.has_dualstack_ipv6()
        family, address = (socket.AF_INET6, "::") if both else (socket.AF_INET, "0.0.0.0")
        return socket.create_server((address, listen.port), family=family, backlog=64, dualstack_ipv6=both)
    return socket.create_server((listen.address, listen.port), backlog=64)


def _tls(folder: Path | None) -> ssl.SSLContext | None:
    if folder is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


def _health(listen: Listen, connections: Connections) -> web.AppRunner | None:
    """Whether the process answers, for the kubelet: a port of its own, as the page's may be on the loopback alone."""
    if not listen.health_port:
        return None
    app = web.Application(middlewares=[connections.middleware])

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    app.router.add_get("/healthz", healthy)
    return web.AppRunner(app, access_log=None)


def tell_and_open(ready: Ready, *, browse: bool) -> None:
    """Print the address, and open it where a browser is wanted and there is one."""
    sys.stdout.write(f"The page is at {ready.url}\nPress Ctrl-C to stop.\n")
    sys.stdout.flush()
    if browse:
        with suppress(webbrowser.Error):
            webbrowser.open(ready.url)
