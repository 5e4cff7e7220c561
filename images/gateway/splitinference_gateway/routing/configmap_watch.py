"""Follows the ConfigMap that holds the route. A mounted ConfigMap can be a minute old, so the object itself is watched.

Spoken with aiohttp: the gateway needs one list and one watch, and the general client libraries take longer to import, and more
memory, than all of the gateway.
"""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from splitinference_gateway.routing.route_source import RouteReader

KEY = "route.json"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_WATCH_SECONDS = 30  # the API server ends a watch then; a connection lost in silence is noticed soon after
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_WATCH_SECONDS + 5)
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
_GONE = 410
_log = logging.getLogger(__name__)


class ApiServerError(Exception):
    """The API server refused; `code` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True)
class ApiServer:
    """Where the API server is and how to be let in. The token is read for each request: it is replaced from time to time."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None

    @classmethod
    def in_cluster(cls, environment: Mapping[str, str]) -> "ApiServer":
        """As every pod finds it."""
        host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", _ACCOUNT / "token", _ACCOUNT / "ca.crt")

    def session(self) -> aiohttp.ClientSession:
        """A session that trusts the cluster's CA."""
        context = ssl.create_default_context(cafile=str(self.ca_file)) if self.ca_file else None
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context or True), timeout=_TIMEOUT)

    def headers(self) -> dict[str, str]:
        """Who asks."""
        token = {"Authorization": f"Bearer {self.token_file.read_text().strip()}"} if self.token_file else {}
        return {"Accept": "application/json", "User-Agent": "splitinference-gateway", **token}


def own_namespace() -> str:
    """The namespace of the pod that this runs in."""
    return (_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()


async def watch_configmap(server: ApiServer, namespace: str, name: str, reader: RouteReader) -> None:
    """Read the ConfigMap, then follow its changes; start over after every disconnect. Runs until cancelled.

    An object that is not there yet is waited for; one that was deleted leaves the route in use as it is.
    """
    pause = _FIRST_PAUSE_SECONDS
    async with server.session() as session:
        follower = _Follower(server, session, f"/api/v1/namespaces/{namespace}/configmaps", name, reader)
        while True:
            try:
                version = await follower.read()
                pause = _FIRST_PAUSE_SECONDS
                while True:
                    version = await follower.follow(version)
            except (aiohttp.ClientError, ApiServerError, OSError, TimeoutError, ValueError, KeyError) as error:
                gone = isinstance(error, ApiServerError) and error.code == _GONE
                _log.log(logging.INFO if gone else logging.WARNING, "watch of ConfigMap %s/%s: %r", namespace, name, error)
                if not gone:
                    await asyncio.sleep(pause)
                    pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)


@dataclass(frozen=True)
class _Follower:
    server: ApiServer
    session: aiohttp.ClientSession
    path: str
    name: str
    reader: RouteReader

    async def read(self) -> str:
        """The object as it is; returns the version to follow from."""
        async with self._get({}) as response:
            found = json.loads(await response.read())
        for item in found["items"]:
            self._take(item)
        return str(found["metadata"]["resourceVersion"])

    async def follow(self, version: str) -> str:
        """One watch connection; returns the version to go on from when the server ends it."""
        options = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(_WATCH_SECONDS), "allowWatchBookmarks": "true"}
        async with self._get(options) as response:
            async for line in _lines(response):
                event = json.loads(line)
                item = event["object"]
                if event["type"] == "ERROR":
                    raise ApiServerError(int(item.get("code", 500)), str(item.get("message", "")))
                version = str(item["metadata"]["resourceVersion"])
                if event["type"] in ("ADDED", "MODIFIED"):
                    self._take(item)
        return version

    def _get(self, options: Mapping[str, str]) -> "_Checked":
        # By field selector, so that a role may name the one object that the gateway reads.
        query = {"fieldSelector": f"metadata.name={self.name}", **options}
        return _Checked(self.session.get(self.server.url + self.path, params=query, headers=self.server.headers()))

    def _take(self, item: Mapping[str, Any]) -> None:
        text = (item.get("data") or {}).get(KEY)
        if text is not None:
            self.reader.read(text)


class _Checked:
    """A request whose refusal is an error."""

    def __init__(self, request: Any) -> None:
        self._request = request

    async def __aenter__(self) -> aiohttp.ClientResponse:
        response: aiohttp.ClientResponse = await self._request.__aenter__()
        if response.status != 200:
            text = (await response.text())[:300]
            await self._request.__aexit__(None, None, None)
            raise ApiServerError(response.status, text)
        return response

    async def __aexit__(self, *error: object) -> None:
        await self._request.__aexit__(*error)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: an object with its history of writers can be large."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
