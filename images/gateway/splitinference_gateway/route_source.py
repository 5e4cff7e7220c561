"""Where the route comes from: the ConfigMap that the operator writes, watched; or, outside a cluster, a polled file.

A mounted ConfigMap can be a minute old, so the object itself is watched. What cannot be read is reported and changes nothing: the
route in use goes on.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from splitinference_gateway.route import RouteDocument, RouteError

KEY = "route.json"
_POLL_SECONDS = 0.2
_WATCH_SECONDS = 120  # the API server ends a watch then; a connection lost in silence is noticed soon after
_SILENCE_SECONDS = _WATCH_SECONDS + 15
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
_GONE = 410
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_log = logging.getLogger(__name__)

Apply = Callable[[RouteDocument], object]


class RouteReader:
    """Hands readable documents on, and counts the others; the same text again is not read again."""

    def __init__(self, apply: Apply, unreadable: Callable[[], None] = lambda: None) -> None:
        self._apply = apply
        self._unreadable = unreadable
        self._text: str | None = None

    def read(self, text: str) -> None:
        """Take the text of a route document."""
        if text == self._text:
            return
        self._text = text
        try:
            document = RouteDocument.parse(text)
        except RouteError as error:
            self._unreadable()
            _log.error("the route document is not usable, the route in use stays: %s", error)
            return
        _log.info("route %s: %s", document.revision, [[hop.segment for hop in pipeline] for pipeline in document.pipelines])
        self._apply(document)


async def poll_file(file: Path, reader: RouteReader) -> None:
    """Read the file whenever its content changes. Runs until cancelled."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            reader.read(await asyncio.to_thread(file.read_text, encoding="utf-8"))
        await asyncio.sleep(_POLL_SECONDS)


def own_namespace() -> str:
    """The namespace of the pod that this runs in."""
    return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()


async def watch_in_cluster(namespace: str, name: str, reader: RouteReader) -> None:
    """Watch the ConfigMap with the pod's own service account. Runs until cancelled."""
    from kubernetes_asyncio import client, config  # large, and of no use outside a cluster

    config.load_incluster_config()  # type: ignore[no-untyped-call]
    async with client.ApiClient() as api:
        await watch_configmap(client.CoreV1Api(api), namespace, name, reader)


async def watch_configmap(api: Any, namespace: str, name: str, reader: RouteReader) -> None:
    """Read the ConfigMap, then follow its changes; start over after every disconnect. Runs until cancelled.

    `api` is kubernetes_asyncio's CoreV1Api. An object that is not there yet is waited for; one that was deleted leaves the
    route in use as it is.
    """
    pause = _FIRST_PAUSE_SECONDS
    version: str | None = None
    while True:
        try:
            if version is None:
                version = await _list(api, namespace, name, reader)
            version = await _follow(api, namespace, name, reader, version)
            pause = _FIRST_PAUSE_SECONDS
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the remedy is to look again
            version = None
            gone = getattr(error, "status", None) == _GONE
            _log.log(
                logging.INFO if gone else logging.WARNING, "watch of ConfigMap %s/%s: %s", namespace, name, error or type(error).__name__
            )
            await asyncio.sleep(0 if gone else pause)
            pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)


async def _list(api: Any, namespace: str, name: str, reader: RouteReader) -> str:
    async with asyncio.timeout(_POLL_SECONDS * 50):
        found = await api.list_namespaced_config_map(namespace, field_selector=f"metadata.name={name}")
    for item in found.items:
        _read(item, reader)
    return str(found.metadata.resource_version)


async def _follow(api: Any, namespace: str, name: str, reader: RouteReader, version: str) -> str:
    """One watch connection; returns the version to go on from when the server ends it."""
    from kubernetes_asyncio import watch

    stream = watch.Watch().stream(
        api.list_namespaced_config_map,
        namespace,
        field_selector=f"metadata.name={name}",
        resource_version=version,
        timeout_seconds=_WATCH_SECONDS,
        allow_watch_bookmarks=True,
        _request_timeout=_SILENCE_SECONDS,
    )
    async with stream as events:
        async for event in events:
            item = event["object"]
            metadata = item["metadata"] if isinstance(item, dict) else None
            version = str(metadata["resourceVersion"] if metadata else item.metadata.resource_version)
            if event["type"] in ("ADDED", "MODIFIED"):
                _read(item, reader)
    return version


def _read(item: Any, reader: RouteReader) -> None:
    text = (item.data or {}).get(KEY)
    if text is not None:
        reader.read(text)
