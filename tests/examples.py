"""How many examples property tests try. `EXAMPLES=10 make unit` tries ten times as many, and others at each run."""

import os

from hypothesis import settings

ASKED = os.environ.get("EXAMPLES")


def examples(count: int) -> settings:
    """A decorator for a property test: so many examples where nothing else is asked for. All else is the suite's profile."""
    return settings(max_examples=max(1, round(count * float(ASKED or 1))))
