"""Clients by a token of the cluster: the API server says whose it is (TokenReview), and the answer is remembered for a moment.

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

import aiohttp

from splitinference_gateway.clients import bearer, wrong_key
from splitinference_gateway.configmap_watch import ApiServer
from splitinference_gateway.errors import ApiError

_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
_MOST_REMEMBERED = 4096
_MOST_TOKEN_BYTES = 16 << 10
_TIMEOUT = aiohttp.ClientTimeout(total=5)
_log = logging.getLogger(__name__)


@dataclass
class TokenReviews:
    """Asks `server`; a token's answer holds for `seconds`, refusals too."""

    server: ApiServer
    audience: str
    seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _known: OrderedDict[bytes, tuple[float, str | None]] = field(default_factory=OrderedDict)
    _session: aiohttp.ClientSession | None = None

    async def identify(self, authorization: str, peer: str) -> str:
        """The user's name, such as `system:serviceaccount:team:app`.

        Raises:
            ApiError: 401, no token or one that is not accepted; 503, the API server cannot be asked.
        """
        token = bearer(authorization)
        if len(token) > _MOST_TOKEN_BYTES:
            raise wrong_key()
        digest = hashlib.sha256(token.encode()).digest()
        until, user = self._known.get(digest, (0.0, None))
        if self.clock() >= until:
            try:
                user = await self._ask(token)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
                _log.warning("token review: %r", error)
                message = "The token cannot be checked just now."
                raise ApiError(503, message, kind="server_error", code="token_review_failed", retry_after=2) from error
            self._known[digest] = (self.clock() + self.seconds, user)
            self._known.move_to_end(digest)
            while len(self._known) > _MOST_REMEMBERED:
                self._known.popitem(last=False)
        if user is None:
            raise wrong_key()
        return user

    async def close(self) -> None:
        """Close the connection."""
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
        async with self._session.post(url, json=review, headers=headers, timeout=_TIMEOUT) as response:
            if response.status != 201:
                raise ValueError(f"HTTP {response.status}: {(await response.text())[:300]}")
            status = json.loads(await response.read()).get("status") or {}
        if status.get("authenticated") is not True or self.audience not in (status.get("audiences") or ()):
            return None
        return str(status["user"]["username"])
