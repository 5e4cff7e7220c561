"""What a decision is, as values: a plan to go to, or why the present one stays."""

from enum import StrEnum

from splitinference.core.decide.base.compare import Change
from splitinference.core.decide.base.triggers import Reason, Trigger
from splitinference.core.values.plan import Plan
from splitinference.core.values.value import Value


class Adopt(Value):
    """Make this the plan. `before_ms`: time per output token predicted for the old plan, as things are now; None for a mandatory change."""

    plan: Plan
    before_ms: float | None = None
    change: Change
    reason: Reason
    message: str
    mandatory: bool


class Kept(StrEnum):
    """Why a plan is kept although something spoke for another."""

    STEADY = "Steady"
    INFEASIBLE = "Infeasible"
    SOLVE_TIMED_OUT = "SolveTimedOut"
    SOLVER_FAILED = "SolverFailed"
    PLAN_REJECTED = "PlanRejected"
    GAIN_TOO_SMALL = "GainTooSmall"
    CONFIRMING = "Confirming"
    SETTLING = "Settling"
    UNKNOWN_METRICS = "UnknownMetrics"
    ADVISED = "Advised"
    BLOCKED = "Blocked"
    OVERTAKEN = "Overtaken"


class Keep(Value):
    """Leave the plan as it is (None: there still is none). `trigger`: what spoke for another, if anything did."""

    reason: Kept
    message: str = ""
    trigger: Trigger | None = None
