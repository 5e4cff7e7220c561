"""One solver process for all tenants, in fair turns: who has had least of its time goes next, however many problems others bring.

Start-time fair queueing (Goyal, Vin and Cheng 1996) with namespaces of equal weight: of those that wait, the one that has had the least
time goes next. Who comes after a pause has no credit from it: it begins at what the one has had that went last.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from splitinference.core.planner import SolverProcess
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import DEFAULT_LIMITS, Limits, Outcome


class FairTurns:
    """Turns at one thing that tenants share. Safe to use from several threads."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """`now`: seconds; what a turn costs its tenant is how long it took."""
        self._now = now
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[threading.Event]] = {}
        self._used: dict[str, float] = {}
        """Seconds of turns per tenant that waits or lately had one; who is new begins at what is shared."""
        self._shared = 0.0
        self._holder: str | None = None

    @contextmanager
    def turn(self, tenant: str) -> Iterator[None]:
        """Waits until it is the caller's turn, and keeps it until the end of the block."""
        goes = threading.Event()
        with self._lock:
            if tenant not in self._waiting and tenant != self._holder:
                self._used[tenant] = max(self._shared, self._used.get(tenant, 0.0))
            self._waiting.setdefault(tenant, deque()).append(goes)
            self._next()
        goes.wait()
        began = self._now()
        try:
            yield
        finally:
            took = self._now() - began
            with self._lock:
                self._used[tenant] += took
                self._holder = None
                # Who has had no more than what is shared and does not wait is as good as new.
                self._used = {name: used for name, used in self._used.items() if used > self._shared or name in self._waiting}
                self._next()

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def _next(self) -> None:
        if self._holder is not None or not self._waiting:
            return
        # Of equals the first: who has waited longest among them comes first in the mapping.
        tenant = min(self._waiting, key=lambda name: self._used[name])
        goes = self._waiting[tenant].popleft()
        rest = self._waiting.pop(tenant)
        if rest:
            self._waiting[tenant] = rest
        self._holder, self._shared = tenant, max(self._shared, self._used[tenant])
        goes.set()


class FairSolver:
    """The solver process, in fair turns among tenants."""

    def __init__(self, process: SolverProcess) -> None:
        self._process = process
        self._turns = FairTurns()
        self._tenant = threading.local()

    @contextmanager
    def on_behalf_of(self, tenant: str) -> Iterator[None]:
        """What this thread solves inside the block counts for `tenant`."""
        before = getattr(self._tenant, "name", "")
        self._tenant.name = tenant
        try:
            yield
        finally:
            self._tenant.name = before

    def solve(self, problem: Problem, limits: Limits = DEFAULT_LIMITS, hint: Plan | None = None) -> Outcome:
        """As the process does, when it is the tenant's turn. The limits count from then."""
        with self._turns.turn(getattr(self._tenant, "name", "")):
            return self._process.solve(problem, limits, hint)
