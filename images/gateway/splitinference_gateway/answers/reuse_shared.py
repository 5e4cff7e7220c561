"""Kept answers that several gateways share, on a server of Valkey or Redis.

Others may use that server, too. An entry counts only with an HMAC by the resource's own key over its name, its times and its content, and
it is read within a bound. The server may be slow or away: each question has a time limit, and after a failure none is asked for a while.
"""

import asyncio
import hashlib
import hmac
import logging
import os
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError

from splitinference_gateway.answers.reuse_store import Entry
from splitinference_gateway.metrics import Metrics

_TIMES = struct.Struct(">dd")
_MAC_BYTES = 32
_EPOCH_BYTES = 16
HEAD_BYTES = _MAC_BYTES + _EPOCH_BYTES + _TIMES.size
_MOST_WRITES = 32
_PAUSES = (1.0, 30.0)  # seconds without a question after a failure, doubled up to the second one
_WRITE_SECONDS = 5.0
_LARGEST_SKEW = 60.0  # seconds that another gateway's clock may be ahead
_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
_log = logging.getLogger(__name__)


class _Files(CredentialProvider):
    """User and password from files of a mounted Secret, read for each connection: they may change."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """As redis-py wants them: both, or the password alone."""
        user, password = self._read("username"), self._read("password")
        return (user, password) if user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """The same."""
        return self.get_credentials()

    def _read(self, name: str) -> str:
        file = self._folder / name if self._folder is not None else None
        return file.read_text(encoding="utf-8").strip() if file is not None and file.is_file() else ""


def connection(url: str, folder: Path | None, seconds: float) -> Redis:
    """A client of the server at `url` (redis, rediss, valkey or valkeys, with host, port and number); nothing is connected yet.

    `folder` may have the files username, password and ca.crt. ValueError for a URL that is none.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES or not rest or "@" in rest:
        raise ValueError(f"{url!r:.200} is not redis://, rediss://, valkey:// or valkeys:// with a host, and without a password")
    more: dict[str, Any] = {}
    if folder is not None and (folder / "password").exists():
        more["credential_provider"] = _Files(folder)
    if _SCHEMES[scheme] == "rediss" and folder is not None and (folder / "ca.crt").is_file():
        more["ssl_ca_certs"] = str(folder / "ca.crt")
    retry = Retry(NoBackoff(), 0)
    return Redis.from_url(
        f"{_SCHEMES[scheme]}://{rest}", socket_timeout=seconds, socket_connect_timeout=seconds, retry=retry, max_connections=64, **more
    )


@dataclass
class SharedAnswers:
    """Entries under `prefix` (of one resource). `seconds`: how long a request may wait for the server. `clock`: Unix seconds."""

    server: Redis
    prefix: str
    key: Callable[[], bytes]
    metrics: Metrics
    seconds: float = 0.1
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    _pause: float = 0.0
    _ask_again: float = float("-inf")
    _must_forget: bool = False
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    async def get(self, name: bytes, most: int) -> Entry | None:
        """The entry, if it is ours, valid, and of at most `most` bytes. Never raises, never waits longer than `seconds`."""
        if self.monotonic() < self._ask_again:
            self.metrics.reuse_server_failures.labels("paused").inc()
            return None
        try:
            async with asyncio.timeout(self.seconds):
                if self._must_forget:
                    await self._new_epoch()
                pipe = self.server.pipeline(transaction=False)
                pipe.getrange(self._epoch_key, 0, _EPOCH_BYTES)
                pipe.getrange(self._entry_key(name), 0, HEAD_BYTES + most)
                epoch, raw = await pipe.execute()
        except (RedisError, OSError, TimeoutError, UnicodeError) as error:
            self._failed("read", error)
            return None
        self._pause = 0.0
        return self._opened(name, epoch, raw, most) if raw else None

    def put(self, name: bytes, entry: Entry) -> None:
        """Write an entry in the background. It is left out while many others wait, or the server does not answer."""
        self._in_background(lambda: self._write(name, entry))

    def forget(self) -> None:
        """Nothing that is there now counts any more, for any gateway; until the server knows it, nothing is read."""
        self._must_forget = True
        self._in_background(self._new_epoch)

    async def close(self) -> None:
        """Close the connection; what is not written yet is left out."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.aclose()

    def _in_background(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if len(self._tasks) >= _MOST_WRITES or self.monotonic() < self._ask_again:
            self.metrics.reuse_server_failures.labels("not_written").inc()
            return

        async def guarded() -> None:
            try:
                async with asyncio.timeout(_WRITE_SECONDS):
                    await work()
            except (RedisError, OSError, TimeoutError, UnicodeError) as error:
                self._failed("write", error)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, name: bytes, entry: Entry) -> None:
        left = int(1000 * entry.left(self.clock()))
        if left <= 0:
            return
        if self._must_forget:
            await self._new_epoch()
        epoch = await self._epoch()
        if len(epoch) != _EPOCH_BYTES:  # nobody wrote before, or the server dropped it: what is there does not count
            await self.server.set(self._epoch_key, os.urandom(_EPOCH_BYTES), nx=not epoch)
            epoch = await self._epoch()
        signed = epoch + _TIMES.pack(entry.stored_at, entry.expires_at) + entry.content
        await self.server.set(self._entry_key(name), self._mac(name, signed) + signed, px=left)

    async def _epoch(self) -> bytes:
        found = await self.server.getrange(self._epoch_key, 0, _EPOCH_BYTES)
        return found if isinstance(found, bytes) else b""

    async def _new_epoch(self) -> None:
        await self.server.set(self._epoch_key, os.urandom(_EPOCH_BYTES))
        self._must_forget = False

    def _opened(self, name: bytes, epoch: bytes, raw: bytes, most: int) -> Entry | None:
        mac, signed = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if len(raw) > HEAD_BYTES + most or len(raw) < HEAD_BYTES or not hmac.compare_digest(mac, self._mac(name, signed)):
            self.metrics.reuse_server_failures.labels("not_ours").inc()
            _log.warning("an entry of the server for reuse has a wrong signature, or is too large; it is not used")
            return None
        if not hmac.compare_digest(signed[:_EPOCH_BYTES], epoch):
            return None
        stored_at, expires_at = _TIMES.unpack_from(signed, _EPOCH_BYTES)
        now = self.clock()
        if expires_at <= now or stored_at > now + _LARGEST_SKEW:
            return None
        return Entry(signed[_EPOCH_BYTES + _TIMES.size :], stored_at, expires_at)

    def _mac(self, name: bytes, signed: bytes) -> bytes:
        own = hmac.digest(self.key(), b"entries on a shared server, form 1", "sha256")
        told = hmac.new(own, name, hashlib.sha256)  # a name is 32 bytes
        told.update(signed)
        return told.digest()

    def _failed(self, what: str, error: Exception) -> None:
        self.metrics.reuse_server_failures.labels(what).inc()
        least, most = _PAUSES
        if self.monotonic() >= self._ask_again:
            self._pause = min(most, max(least, 2 * self._pause))
            self._ask_again = self.monotonic() + self._pause
            _log.warning("the server for reuse: %r; requests go on without it, the next question is in %.0f s", error, self._pause)

    @property
    def _epoch_key(self) -> str:
        return f"{self.prefix}:epoch"

    def _entry_key(self, name: bytes) -> str:
        return f"{self.prefix}:{name.hex()}"
