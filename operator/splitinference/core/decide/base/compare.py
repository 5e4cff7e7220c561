"""Compares two plans: what changes, the gain, and the cost of the move; in numbers and in words."""

from enum import StrEnum

from splitinference.core.cost import goal_value, objective_value, predict
from splitinference.core.cost.start import starting_seconds, usable_cores
from splitinference.core.decide.base.policy import Policy
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Problem

MIB = 1024 * 1024


class Change(StrEnum):
    """What a decision does to the plan."""

    FIRST = "first"
    KEEP = "keep"
    MIGRATION = "migration"
    RESPLIT = "re-split"
    SCALING = "scaling"


def change(current: Plan | None, plan: Plan) -> Change:
    """What the transition from one plan to the other is called: a label computed from the two plans."""
    if current is None or current.model_digest != plan.model_digest:
        return Change.FIRST
    if current.revision == plan.revision:
        return Change.KEEP
    if len(current.pipelines) != len(plan.pipelines):
        return Change.SCALING
    same = [p.split_points for p in current.pipelines] == [p.split_points for p in plan.pipelines]
    return Change.MIGRATION if same else Change.RESPLIT


def gain(before: float, after: float, problem: Problem) -> float:
    """Share of the objective gained by the change from one value to the other. Negative if it gets worse."""
    if before == 0:
        return 0.0
    return (after - before) / before if problem.objective.goal is Goal.THROUGHPUT else (before - after) / before


def net_gain(current: Plan, plan: Plan, problem: Problem, policy: Policy) -> float:
    """Share of the objective that the move gains, less the cost of the move: its seconds divided by the policy's `payback`."""
    gained = gain(objective_value(current, problem), objective_value(plan, problem), problem)
    return gained - move_seconds(plan, problem, policy) / policy.payback.total_seconds()


def move_seconds(plan: Plan, problem: Problem, policy: Policy) -> float:
    """Estimated seconds of the move: the slowest start of a server and the loading of all weights to move, with today's load on nodes."""
    return starting_seconds(plan, problem, policy.start)[0]


def moving(plan: Plan, problem: Problem, policy: Policy) -> str:
    """The cost of the move, in words."""
    mib = -(-predict(plan, problem).moved_bytes // MIB)
    if not mib:
        return "no weights have to move"
    seconds, slowest = starting_seconds(plan, problem, policy.start)
    cores = next(usable_cores(node) for node in problem.snapshot.nodes if node.name == slowest)
    return f"moving {mib} MiB takes about {seconds:.0f} s" + (f" ({slowest} has only {cores:.2g} free cores for it)" if cores < 1 else "")


_UNITS = {
    Goal.LATENCY: "ms",
    Goal.BOTTLENECK: "ms",
    Goal.THROUGHPUT: "tokens/s",
    Goal.ENERGY: "J per token",
    Goal.COST: "per hour",
    Goal.MOVE: "GiB",
}


def figures(plan: Plan, problem: Problem) -> str:
    """The plan's predicted times, and what its goals and budgets count, in words."""
    p, bounds = predict(plan, problem), problem.constraints
    words = [f"predicted {p.time_to_first_token_ms:.0f} ms to the first token, {p.time_per_output_token_ms:.1f} ms per token"]
    if problem.counts_cost:
        budget = f" of at most {bounds.max_cost_per_hour:.4g}" if bounds.max_cost_per_hour is not None else ""
        words.append(f"{p.cost_per_hour:.4g}{budget} per hour")
    if problem.counts_power:
        budget = f" of at most {bounds.max_watts:.4g}" if bounds.max_watts is not None else ""
        words.append(f"{p.watts:.4g}{budget} W while it works, {p.energy_joules_per_token:.3g} J per token")
    return ", ".join(words)


def before_after(current: Plan, plan: Plan, problem: Problem) -> str:
    """Predicted times of both plans under today's load, in words."""
    old, new = predict(current, problem), predict(plan, problem)
    text = f"predicted {old.time_per_output_token_ms:.1f} ms → {new.time_per_output_token_ms:.1f} ms per token"
    goal = problem.objective.goal
    return f"{text}, {goal} {_shown(goal_value(old, goal))} → {_shown(goal_value(new, goal))} {_UNITS[goal]}"


def _shown(value: float) -> str:
    """One decimal; of small figures, such as prices and joules, three digits."""
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"
