"""How many bytes a node may still send in bursts: a strict limit for any sixty seconds."""

from collections import deque

WINDOW_S = 60.0


class Budget:
    """At most `bytes_per_minute` in any window of a minute; 0 allows nothing. Times are seconds of one clock that only goes forward."""

    def __init__(self, bytes_per_minute: int) -> None:
        self._most = bytes_per_minute
        self._spent: deque[tuple[float, int]] = deque()

    def left(self, now: float) -> int:
        """Bytes that may be sent now."""
        while self._spent and now - self._spent[0][0] >= WINDOW_S:
            self._spent.popleft()
        return max(0, self._most - sum(size for _, size in self._spent))

    def spend(self, size: int, now: float) -> None:
        """So many bytes were sent, the last of them now."""
        self._spent.append((now, size))
