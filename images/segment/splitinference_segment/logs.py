"""The segment's log. Each request has one line here when it comes, and one for each failure, with the ID that the gateway gave it.

As JSON (SI_LOG_FORMAT=json) every line of the container is one object, also those of Triton and of what libraries print.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Any, TextIO

from splitinference_protocol import log_lines
from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.request import Request

_EXTRA = ("segment", "sequence", "tokens", "position", "code")
_LEVELS = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL"}
_TRITON = re.compile(r"^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ ([^\]\s]+)\] (.*)$")
_LONGEST = 16 * 1024
"""Characters of a line that is not ours; the rest of it is cut off."""
_log = logging.getLogger(__name__)


class _WithRequest(logging.Filter):
    """Lines about no request have a dash."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, log_lines.REQUEST):
            setattr(record, log_lines.REQUEST, log_lines.NONE)
        return True


def configure(environment: Mapping[str, str]) -> None:
    """The root logger, to stderr, as SI_LOG_LEVEL and SI_LOG_FORMAT say.

    Raises:
        ValueError: one of them is none of its values.
    """
    log_lines.configure(environment, _EXTRA, _WithRequest())


class RequestLog:
    """Lines about requests of one segment. A sequence has one line, not one for each of its steps."""

    def __init__(self, segment: str) -> None:
        self._segment = segment

    def came(self, request: Request) -> None:
        """A request begins here, or begins anew (a replay)."""
        first = request.op == "infer" or (request.op == "step" and (request.position == 0 or request.prefix is not None))
        if not first or not _log.isEnabledFor(logging.INFO):
            return
        facts: dict[str, Any] = {"tokens": request.tensor.tokens if request.tensor else 0, "position": request.position}
        _log.info("%s begins: %d tokens at position %d", request.op, *facts.values(), extra=facts | self._who(request))

    def failed(self, request: Request, failure: SegmentError) -> None:
        """It could not be done, here or further along the route."""
        _log.warning("%s failed: %s: %.500s", request.op, failure.code, str(failure), extra={"code": failure.code} | self._who(request))

    def _who(self, request: Request) -> dict[str, str]:
        return {log_lines.REQUEST: log_lines.request_of(request.traceparent), "segment": self._segment, "sequence": request.sequence}


def as_json(line: str, now: float) -> str:
    """A line of Triton, or of anybody, as one object; one that is an object already stays as it is. `now`: seconds since 1970."""
    line = line.rstrip("\r\n")[:_LONGEST]
    if line.startswith("{"):
        try:
            if isinstance(json.loads(line), dict):
                return line
        except (ValueError, RecursionError):
            pass
    found = _TRITON.match(line)
    level, logger, message = (_LEVELS[found[1]], f"triton {found[2]}", found[3]) if found else ("INFO", "segment-serve", line)
    stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": stamp, "level": level, "logger": logger, "message": message})


class JsonStream:
    """Stands in for a stream of text: each whole line that is written to it goes on as one object."""

    def __init__(self, onto: TextIO) -> None:
        self._onto, self._begun, self._lock = onto, "", threading.Lock()

    def write(self, text: str) -> int:
        """Write it, but for a line that has not ended."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                if line.strip():
                    self._onto.write(as_json(line, time.time()) + "\n")
            self._begun = self._begun[:_LONGEST]
            self._onto.flush()
        return len(text)

    def flush(self) -> None:
        """What has no end yet waits for it."""
        self._onto.flush()


def pumped(source: IO[bytes], onto: JsonStream) -> threading.Thread:
    """A thread that passes on what a process writes until it and its children have ended."""

    def run() -> None:
        with source:
            for line in iter(lambda: source.readline(_LONGEST), b""):
                onto.write(line.decode("utf-8", "replace").rstrip("\n") + "\n")

    thread = threading.Thread(target=run, name="log", daemon=True)
    thread.start()
    return thread
