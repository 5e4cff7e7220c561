"""What the page remembers while it runs: figures of each resource over time, and decisions beyond the ten that a status keeps."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from splitinference.controller.api.conditions import stamp
from splitinference.ui.page.document import Document

MOST_POINTS = 720
MOST_DECISIONS = 200
SPACING = timedelta(seconds=5)
"""Between two points: an hour is 720 of them. In a simulation it is the time of the simulation that counts."""


@dataclass
class _Past:
    points: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_POINTS))
    last: datetime | None = None
    decisions: dict[tuple[str, str, str], Mapping[str, Any]] = field(default_factory=dict)


class History:
    """Of the resources that are there. Used by one thread."""

    def __init__(self, spacing: timedelta = SPACING) -> None:
        self._spacing = spacing
        self._of: dict[str, _Past] = {}

    def add(self, document: Document) -> None:
        """One more look."""
        for key in [key for key in self._of if key not in document.resources]:
            del self._of[key]
        for key, item in document.resources.items():
            past = self._of.setdefault(key, _Past())
            for decision in reversed(item["decisions"]):
                name = (str(decision["time"]), str(decision["reason"]), str(decision["revision"]))
                past.decisions[name] = decision  # later looks know the outcome
            while len(past.decisions) > MOST_DECISIONS:
                del past.decisions[next(iter(past.decisions))]
            if past.last is None or document.read - past.last >= self._spacing:
                past.last = document.read
                past.points.append({"time": stamp(document.read), **item["point"]})

    def of(self, key: str) -> dict[str, Any]:
        """Points, oldest first, and decisions, newest first."""
        past = self._of.get(key, _Past())
        return {"points": list(past.points), "decisions": list(past.decisions.values())[::-1]}
