"""One solver process for all tenants, in fair turns: who has had least of its time goes next, however many problems others bring.

Start-time fair queueing (Goyal, Vin and Cheng 1996), with namespaces as flows of equal weight: of those that wait, the one with the
least start tag. A tag is when the tenant's last solve would have ended, had every tenant its even share. Who comes after a pause
has no credit from it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from splitinference.core.planner import SolverProcess
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import DEFAULT_LIMITS, Limits, Outcome


@dataclass
class _Waiting:
    start: float
    number: int
    goes: threading.Event = field(default_factory=threading.Event)


class FairTurns:
    """Turns at one thing that tenants share. Safe to use from several threads."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """`now`: seconds; what a turn costs its tenant is how long it took."""
        self._now = now
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._ends: dict[str, float] = {}
        """Per tenant, in shared time: when what it has asked for would have ended."""
        self._shared = 0.0
        self._number = 0
        self._taken = False
        self._mean = 1.0

    @contextmanager
    def turn(self, tenant: str) -> Iterator[None]:
        """Waits until it is the caller's turn, and keeps it until the end of the block."""
        with self._lock:
            self._number += 1
            mine = _Waiting(max(self._shared, self._ends.get(tenant, 0.0)), self._number)
            # Until it is known, a turn counts as long as turns are on average: the next of this tenant queues behind it.
            expected = self._mean
            self._ends[tenant] = mine.start + expected
            self._waiting.append(mine)
            self._next()
        mine.goes.wait()
        began = self._now()
        try:
            yield
        finally:
            took = self._now() - began
            with self._lock:
                self._mean += 0.2 * (took - self._mean)
                self._ends[tenant] += took - expected
                self._taken = False
                self._ends = {name: end for name, end in self._ends.items() if end > self._shared}
                self._next()

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        with self._lock:
            return len(self._waiting)

    def _next(self) -> None:
        if self._taken or not self._waiting:
            return
        first = min(self._waiting, key=lambda one: (one.start, one.number))
        self._waiting.remove(first)
        self._taken, self._shared = True, max(self._shared, first.start)
        first.goes.set()


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
