"""Lines of the log as gateway and segments write them: plain, or one JSON object each. A line about a request has the request's ID."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

FORMATS = ("plain", "json")
VARIABLE = "SI_LOG_FORMAT"
LEVEL = "SI_LOG_LEVEL"
REQUEST = "request_id"
NONE = "-"
"""The ID of a line that is about no request, in plain lines."""
PLAIN = f"%(asctime)s %(levelname)s %(name)s %({REQUEST})s %(message)s"


def chosen(environment: Mapping[str, str]) -> str:
    """The format that SI_LOG_FORMAT names.

    Raises:
        ValueError: it is none of FORMATS.
    """
    form = environment.get(VARIABLE) or FORMATS[0]
    if form not in FORMATS:
        raise ValueError(f"{VARIABLE} is {form!r}, but should be one of {', '.join(FORMATS)}")
    return form


def request_of(traceparent: str) -> str:
    """The request's ID, which is the trace ID of W3C trace context; a dash where there is none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) >= 4 else NONE


class JsonLines(logging.Formatter):
    """One object on one line. Text of clients is in it after `repr`; JSON escapes every line break."""

    def __init__(self, extra: Sequence[str] = ()) -> None:
        """`extra`: attributes of records that become fields where they are not empty."""
        super().__init__()
        self._extra = tuple(extra)

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC, level, logger, message, and what there is of request and exception."""
        found: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request := getattr(record, REQUEST, NONE)) != NONE:
            found[REQUEST] = request
        found |= {name: value for name in self._extra if (value := getattr(record, name, "")) != ""}
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


def formatter(form: str, extra: Sequence[str] = ()) -> logging.Formatter:
    """Of one of FORMATS."""
    return JsonLines(extra) if form == "json" else logging.Formatter(PLAIN)


def configure(environment: Mapping[str, str], extra: Sequence[str], names_request: logging.Filter) -> None:
    """The root logger, to stderr, as SI_LOG_LEVEL and SI_LOG_FORMAT say. `names_request` gives each record its REQUEST.

    Raises:
        ValueError: one of the variables is none of its values.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(chosen(environment), extra))
    handler.addFilter(names_request)
    logging.basicConfig(level=environment.get(LEVEL) or "INFO", handlers=[handler], force=True)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
