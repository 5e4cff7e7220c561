"""What a solve has so far: the best plan that the judge accepts, and the best bound. Each gain is reported at once.

So whoever waits for the answer has the best so far whenever the solve is ended: by its deadline, by its cap on memory, or by a kill.
"""

import math
from collections.abc import Callable

from splitinference.core.cost.checks.violations import inspected
from splitinference.core.cost.objective import value_of
from splitinference.core.cost.predict import prediction_of
from splitinference.core.planner.chain.task import SLACK
from splitinference.core.planner.judge import Laid
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Problem
from splitinference.core.values.result import Incumbent

Report = Callable[[Incumbent], None]
LEAST_GAIN = 1e-3
"""A bound is reported when it has come nearer to the plan's value by this share of it: prices gain in hundreds of tiny steps."""


class Progress:
    """The best plan and bound of one problem so far."""

    def __init__(self, problem: Problem, report: Report | None = None) -> None:
        self._problem, self._report = problem, report
        self._sign = -1.0 if problem.objective.goal is Goal.THROUGHPUT else 1.0
        self._best: Plan | None = None
        self._laid: Laid | None = None
        self._value = math.inf
        self._bound = self._told = -math.inf

    @property
    def best(self) -> Plan | None:
        """The best plan so far."""
        return self._best

    @property
    def laid(self) -> Laid | None:
        """The best plan laid over the problem, and its prediction."""
        return self._laid

    @property
    def value(self) -> float:
        """The best plan's value; where there is none yet, the worst there is."""
        return self._sign * self._value

    @property
    def best_bound(self) -> float:
        """The best bound so far; for throughput, which is maximised, from above."""
        return self._sign * self._bound

    def tighter(self, bound: float) -> float:
        """The tighter one of a bound and the best so far."""
        return self._sign * max(self._bound, self._sign * bound)

    def beats(self, value: float) -> bool:
        """Whether the best plan so far is better than a plan of this value, by more than rounding."""
        return self._best is not None and self._value < self._sign * value - SLACK * abs(value)

    def plan(self, plan: Plan) -> bool:
        """A candidate. It counts if the judge accepts it and it is better than the best so far; the answer is whether it is valid."""
        wrong, over = inspected(plan, self._problem)
        if wrong or over is None:
            return False
        prediction = prediction_of(over, plan, self._problem)
        value = self._sign * value_of(prediction, self._problem)
        if value < self._value:
            self._best, self._value, self._laid = plan, value, (over, prediction)
            self._tell()
        return True

    def bound(self, value: float) -> None:
        """A bound that holds for all plans."""
        self._bound = max(self._bound, self._sign * value)
        if self._bound > self._told + LEAST_GAIN * abs(self._bound) and not math.isinf(self._bound):
            self._tell()

    def _tell(self) -> None:
        self._told = self._bound
        if self._report is not None:
            self._report(Incumbent(self._best, self.best_bound))
