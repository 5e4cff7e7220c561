"""A decision as a value: adopt a plan, or keep the present one and say why."""

from enum import StrEnum

from splitinference.core.decide.base.compare import Change
from splitinference.core.decide.base.triggers import Reason, Trigger
from splitinference.core.values.plan import Plan
from splitinference.core.values.value import Value


class Adopt(Value):
    """Adopt this plan. `before_ms`: predicted time per output token of the old plan under today's load; None for a mandatory change."""

    plan: Plan
    before_ms: float | None = None
    change: Change
    reason: Reason
    message: str
    mandatory: bool


class Kept(StrEnum):
    """Why the plan stays although there was a reason to plan again."""

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
    REJECTED = "Rejected"
    APPROVAL_VOID = "ApprovalVoid"
    BLOCKED = "Blocked"
    OVERTAKEN = "Overtaken"


class Keep(Value):
    """Keep the plan, or keep having none. `trigger`: the reason to plan again, if there was one; `proposal`: the plan that a person may
    approve."""

    reason: Kept
    message: str = ""
    trigger: Trigger | None = None
    proposal: Plan | None = None
