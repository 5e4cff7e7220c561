"""How a reading pod hands over what it read: gzipped JSON in base64 between two marks in its log."""
# ruff: noqa: T201

import base64
import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

BEGIN = "-----BEGIN SPLITINFERENCE MODEL-----"
END = "-----END SPLITINFERENCE MODEL-----"
MOST_PRINTED = 900_000
"""The operator keeps it in a ConfigMap, which may have 1 MiB."""


def hand_over(
    config: Mapping[str, Any], tensors: Mapping[str, Any], names: Sequence[str], content: Mapping[str, Any] | None = None
) -> None:
    """Print it, with the names of the files in the folder. `content`: digests, and the commit of a hub. ValueError: it is too large."""
    whole = {"config": config, "tensors": tensors, "files": names, **({"content": content} if content else {})}
    text = json.dumps(whole, separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    if len(packed) > MOST_PRINTED:
        raise ValueError(f"the model's configuration and tensor tables take {len(packed)} bytes packed; at most {MOST_PRINTED} can be kept")
    print(BEGIN)
    for start in range(0, len(packed), 1000):
        print(packed[start : start + 1000])
    print(END, flush=True)


def complain(text: object) -> None:
    """Say what is wrong: one line of bounded length, without control characters."""
    words = " ".join(str(text).split())
    print("".join(c if c.isprintable() else "?" for c in words)[:500], file=sys.stderr)
