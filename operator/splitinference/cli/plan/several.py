"""`splitinference plan` for several problems on the same nodes: jointly, or one after the other."""

import argparse
import json
import math
import sys
from typing import Any

from rich.console import Console

from splitinference.cli.plan.shown import INFEASIBLE, TIMED_OUT, plan_json, show, table
from splitinference.core.planner import Infeasible, JointlySolved, JointOutcome, Limits, solve_several_in_child
from splitinference.core.planner.explain import UNITS
from splitinference.core.values.problem import Problem

SUM = "sum of the plans' values"
TIMES_ALONE = "sum over the plans of value / best value alone (throughput: best alone / value; where the best alone is 0: value)"


def run_several(problems: list[Problem], args: argparse.Namespace) -> int:
    """Plan all and print. Raises ValueError for problems that cannot be planned together."""
    outcome = solve_several_in_child(problems, Limits(args.seconds, args.memory_mib), jointly=args.jointly)
    if args.json:
        print(json.dumps(several_json(outcome), indent=2))
    else:
        _show_all(outcome, problems, Console(width=None if sys.stdout.isatty() else 200, highlight=False))
    return {"JointlySolved": 0, "Infeasible": INFEASIBLE}.get(type(outcome).__name__, TIMED_OUT)


def several_json(outcome: JointOutcome) -> dict[str, Any]:
    """An outcome for several problems as the published schema has it."""
    if isinstance(outcome, JointlySolved):
        return {
            "outcome": "solved",
            "value": outcome.value,
            "valueIs": TIMES_ALONE if outcome.alone else SUM,
            "alone": list(outcome.alone) or None,
            "bound": outcome.bound if math.isfinite(outcome.bound) else None,
            "gap": outcome.gap if math.isfinite(outcome.gap) else None,
            "optimal": outcome.optimal,
            "seconds": round(outcome.seconds, 4),
            "plans": [plan_json(plan) for plan in outcome.plans],
        }
    if isinstance(outcome, Infeasible):
        return {"outcome": "infeasible", "reasons": [vars(reason) for reason in outcome.reasons]}
    return {"outcome": "timedOut"}


def _show_all(outcome: JointOutcome, problems: list[Problem], to: Console) -> None:
    if isinstance(outcome, Infeasible):
        show(outcome, problems[0], to)
        return
    if not isinstance(outcome, JointlySolved):
        to.print("no plans found in time")
        return
    for number, (problem, plan) in enumerate(zip(problems, outcome.plans, strict=True)):
        goal = problem.objective.goal
        best = f"; alone {outcome.alone[number]:.4g}" if outcome.alone else ""
        to.print(f"{problem.profile.model}: {goal.value} {plan.value:.4g} {UNITS[goal]}{best}", markup=False, soft_wrap=True)
        to.print(table(plan))
    proof = (
        "proven best for these figures" if outcome.optimal else f"no plans can have less than {outcome.bound:.4g} (gap {outcome.gap:.2%})"
    )
    known = f"; {proof}" if math.isfinite(outcome.bound) else ""
    to.print(f"together {outcome.value:.4g}: {TIMES_ALONE if outcome.alone else SUM}{known}", markup=False, soft_wrap=True)
