"""The toy model of the gateway's tests: its numbers as functions of the tokens."""

import array
import zlib
from collections.abc import Sequence
from typing import Any

CHARACTERS = [c.encode() for c in " etaoinshrdlu.,éü€𝄞日本"]


def toy_logits(tokens: Sequence[int]) -> list[float]:
    """Three numbers that depend on all tokens."""
    return [float(len(tokens)), float(sum(tokens)), float(zlib.crc32(array.array("q", tokens).tobytes()) % 1000)]


def toy_score(token: int) -> float:
    """The log-probability of any given token."""
    return -0.5 - token % 7


def toy_embedding(tokens: Sequence[int]) -> list[float]:
    """Four numbers that depend on all tokens; of length 1."""
    raw = [float(zlib.crc32(array.array("q", [*tokens, place]).tobytes()) % 1000 - 500) for place in range(4)]
    length = sum(value * value for value in raw) ** 0.5
    return [value / length for value in raw]


def hidden_of(values: Sequence[float]) -> dict[str, Any]:
    told = {"dtype": "float32", "shape": [len(values), 1]}
    return {"v": 1, "ok": True, "tensor": told, "data": array.array("f", values).tobytes()}


def begins_a_character(tail: bytes) -> bool:
    return any(c.startswith(tail) and len(c) > len(tail) for c in CHARACTERS)
