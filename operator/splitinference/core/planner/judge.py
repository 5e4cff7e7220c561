"""The judge's word on a plan before it is believed: is it valid, what is it worth, how far is it from the bound. Without a solver."""

import math

from splitinference.core.cost.checks.violations import inspected
from splitinference.core.cost.evaluate import Evaluation
from splitinference.core.cost.objective import value_of
from splitinference.core.cost.predict import prediction_of
from splitinference.core.cost.ranges import ranges
from splitinference.core.planner.explain import explain
from splitinference.core.values.plan import Plan, Prediction
from splitinference.core.values.problem import Goal, Problem
from splitinference.core.values.result import Outcome, Solved, TimedOut

CLOSED = 1e-6
"""Gap at which a plan counts as optimal: the arithmetic's rounding, far below what a measurement could tell."""
GOOD_ENOUGH = 0.05
"""Gap up to which a plan counts as an answer although the time was over; with a larger one the outcome is TimedOut."""


Laid = tuple[Evaluation, Prediction]
"""A plan laid over its problem, and what that predicts."""


class WrongAnswerError(Exception):
    """A solver returned a plan that the judge refuses; a defect of ours, never of the input."""


def judged(plan: Plan, problem: Problem, bound: float, seconds: float, *, late: bool, laid: Laid | None = None) -> Outcome:
    """The outcome for a plan, after the judge has seen it; raises WrongAnswerError if it is not valid.

    `laid`: the plan laid over the problem and its prediction, where the cost model has been asked already.
    """
    found, over = inspected(plan, problem, laid[0] if laid else None)
    if found or over is None:
        raise WrongAnswerError("; ".join(f"{v.constraint}: {v.message}" for v in found))
    prediction = laid[1] if laid else prediction_of(over, plan, problem)
    value = value_of(prediction, problem)
    most = problem.objective.goal is Goal.THROUGHPUT
    bound = max(bound, value) if most else min(bound, value)
    gap = abs(value - bound) / abs(value) if value else abs(bound)
    optimal = gap <= CLOSED
    known = f"no plan can be better than {bound:.4g} (gap {gap:.2%})" if math.isfinite(bound) else "with no bound of its own"
    proof = "proven best for these figures" if optimal else known
    prediction = prediction.model_copy(update={"ranges": ranges(plan, problem)})
    words = explain(plan, prediction, problem, proof)
    done = plan.model_copy(
        update={"prediction": prediction, "value": value, "bound": bound, "gap": gap, "optimal": optimal, "explanation": words}
    )
    if late and gap > GOOD_ENOUGH:
        return TimedOut(done, bound)
    return Solved(done, bound, gap, optimal, seconds, words)
