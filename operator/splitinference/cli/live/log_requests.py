"""Which lines of logs are about one request: those with its ID, from the gateway to the last segment."""

import json
from collections.abc import Iterable
from typing import Any

import click

_MOST = 128


class RequestId(click.ParamType[str]):
    """The X-Request-Id of an answer, or the one that a client sent."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The same, where a header can have it."""
        text = str(value)
        if not 1 <= len(text) <= _MOST or not all("!" <= c <= "~" for c in text):
            self.fail(f"expected an ID of 1 to {_MOST} characters without blanks, as in the header X-Request-Id", param, ctx)
        return text


def ids_of(wanted: str, lines: Iterable[str]) -> frozenset[str]:
    """IDs that gateways gave to requests whose client called them `wanted`, and `wanted` itself."""
    found = {wanted}
    for line in lines:
        if wanted in line and (fields := _fields(line)).get("client_request_id") == wanted and fields.get("request_id"):
            found.add(str(fields["request_id"]))
    return frozenset(found)


def about(ids: frozenset[str], line: str) -> bool:
    """Whether a line, without its time, is about one of these requests. In plain lines the ID is a word of its own."""
    if fields := _fields(line):
        return str(fields.get("request_id")) in ids
    return not ids.isdisjoint(line.split())


def _fields(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
