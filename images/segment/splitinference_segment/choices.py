"""What choosing a token gives, and the random number behind it; the same for every engine, whose arrays differ."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

_SYSTEM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Choice:
    """The token, its log-probability under the model (before penalties, temperature and the like), and the likeliest alternatives."""

    token: int
    logprob: float
    top_logprobs: Sequence[tuple[int, float]] = ()


def uniform(seed: int | None, position: int) -> float:
    """A number in [0, 1): of seed and position alone, or random without a seed."""
    if seed is None:
        return _SYSTEM.random()
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2.0**64
