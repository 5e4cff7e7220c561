"""Earlier rows and the model's answers to them, for rows that are near enough."""

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitinference_protocol.input_filter import ReuseFilter

MOST_OWNERS = 64
"""Of whom earlier rows are kept; who asked last stays."""


@dataclass(frozen=True, slots=True)
class _Earlier:
    units: "array[float]"
    answer: bytes
    at: float


@dataclass
class Nearby:
    """Of each owner the last `filter.entries` rows that the model answered. `seconds`: how long an answer holds; `clock`: its time."""

    filter: ReuseFilter
    seconds: float
    clock: Callable[[], float]
    _owners: "OrderedDict[str, deque[_Earlier]]" = field(default_factory=OrderedDict)

    def answer(self, owner: str, units: Sequence[float]) -> bytes | None:
        """The answer to the nearest earlier row of the owner, if it is near enough."""
        rows = self._owners.get(owner)
        if rows is None:
            return None
        self._owners.move_to_end(owner)
        oldest = self.clock() - self.seconds
        while rows and rows[0].at < oldest:
            rows.popleft()
        nearest, found = self.filter.distance**2, None
        for row in rows:
            away = sum(map(_squared, row.units, units))
            if away <= nearest:
                nearest, found = away, row.answer
        return found

    def keep(self, owner: str, units: Sequence[float], answer: bytes) -> None:
        """Keep what the model said."""
        rows = self._owners.setdefault(owner, deque(maxlen=self.filter.entries))
        self._owners.move_to_end(owner)
        rows.append(_Earlier(array("d", units), bytes(answer), self.clock()))
        while len(self._owners) > MOST_OWNERS:
            self._owners.popitem(last=False)

    def forget(self) -> None:
        """All of it."""
        self._owners.clear()


def _squared(one: float, other: float) -> float:
    difference = one - other
    return difference * difference
