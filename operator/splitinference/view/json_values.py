"""Values out of JSON that somebody else wrote: what has another type than expected counts as absent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def mapping(value: Any) -> Mapping[str, Any]:
    """An object; an empty one where it is none."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> Sequence[Mapping[str, Any]]:
    """The objects of a list."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, Sequence) and not isinstance(value, str) else []


def text(value: Any) -> str:
    """A string; empty where it is none. Control characters are left out: what is printed must not steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in value) if isinstance(value, str) else ""


def texts(value: Any) -> tuple[str, ...]:
    """The strings of a list."""
    return (
        tuple(text(entry) for entry in value if isinstance(entry, str))
        if isinstance(value, Sequence) and not isinstance(value, str)
        else ()
    )


def number(value: Any) -> float | None:
    """A finite number; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def whole(value: Any) -> int:
    """A whole number; 0 where it is none."""
    found = number(value)
    return int(found) if found is not None else 0


def numbers(value: Any) -> dict[str, float]:
    """The finite numbers of an object, by name."""
    return {str(key): found for key, entry in mapping(value).items() if (found := number(entry)) is not None}
