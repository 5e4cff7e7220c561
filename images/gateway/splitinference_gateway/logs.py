"""The log, as plain lines or one JSON object for each (SI_LOG_FORMAT=json). Both have the ID of the request that a line is about."""

import logging
from collections.abc import Mapping

from splitinference_gateway import request_ids
from splitinference_protocol import log_lines

_EXTRA = ("method", "path", "status", "seconds", "client_request_id")
"""Fields beside the message that our own lines have."""


class _WithRequest(logging.Filter):
    """Adds `request_id`: a dash where the line is about none."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_ids.current() or log_lines.NONE
        return True


def configure(environment: Mapping[str, str]) -> None:
    """The root logger, to stderr, as SI_LOG_LEVEL and SI_LOG_FORMAT say.

    Raises:
        ValueError: one of them is none of its values.
    """
    log_lines.configure(environment, _EXTRA, _WithRequest())
