"""The log, as plain lines or one JSON object for each (SI_LOG_FORMAT=json). Both have the ID of the request that a line is about."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from splitinference_gateway import request_ids

FORMATS = ("plain", "json")
_EXTRA = ("method", "path", "status", "seconds", "client_request_id")
"""Fields beside the message that our own lines have."""


class _WithRequest(logging.Filter):
    """Adds `request_id`: a dash where the line is about none."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_ids.current() or "-"
        return True


class JsonFormatter(logging.Formatter):
    """One object on one line. What it says is text of ours, or of a client after `repr`; JSON escapes every line break in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC, level, logger, message, and what there is of request and exception."""
        found: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request := getattr(record, "request_id", "-")) != "-":
            found["request_id"] = request
        found |= {name: value for name in _EXTRA if (value := getattr(record, name, "")) != ""}
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


def configure(environment: Mapping[str, str]) -> None:
    """The root logger, to stderr, as SI_LOG_LEVEL and SI_LOG_FORMAT say.

    Raises:
        ValueError: one of them is none of its values.
    """
    form = environment.get("SI_LOG_FORMAT", "plain")
    if form not in FORMATS:
        raise ValueError(f"SI_LOG_FORMAT is {form!r}, but should be one of {', '.join(FORMATS)}")
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(request_id)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    handler.addFilter(_WithRequest())
    logging.basicConfig(level=environment.get("SI_LOG_LEVEL", "INFO"), handlers=[handler], force=True)
