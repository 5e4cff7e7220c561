"""When a segment's output is too far from the same layers' output elsewhere (comparison.py): the rule, without arrays."""

import math
from dataclasses import dataclass

LARGEST = 8
"""Channels that are taken apart, of each token the largest ones."""
SLACK = 2.0
"""How much more a mean of n tokens may have: tolerance × (1 + SLACK / √n). One token alone may have three times the tolerance."""
WRONG = 1e9
"""The error of what is no number."""
LEAST = 1e-6
"""The least norm that an error is relative to."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Errors of so many tokens: their mean, the worst one and where it was, both relative."""

    tokens: int
    mean: float
    worst: float
    worst_at: int

    def within(self, tolerance: float) -> bool:
        """Whether honest rounding can be the reason."""
        return self.mean <= bound(tolerance, self.tokens) and self.worst <= bound(tolerance, 1)


def bound(tolerance: float, tokens: int) -> float:
    """The largest mean error of so many tokens."""
    return tolerance * (1 + SLACK / math.sqrt(tokens))
