"""`splitinference plan` and `kubectl split plan`: what the planner would do, and why; nothing in the cluster changes."""

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from splitinference.cli.plan.input import Asked, Unusable, problem_from_file, problem_from_resource, read_as
from splitinference.cli.plan.picture import picture
from splitinference.controller.ports import RefusedError, UnavailableError
from splitinference.core.cost import objective_value
from splitinference.core.planner import Infeasible, Limits, Outcome, Solved, SolverFailed, TimedOut, solve_in_child
from splitinference.core.planner.explain import UNITS
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem

INFEASIBLE, TIMED_OUT, UNUSABLE = 3, 4, 2


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
    except (Unusable, SolverFailed, UnavailableError, RefusedError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return UNUSABLE
    for note in asked[0].notes:
        sys.stderr.write(f"{note}\n")
    if args.svg and (plan := _plan_of(outcome)) is not None:
        args.svg.write_text(picture(plan, problems[0]))
    if args.json:
        print(json.dumps(as_json(outcome), indent=2))
    else:
        show(outcome, problems[0], Console(width=None if sys.stdout.isatty() else 200, highlight=False))
    return {"Solved": 0, "Infeasible": INFEASIBLE}.get(type(outcome).__name__, TIMED_OUT)


def _plan_of(outcome: Outcome) -> Plan | None:
    return outcome.plan if isinstance(outcome, Solved) else outcome.best if isinstance(outcome, TimedOut) else None


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as the published schema has it."""
    match outcome:
        case Solved():
            return {
                "outcome": "solved",
                "value": outcome.plan.value,
                "bound": outcome.bound,
                "gap": outcome.gap,
                "optimal": outcome.optimal,
                "seconds": round(outcome.seconds, 4),
                "plan": plan_json(outcome.plan),
            }
        case Infeasible():
            return {"outcome": "infeasible", "reasons": [vars(reason) for reason in outcome.reasons]}
        case TimedOut():
            bound = outcome.bound if abs(outcome.bound) != float("inf") else None
            best = outcome.best
            value = best.value if best else None
            return {"outcome": "timedOut", "value": value, "bound": bound, "plan": plan_json(best) if best else None}


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan with its revision."""
    return {"revision": plan.revision, **plan.model_dump(mode="json")}


def show(outcome: Outcome, problem: Problem, to: Console) -> None:
    """An outcome for people."""
    if isinstance(outcome, Infeasible):
        to.print("no plan exists:", markup=False)
        for reason in outcome.reasons:
            to.print(f"  {reason.name}: {reason.message}\n    would do: {reason.relaxation}", markup=False, soft_wrap=True)
        return
    plan = _plan_of(outcome)
    if plan is None:
        to.print("no plan found in time", markup=False)
        return
    if isinstance(outcome, TimedOut):
        value = plan.value if plan.value is not None else objective_value(plan, problem)
        to.print(f"time is over; the best so far: {value:.4g} {UNITS[problem.objective.goal]}, bound {outcome.bound:.4g}", markup=False)
    to.print(table(plan))
    for line in plan.explanation:
        to.print(line, markup=False, soft_wrap=True)
    if isinstance(outcome, Solved):
        to.print(f"solved in {outcome.seconds:.2f} s", markup=False)


def table(plan: Plan) -> Table:
    """The stages of a plan."""
    result = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("PIPELINE", "LAYERS", "NODE", "WEIGHTS MiB", "KV MiB", "PROMPT ms", "TOKEN ms", "HOP ms"):
        result.add_column(name)
    stages = iter(plan.prediction.stages if plan.prediction else ())
    for number, pipeline in enumerate(plan.pipelines):
        for segment in pipeline.segments:
            stage = next(stages, None)
            where = "+".join(segment.nodes) + (f"/{segment.processor}" if segment.processor else "")
            figures = () if stage is None else (
                f"{stage.weight_bytes / 2**20:.0f}", f"{stage.kv_bytes / 2**20:.0f}", f"{stage.prefill_ms:.2f}",
                f"{stage.decode_ms:.2f}", f"{stage.link_ms:.2f}",
            )  # fmt: skip
            result.add_row(str(number), f"[{segment.start}, {segment.end})".replace("[", "\\["), where, *figures)
    return result
