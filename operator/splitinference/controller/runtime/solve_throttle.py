"""Leave to look for a better plan: to one resource at a time, and with pauses, since solving for many resources would take the processor
from passes that must not wait.

What must be solved needs no leave, nor does an optional reason that was confirmed; only the look at nothing in particular does.
"""

import threading
from datetime import datetime, timedelta

PAUSE = 3
"""After a review that took t, nobody gets leave for 3 t: so reviews take a quarter of a core at most."""


class Reviews:
    """Used by many threads; times are those of the passes' clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = False
        self._next: datetime | None = None

    def begin(self, now: datetime, *, confirming: bool) -> bool:
        """Whether a pass may look now; if so it must call `end`. One that has found something and has to confirm it in time (`confirming`)
        waits for no pause."""
        with self._lock:
            if self._busy or (not confirming and self._next is not None and now < self._next):
                return False
            self._busy = True
            return True

    def end(self, began: datetime, now: datetime, *, solved: bool) -> None:
        """The pass has looked; `solved`: the solver was asked."""
        with self._lock:
            self._busy = False
            if solved:
                self._next = now + max(timedelta(0), PAUSE * (now - began))
