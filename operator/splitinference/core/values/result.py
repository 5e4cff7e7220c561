"""What solving can come to: one type per meaning."""

import math
import time
from dataclasses import dataclass
from typing import TypeAlias

from splitinference.core.values.plan import Plan


@dataclass(frozen=True)
class Limits:
    """How long a solve may take, and how much memory its child process may have.

    `cpu_time`: the seconds are the process's own on a processor, not the clock's. For measurements on a busy machine.
    """

    seconds: float = 10.0
    memory_mib: int = 500
    cpu_time: bool = False

    def now(self) -> float:
        """Seconds of the clock that the limit counts by."""
        return time.process_time() if self.cpu_time else time.monotonic()


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Solved:
    """A valid plan. `bound`: no plan can be better; `gap`: |value - bound| / value; `optimal`: the gap is closed.

    `columns`: candidates among which CP-SAT chose the plan.
    """

    plan: Plan
    bound: float
    gap: float
    optimal: bool
    seconds: float
    explanation: tuple[str, ...]
    columns: int = 0


@dataclass(frozen=True)
class BindingConstraint:
    """A constraint that stands in the way: its name, the numbers, and the smallest relaxation that would let a plan exist."""

    name: str
    message: str
    relaxation: str


@dataclass(frozen=True)
class Infeasible:
    """No plan exists, and why: each reason alone, if relaxed as said, would let one exist (or the message says what does not)."""

    reasons: tuple[BindingConstraint, ...]


@dataclass(frozen=True)
class TimedOut:
    """The time was over: the best plan so far, if any, and a bound that holds nevertheless."""

    best: Plan | None
    bound: float


@dataclass(frozen=True)
class Incumbent:
    """The best plan so far of a solve that goes on (None: none yet), and a bound that holds already."""

    plan: Plan | None
    bound: float = -math.inf


@dataclass(frozen=True)
class JointlySolved:
    """One plan for each of several problems, in their order; `bound` is for `value`.

    With goals alike, `value` is the sum of the plans' values and `alone` is empty. Else `alone` has the best value that each
    problem reaches alone, and `value` is the sum of each plan's value over that one (throughput: that one over the plan's value;
    where that one is 0, the value itself).
    """

    plans: tuple[Plan, ...]
    value: float
    bound: float
    gap: float
    optimal: bool
    seconds: float
    alone: tuple[float, ...] = ()


@dataclass(frozen=True)
class JointIncumbent:
    """The best plans so far of a joint solve that goes on."""

    found: JointlySolved


Outcome: TypeAlias = Solved | Infeasible | TimedOut
JointOutcome: TypeAlias = JointlySolved | Infeasible | TimedOut
