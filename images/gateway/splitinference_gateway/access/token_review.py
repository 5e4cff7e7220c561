"""Clients by a token of the cluster: the API server says whose it is (TokenReview), and the answer is remembered for a moment.

Made-up tokens must not become load on the API server. Each token is asked for once, however many requests bring it; refusals are remembered
apart from users, so that they push none out; and the questions that an address may cause are few a second, as are all together.

Only tokens issued for the gateway's audience are accepted: one that a pod carries for the API server would otherwise give whoever runs the
gateway that pod's rights.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp

from splitinference_gateway.access.clients import bearer, wrong_key
from splitinference_gateway.errors import ApiError, overloaded
from splitinference_gateway.routing.configmap_watch import ApiServer

_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
_MOST_REMEMBERED = 4096
_MOST_ADDRESSES = 4096
_MOST_AT_ONCE = 16
_MOST_TOKEN_BYTES = 16 << 10
_TIMEOUT = aiohttp.ClientTimeout(total=5)
_K = TypeVar("_K")
_V = TypeVar("_V")
_log = logging.getLogger(__name__)


@dataclass
class _Allowance:
    """A token bucket: so many a second, and a number at first."""

    per_second: float
    most: float
    last: float
    left: float = -1.0

    def take(self, now: float) -> bool:
        """One more, if there is one."""
        left = self.most if self.left < 0 else min(self.most, self.left + (now - self.last) * self.per_second)
        self.last, self.left = now, max(0.0, left - 1) if left >= 1 else left
        return left >= 1


def _remember(memory: "OrderedDict[_K, _V]", key: _K, value: _V, most: int = _MOST_REMEMBERED) -> None:
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > most:
        memory.popitem(last=False)


@dataclass
class TokenReviews:
    """Asks `server`; a token's answer holds for `seconds`, refusals too."""

    server: ApiServer
    audience: str
    seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic
    per_address: tuple[float, float] = (2.0, 20.0)  # unknown tokens a second, and so many at first
    all_together: tuple[float, float] = (50.0, 200.0)
    _known: OrderedDict[bytes, tuple[float, str]] = field(default_factory=OrderedDict)
    _refused: OrderedDict[bytes, float] = field(default_factory=OrderedDict)
    _asking: dict[bytes, "asyncio.Task[str | None]"] = field(default_factory=dict)
    _addresses: OrderedDict[str, "_Allowance"] = field(default_factory=OrderedDict)
    _session: aiohttp.ClientSession | None = None

    def __post_init__(self) -> None:
        self._all = _Allowance(*self.all_together, self.clock())
        self._at_once = asyncio.Semaphore(_MOST_AT_ONCE)

    async def identify(self, authorization: str, peer: str) -> str:
        """The user's name, such as `system:serviceaccount:team:app`.

        Raises:
            ApiError: 401, no token or one that is not accepted; 429, too many unknown ones; 503, the API server cannot be asked.
        """
        token = bearer(authorization)
        if len(token) > _MOST_TOKEN_BYTES:
            raise wrong_key()
        digest, now = hashlib.sha256(token.encode()).digest(), self.clock()
        until, user = self._known.get(digest, (0.0, ""))
        if now < until:
            return user
        if now < self._refused.get(digest, 0.0):
            raise wrong_key()
        asking = self._asking.get(digest)
        if asking is None:
            self._allow(peer, now)
            asking = self._asking[digest] = asyncio.create_task(self._ask(token))
            asking.add_done_callback(lambda task: self._asked(digest, task))
        try:
            found = await asyncio.shield(asking)  # a client that leaves does not take the answer from the others
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            _log.warning("token review: %r", error)
            message = "The token cannot be checked right now."
            raise ApiError(503, message, kind="server_error", code="token_review_failed", retry_after=2) from error
        if found is None:
            _remember(self._refused, digest, self.clock() + self.seconds)
            raise wrong_key()
        _remember(self._known, digest, (self.clock() + self.seconds, found))
        return found

    def _asked(self, digest: bytes, task: "asyncio.Task[str | None]") -> None:
        self._asking.pop(digest, None)
        if not task.cancelled():
            task.exception()  # seen, also where every client that waited has left

    def _allow(self, peer: str, now: float) -> None:
        """Raise ApiError 429 where an address, or all together, asked too often."""
        own = self._addresses.pop(peer, None) or _Allowance(*self.per_address, now)
        _remember(self._addresses, peer, own, _MOST_ADDRESSES)
        if not own.take(now) or not self._all.take(now):
            raise overloaded("Too many unknown tokens; try again later.", "too_many_tokens")

    async def close(self) -> None:
        """Close the connection."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask(self, token: str) -> str | None:
        """The user's name, None when the token is not accepted."""
        if self._session is None:
            self._session = self.server.session()
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self.audience]},
        }
        headers = await asyncio.to_thread(self.server.headers)
        url = self.server.url + _PATH
        async with self._at_once, self._session.post(url, json=review, headers=headers, timeout=_TIMEOUT) as response:
            if response.status != 201:
                raise ValueError(f"HTTP {response.status}: {(await response.text())[:300]}")
            status = json.loads(await response.read()).get("status") or {}
        if status.get("authenticated") is not True or self.audience not in (status.get("audiences") or ()):
            return None
        return str(status["user"]["username"])
