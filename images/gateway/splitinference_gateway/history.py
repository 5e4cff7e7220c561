"""What the last segment must know of a sequence's tokens so far to choose the next one: packed small, and sent with each step.

Segments keep none of it. So a replay, a hand-over and another split give the same token. For the form see docs/reference/data-plane.md.
"""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from splitinference_gateway.sampling import Sampling


def packed(numbers: Iterable[int]) -> str:
    """Non-negative integers as LEB128 in base64: seven bits a byte, the lowest first."""
    data = bytearray()
    for number in numbers:
        left = number
        while left > 0x7F:
            data.append(left & 0x7F | 0x80)
            left >>= 7
        data.append(left)
    return base64.b64encode(data).decode()


def packed_ids(ids: Iterable[int]) -> str:
    """Each id once, in ascending order: the first, then gaps."""
    return packed(_gaps(sorted(set(ids))))


def packed_counts(counts: Mapping[int, int]) -> str:
    """Gap and count in turn."""
    ids = sorted(counts)
    return packed(number for gap, token in zip(_gaps(ids), ids, strict=True) for number in (gap, counts[token]))


class History:
    """One sequence's. `sampling` is what the next step is told."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        """`prompt`: the tokens that were given."""
        self._sampling = replace(sampling, prompt=packed_ids(prompt)) if sampling.repetition_penalty != 1.0 else sampling
        self._counted = sampling.repetition_penalty != 1.0 or bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._counts: Counter[int] = Counter()
        self._generated = 0

    def add(self, token: int) -> None:
        """A token was generated. ApiError as `Guide.add`."""
        self._generated += 1
        if self._sampling.guide is not None:
            self._sampling.guide.add(token)
        if self._counted:
            self._counts[token] += 1

    @property
    def sampling(self) -> Sampling:
        """With the tokens so far, as far as penalties need them, and with the end banned until there are enough.

        ApiError as `Guide.allowed`.
        """
        told = self._sampling
        if told.guide is not None:
            told = replace(told, allowed=told.guide.allowed())
        if told.banned and self._generated >= told.min_tokens:
            told = replace(told, banned=())
        return replace(told, generated=packed_counts(self._counts)) if self._counts else told


def _gaps(ascending: Sequence[int]) -> list[int]:
    return [token - before for token, before in zip(ascending, [0, *ascending], strict=False)]
