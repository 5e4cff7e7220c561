"""Text of others, read within bounds: a few bytes must not become gigabytes, by compression or by what JSON makes of them."""

import json
import zlib
from typing import Any

_GZIP = 16 + zlib.MAX_WBITS


class TooLargeError(ValueError):
    """It would take more memory than it may."""


def gunzip(data: bytes, most_bytes: int) -> bytes:
    """Decompress. Raises TooLargeError as soon as more than `most_bytes` come out, ValueError where it is damaged or not whole."""
    stream = zlib.decompressobj(_GZIP)
    try:
        found = stream.decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise ValueError("it is damaged") from error
    if len(found) > most_bytes:
        raise TooLargeError(f"it is longer than {most_bytes} bytes")
    if not stream.eof:
        raise ValueError("it is cut short")
    return found


def parse_json(text: bytes, most_values: int) -> Any:
    """Parse. Raises TooLargeError where it may hold more than `most_values` values: an empty list takes two bytes here and 64 in memory."""
    if text.count(b",") + text.count(b"[") + text.count(b"{") > most_values:
        raise TooLargeError(f"it holds more than {most_values} values")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise TooLargeError("it is nested too deeply") from error
