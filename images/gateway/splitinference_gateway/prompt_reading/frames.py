"""What the gateway and its prompt workers say to each other: a JSON head and bytes, each with its length in front.

JSON and not pickle: a worker that a template took over could write anything, and reading it must not run it.
"""

import json
import struct
from typing import Any

HEAD = struct.Struct("<II")
MOST_HEAD = 1 << 22
MOST_BODY = 1 << 28


def packed(head: dict[str, Any], body: bytes = b"") -> bytes:
    """One frame."""
    said = json.dumps(head, separators=(",", ":")).encode()
    return HEAD.pack(len(said), len(body)) + said + body


def lengths(start: bytes) -> tuple[int, int]:
    """Of head and body. ValueError for what is no frame of ours."""
    head, body = HEAD.unpack(start)
    if head > MOST_HEAD or body > MOST_BODY:
        raise ValueError(f"a frame of {head} and {body} bytes")
    return head, body
