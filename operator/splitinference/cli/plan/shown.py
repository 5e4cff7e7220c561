"""Outcomes of the planner, shown: as tables for people, as JSON for programs."""

from typing import Any

from rich.console import Console
from rich.table import Table

from splitinference.core.cost import objective_value
from splitinference.core.planner import Infeasible, Outcome, Solved, TimedOut
from splitinference.core.planner.explain import UNITS
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem

INFEASIBLE = 3


TIMED_OUT = 4


UNUSABLE = 2


def plan_of(outcome: Outcome) -> Plan | None:
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
    plan = plan_of(outcome)
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
