"""What the last segment must know of a sequence's tokens so far to choose the next one: packed small, and sent with each step.

Segments keep none of it. So a replay, a hand-over and another split give the same token. For the form see docs/reference/data-plane.md.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from splitinference_gateway.tokens.sampling import Sampling
from splitinference_protocol.wire.leb128 import pack_counts, pack_ids


class History:
    """One sequence's. `sampling` is what the next step is told."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        """`prompt`: the tokens that were given."""
        self._sampling = replace(sampling, prompt=pack_ids(prompt)) if sampling.repetition_penalty != 1.0 else sampling
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
        return replace(told, generated=pack_counts(self._counts)) if self._counts else told
