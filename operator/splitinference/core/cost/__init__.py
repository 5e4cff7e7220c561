"""What a valid plan is and how good it is, without a solver: the judge, in tests and in production."""

from splitinference.core.cost.checks.violations import Violation, violations
from splitinference.core.cost.objective import goal_value, objective_value
from splitinference.core.cost.predict import predict

__all__ = ["Violation", "goal_value", "objective_value", "predict", "violations"]
