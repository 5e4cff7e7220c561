"""Where the route comes from: a document, read from the ConfigMap that `configmap_watch` follows, or from a polled file.

What cannot be read is reported and changes nothing: the route in use goes on.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from splitinference_protocol.route import RouteDocument, RouteError

_POLL_SECONDS = 0.2
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
        with contextlib.suppress(OSError):  # not there yet, or just being replaced
            reader.read(await asyncio.to_thread(file.read_text, encoding="utf-8", errors="replace"))
        await asyncio.sleep(_POLL_SECONDS)
