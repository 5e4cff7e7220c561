"""Steps and tokens of the last seconds, as the gateway tells of them: many that are alike are one entry."""

import math
from collections import deque
from dataclasses import dataclass, field

RECENT_SECONDS = 10.0
"""Of a stage, the gateway tells what its steps took within so many seconds."""
SHARE = 0.25
"""And of those what three of four took at least."""


@dataclass(frozen=True, order=True)
class Steps:
    """So many steps, evenly from `begin` to `end` (seconds)."""

    begin: float
    end: float
    count: int

    @classmethod
    def at(cls, moment: float) -> "Steps":
        """One that is over in a moment."""
        return cls(moment, moment, 1)

    def within(self, since: float, until: float) -> float:
        """How many of them, in shares of a step, fall between these times."""
        length = self.end - self.begin
        if length <= 0:
            return float(self.count if since <= self.end <= until else 0)
        return self.count * max(0.0, min(until, self.end) - max(since, self.begin)) / length


def quantile(seen: deque[tuple[Steps, float]], share: float, since: float, until: float) -> float | None:
    """The smallest value that at least `share` of the steps between these times do not exceed; None where there were none. What ended
    before `since` is forgotten."""
    while seen and seen[0][0].end < since:
        seen.popleft()
    found = sorted((value, count) for steps, value in seen if (count := steps.within(since, until)) > 0)
    wanted, below = share * math.fsum(count for _, count in found), 0.0
    for value, count in found:
        below += count
        if below >= wanted * (1 - 1e-9):
            return value
    return None


@dataclass
class RecentSteps:
    """Of one stage: what each took, ms."""

    _seen: deque[tuple[Steps, float]] = field(default_factory=deque)

    def add(self, steps: Steps, milliseconds: float) -> None:
        """These steps took so long each."""
        while self._seen and self._seen[0][0].end < steps.begin - RECENT_SECONDS:
            self._seen.popleft()
        self._seen.append((steps, milliseconds))

    def quartile(self, now: float) -> tuple[float, int] | None:
        """The lower quartile in ms, and of how many whole steps; None where there were none."""
        since = now - RECENT_SECONDS
        found = quantile(self._seen, SHARE, since, now)
        return None if found is None else (found, int(math.fsum(steps.within(since, now) for steps, _ in self._seen)))
