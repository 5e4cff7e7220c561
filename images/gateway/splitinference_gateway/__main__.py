"""Start the gateway: settings from the environment, HTTP server, orderly end."""

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import sys
from types import FrameType

import uvicorn

from splitinference_gateway import logs
from splitinference_gateway.endpoints.app import build_app
from splitinference_gateway.gateway import Gateway
from splitinference_gateway.server.guard import Connected, HttpLimits
from splitinference_gateway.server.listeners import Sockets, configured
from splitinference_gateway.server.peers import server_context
from splitinference_gateway.settings import Settings, SettingsError
from splitinference_gateway.tokens.tokenizer import ModelFilesError

_MOST_FILES = 1 << 16
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


class Server(uvicorn.Server):
    """Ends in two steps: unready first, while endpoints are updated; then no new connections, and what runs may finish."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._leaving: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First SIGTERM: begin to leave. A second signal, or SIGINT, ends at once."""
        if sig == signal.SIGTERM and not self._gateway.leaving:
            self._gateway.leaving = True
            asyncio.get_running_loop().call_soon_threadsafe(self._leave)
        else:
            super().handle_exit(sig, frame)

    def _leave(self) -> None:
        self._leaving = asyncio.get_running_loop().create_task(self._leave_later())

    async def _leave_later(self) -> None:
        await asyncio.sleep(self._gateway.settings.lameduck_seconds)
        self.should_exit = True


def main() -> int:
    """Run until told to end. Returns the process' exit status."""
    try:
        logs.configure(os.environ)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not a line for each broken request
    try:
        settings = Settings.from_environment(os.environ)
        gateway = Gateway.build(settings)
        if settings.tls_folder is not None:
            server_context(settings.tls_folder)
        sockets = Sockets.bound(settings)
    except (SettingsError, ModelFilesError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    _allow_many_files()
    _give_memory_back()
    with contextlib.suppress(KeyboardInterrupt):
        Server(client_config(gateway, sockets), gateway).run(sockets=list(sockets.clients))
    return 0


def client_config(gateway: Gateway, sockets: Sockets) -> uvicorn.Config:
    """The clients' HTTP server. Forwarded addresses are believed of the proxies that the settings name, and of nobody else."""
    settings = gateway.settings
    limits = HttpLimits(
        header_bytes=settings.header_bytes,
        header_seconds=settings.header_seconds,
        body_seconds=settings.body_seconds,
        stall_seconds=settings.stall_seconds,
        connections=settings.max_connections,
        connections_per_client=settings.max_connections_per_client,
        trusted=settings.trusted_proxies,
    )
    connected = Connected(limits, lambda reason: gateway.metrics.refused_connections.labels("clients", reason).inc())
    return configured(
        build_app(gateway, sockets),
        connected,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=[str(network) for network in settings.trusted_proxies],
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=int(settings.shutdown_seconds),
    )


def _give_memory_back() -> None:
    """Large messages get memory of their own, which goes back to the system with them. glibc would keep it for the next, in an arena for
    each thread, until the pod's limit is met.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 256 << 10)
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 20)
        library.mallopt(_M_ARENA_MAX, 2)


def _allow_many_files() -> None:
    """Each connection is a file; the soft limit of some container runtimes is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
