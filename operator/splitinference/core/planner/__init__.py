"""Problem in, plan out: with a bound that no plan can beat, or with the reasons why there is none.

Importing this is cheap; what is heavy is imported when it is used, and in the child process where there is one.
"""

from typing import TYPE_CHECKING

from splitinference.core.planner.process import SolverError, SolverProcess, solve_in_child, solve_several_in_child
from splitinference.core.values.result import BindingConstraint, Infeasible, JointlySolved, JointOutcome, Limits, Outcome, Solved, TimedOut

if TYPE_CHECKING:
    from splitinference.core.planner.solver import solve

__all__ = [
    "BindingConstraint",
    "Infeasible",
    "JointOutcome",
    "JointlySolved",
    "Limits",
    "Outcome",
    "Solved",
    "SolverError",
    "SolverProcess",
    "TimedOut",
    "solve",
    "solve_in_child",
    "solve_several_in_child",
]


def __getattr__(name: str) -> object:
    if name == "solve":
        from splitinference.core.planner.solver import solve

        return solve
    raise AttributeError(name)
