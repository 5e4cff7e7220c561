"""Where the gateway listens: sockets of every address family that there is, and small HTTP servers beside the clients'.

Certificates are exchanged by listening anew on the same socket: connections that are open stay, new ones meet the new certificate.
"""

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from splitinference_gateway.server.guard import Connected, GuardedProtocol
from splitinference_gateway.settings import Settings
from splitinference_protocol.addresses import ANY_IPV4, ANY_IPV6

_BACKLOG = 2048
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
_HANDSHAKE_SECONDS = 5.0


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets for `host`, or for all addresses of IPv4 and IPv6, whichever the machine has. Port 0: a free one, the same for both.

    Raises:
        OSError: the port is taken, or there is no such address.
    """
    if host:
        return [_bound(socket.AF_INET6 if ":" in host else socket.AF_INET, host, port)]
    made: list[socket.socket] = []
    missing: OSError | None = None
    for family, any_address in ((socket.AF_INET, ANY_IPV4), (socket.AF_INET6, ANY_IPV6)):
        try:
            made.append(_bound(family, any_address, port))
            port = port or made[0].getsockname()[1]
        except OSError as error:
            if error.errno not in _NO_SUCH_FAMILY:
                for bound in made:
                    bound.close()
                raise
            missing = error
    if not made:
        raise missing or OSError("no address to listen on")
    return made


@dataclass(frozen=True)
class Sockets:
    """What the HTTP listeners listen on."""

    clients: Sequence[socket.socket]
    internal: Sequence[socket.socket]
    metrics: Sequence[socket.socket]

    @classmethod
    def bound(cls, settings: Settings) -> "Sockets":
        """All of them, or none.

        Raises:
            OSError: a port is taken, or there is no such address.
        """
        made: list[list[socket.socket]] = []
        try:
            for port in (settings.port, settings.internal_port, settings.metrics_port):
                made.append(bind(settings.host, port))
        except OSError:
            for own in (own for several in made for own in several):
                own.close()
            raise
        return cls(*made)


def _bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # IPv4 has a socket of its own: clients' addresses then look like what they are
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"cannot listen on {host} port {port}: {error.strerror}") from error
    made.setblocking(False)
    return made


def configured(app: ASGIApp, connected: Connected, **more: Any) -> uvicorn.Config:
    """uvicorn with the guarded protocol, and nothing that it would believe from headers unless `more` says so."""
    given = {"proxy_headers": False, "forwarded_allow_ips": [], **more}
    config = uvicorn.Config(app, access_log=False, log_config=None, server_header=False, ws="none", backlog=_BACKLOG, **given)
    config.load()
    config.http_protocol_class = partial(GuardedProtocol, connected=connected)  # type: ignore[assignment]
    return config


@dataclass(eq=False)
class Listener:
    """An HTTP server beside the clients': one application, no lifespan. `admits` looks at a connection before its first request."""

    app: ASGIApp
    sockets: Sequence[socket.socket]
    connected: Connected
    context: ssl.SSLContext | None = None
    admits: Callable[[asyncio.Transport], bool] | None = None
    _servers: list[asyncio.Server] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._config = configured(self.app, self.connected, lifespan="off")
        self._state = ServerState()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen."""
        self._servers = await self._listening()

    async def renew(self, context: ssl.SSLContext) -> None:
        """New connections meet this certificate and these authorities; the others go on."""
        old, self.context = self._servers, context
        self._servers = await self._listening()
        for server in old:
            server.close()

    async def stop(self) -> None:
        """Close at once: nobody waits for long for an answer here."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._state.tasks, return_exceptions=True)
        for own in self.sockets:
            own.close()

    async def _listening(self) -> list[asyncio.Server]:
        loop = asyncio.get_running_loop()
        wait = None if self.context is None else _HANDSHAKE_SECONDS
        return [
            await loop.create_server(self._protocol, sock=own.dup(), backlog=_BACKLOG, ssl=self.context, ssl_handshake_timeout=wait)
            for own in self.sockets
        ]

    def _protocol(self) -> asyncio.Protocol:
        return GuardedProtocol(config=self._config, server_state=self._state, app_state={}, connected=self.connected, admits=self.admits)
