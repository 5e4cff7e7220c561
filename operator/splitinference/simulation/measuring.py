"""How often a serving route was measured: full windows in which each of its stages computed, as the gateway's figures tell the operator."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from splitinference.core.transition.state import Route


@dataclass
class Windows:
    """Counts the windows of one route after the other. `seconds`: length of a window."""

    seconds: float
    _route: Route | None = None
    _since: float = 0.0
    _seen: set[str] = field(default_factory=set)
    _count: int = 0

    def look(self, now: float, route: Route | None, computed: Iterable[str]) -> int:
        """The windows of this route so far. `computed`: its segments that computed since the last look."""
        if route is None:
            return 0
        if route != self._route:
            self._route, self._since, self._seen, self._count = route, now, set(), 0
        self._seen.update(computed)
        if now - self._since >= self.seconds:
            self._count += self._seen >= set(route.names)
            self._since, self._seen = now, set()
        return self._count
