"""How good a plan is for a problem's objective."""

from splitinference.core.cost.predict import predict
from splitinference.core.values.plan import Plan, Prediction
from splitinference.core.values.problem import Goal, Problem

GIB = 2**30


def goal_value(prediction: Prediction, goal: Goal) -> float:
    """The goal's own value, without weights: ms, tokens per second, joules per token, cost per hour, or GiB."""
    match goal:
        case Goal.LATENCY:
            return prediction.time_to_first_token_ms + prediction.time_per_output_token_ms
        case Goal.BOTTLENECK:
            return prediction.bottleneck_ms
        case Goal.THROUGHPUT:
            return prediction.tokens_per_s
        case Goal.ENERGY:
            return prediction.energy_joules_per_token
        case Goal.COST:
            return prediction.cost_per_hour
        case Goal.MOVE:
            return prediction.moved_bytes / GIB


def value_of(prediction: Prediction, problem: Problem) -> float:
    """The objective's value of a prediction: the main goal and the weighted terms."""
    objective = problem.objective
    return (
        goal_value(prediction, objective.goal)
        + objective.utilization_weight * prediction.peak_utilization
        + objective.move_weight * prediction.moved_bytes / GIB
    )


def objective_value(plan: Plan, problem: Problem) -> float:
    """The objective's value of a plan, in the goal's unit; smaller is better, except for throughput."""
    return value_of(predict(plan, problem), problem)
