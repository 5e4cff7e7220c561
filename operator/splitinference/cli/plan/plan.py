"""`splitinference plan` and `kubectl split plan`: what the planner would do, and why; nothing in the cluster changes."""

import argparse
import json
import sys

from rich.console import Console

from splitinference.cli.plan.input import Asked, UnusableError, problem_from_file, problem_from_resource, read_as
from splitinference.cli.plan.picture import picture
from splitinference.cli.plan.shown import INFEASIBLE, TIMED_OUT, UNUSABLE, as_json, plan_of, show
from splitinference.controller.ports import RefusedError, UnavailableError
from splitinference.core.planner import Limits, SolverError, solve_in_child
from splitinference.core.values.plan import Plan


def run(args: argparse.Namespace) -> int:
    """Plan and print. 0: a plan; 2: bad input; 3: no plan exists; 4: none found in time."""
    try:
        asked = [problem_from_resource(args)] if args.problem is None else [Asked(problem_from_file(path)) for path in args.problem]
        problems = [one.problem for one in asked]
        if len(problems) > 1:
            from splitinference.cli.plan.several import run_several

            return run_several(problems, args)
        hint = read_as(Plan, args.hint, "a plan") if args.hint else None
        outcome = solve_in_child(problems[0], Limits(args.seconds, args.memory_mib), hint)
    except (UnusableError, SolverError, UnavailableError, RefusedError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return UNUSABLE
    for note in asked[0].notes:
        sys.stderr.write(f"{note}\n")
    if args.svg and (plan := plan_of(outcome)) is not None:
        args.svg.write_text(picture(plan, problems[0]))
    if args.json:
        print(json.dumps(as_json(outcome), indent=2))
    else:
        show(outcome, problems[0], Console(width=None if sys.stdout.isatty() else 200, highlight=False))
    return {"Solved": 0, "Infeasible": INFEASIBLE}.get(type(outcome).__name__, TIMED_OUT)
