"""`splitinference plan` for several problems on the same nodes: jointly, or one after the other."""

import argparse
import json
import sys

from rich.console import Console

from splitinference.cli.plan import INFEASIBLE, TIMED_OUT, plan_json, show, table
from splitinference.core.problem import Problem
from splitinference.core.solve import Infeasible, JointlySolved, Limits, solve_several_in_child


def run_several(problems: list[Problem], args: argparse.Namespace) -> int:
    """Plan all and print. Raises ValueError for problems that cannot be planned together."""
    outcome = solve_several_in_child(problems, Limits(args.seconds, args.memory_mib), jointly=args.jointly)
    if isinstance(outcome, JointlySolved):
        if args.json:
            bound = outcome.bound if outcome.bound != float("-inf") else None
            figures = {"value": outcome.value, "bound": bound, "optimal": outcome.optimal, "seconds": round(outcome.seconds, 4)}
            print(json.dumps({"outcome": "solved", **figures, "plans": [plan_json(plan) for plan in outcome.plans]}, indent=2))
            return 0
        to = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
        for problem, plan in zip(problems, outcome.plans, strict=True):
            to.print(f"{problem.profile.model}: {plan.value:.4g}", markup=False)
            to.print(table(plan))
        return 0
    if isinstance(outcome, Infeasible):
        if args.json:
            print(json.dumps({"outcome": "infeasible", "reasons": [vars(reason) for reason in outcome.reasons]}, indent=2))
        else:
            show(outcome, problems[0], Console(width=None if sys.stdout.isatty() else 200, highlight=False))
        return INFEASIBLE
    print(json.dumps({"outcome": "timedOut"}) if args.json else "no plans found in time")
    return TIMED_OUT
