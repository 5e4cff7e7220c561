"""The tokens of a sequence as META carries them: sorted ids as gaps, base64 of variable-length integers. See docs/reference/data-plane.md.

The last segment keeps none of them: what a penalty needs comes with the step.
So a replay, a hand-over and another split give the same token.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

MOST_CHARACTERS = 1 << 20
"""Of one field. A vocabulary of 256,000 tokens, all of them seen, takes half of it."""
_MOST_BITS = 35


def pack(numbers: Iterable[int]) -> str:
    """Non-negative integers as LEB128 in base64: seven bits a byte, the lowest first."""
    data = bytearray()
    for number in numbers:
        left = number
        while left > 0x7F:
            data.append(left & 0x7F | 0x80)
            left >>= 7
        data.append(left)
    return base64.b64encode(data).decode()


def pack_ids(ids: Iterable[int]) -> str:
    """Each id once, in ascending order: the first, then gaps."""
    return pack(_gaps(sorted(set(ids))))


def pack_counts(counts: Mapping[int, int]) -> str:
    """Gap and count in turn."""
    ids = sorted(counts)
    return pack(number for gap, token in zip(_gaps(ids), ids, strict=True) for number in (gap, counts[token]))


def numbers(packed: str) -> list[int]:
    """Non-negative integers in LEB128, in base64. ValueError for what is none."""
    if len(packed) > MOST_CHARACTERS:
        raise ValueError(f"{len(packed)} characters are more than {MOST_CHARACTERS}")
    try:
        data = base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise ValueError(f"it is not base64: {error}") from None
    made, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift >= _MOST_BITS:
                raise ValueError("a number is too long")
        else:
            made.append(value)
            value, shift = 0, 0
    if shift:
        raise ValueError("it ends inside a number")
    return made


@lru_cache(maxsize=32)
def ids(packed: str) -> tuple[int, ...]:
    """Token ids in ascending order, each once. ValueError for what is none."""
    return _added_up(numbers(packed))


@lru_cache(maxsize=32)
def counts(packed: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids in ascending order, and how often each came. ValueError for what is none."""
    both = numbers(packed)
    if len(both) % 2:
        raise ValueError("a token id has no count")
    return _added_up(both[::2]), tuple(both[1::2])


def _added_up(gaps: list[int]) -> tuple[int, ...]:
    """The first number is the first id; each further one is the gap to the id before, at least 1."""
    made, at = [], 0
    for number, gap in enumerate(gaps):
        if number and not gap:
            raise ValueError("a token id is there twice")
        at += gap
        made.append(at)
    return tuple(made)


def _gaps(ascending: Sequence[int]) -> list[int]:
    return [token - before for token, before in zip(ascending, [0, *ascending], strict=False)]
