"""The planner's answer to a what-if question as JSON, beside what happens if the serving plan stays."""

import math
from typing import Any

from splitinference.core.cost.checks.violations import violations
from splitinference.core.cost.evaluate import UnknownPlaceError
from splitinference.core.cost.predict import predict
from splitinference.core.planner.explain import UNITS
from splitinference.core.values.plan import Plan, Prediction
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import Infeasible, Outcome, Solved, TimedOut
from splitinference.ui.page.document import rounded, shortened
from splitinference.ui.questions.asked import Basis

MIB = 2.0**20
Json = dict[str, Any]


def answer_json(outcome: Outcome, basis: Basis, problem: Problem) -> Json:
    """What the page shows. `problem`: the changed one; `basis`: as it is."""
    found: Json = {"unit": UNITS[problem.objective.goal], "goal": problem.objective.goal.value, "notes": list(basis.notes)}
    found["now"] = None if basis.plan is None else plan_json(basis.plan, _predicted(basis.plan, basis.problem))
    found["stay"] = None if basis.plan is None else _stay(basis.plan, problem)
    match outcome:
        case Solved(plan=plan):
            found |= {
                "outcome": "solved",
                "optimal": outcome.optimal,
                "gap": rounded(outcome.gap, 4),
                "seconds": rounded(outcome.seconds, 2),
            }
            found["plan"] = plan_json(plan, plan.prediction or _predicted(plan, problem))
        case Infeasible():
            found |= {"outcome": "infeasible", "plan": None, "reasons": [vars(reason) for reason in outcome.reasons]}
        case TimedOut(best=best, bound=bound):
            found |= {"outcome": "timedOut", "bound": bound if math.isfinite(bound) else None}
            found["plan"] = None if best is None else plan_json(best, best.prediction or _predicted(best, problem))
    cut: Json = shortened(found)
    return cut


def plan_json(plan: Plan, prediction: Prediction | None) -> Json:
    """A plan: its segments in order, its predicted times, and why."""
    stages = iter(prediction.stages if prediction else ())
    segments = []
    for number, pipeline in enumerate(plan.pipelines):
        for segment in pipeline.segments:
            stage = next(stages, None)
            segments.append(
                {
                    "pipeline": number,
                    "start": segment.start,
                    "end": segment.end,
                    "node": segment.node,
                    "nodes": list(segment.nodes),
                    "memoryMib": round(stage.memory_bytes / MIB) if stage else None,
                    "predictedMs": rounded(stage.decode_ms, 2) if stage else None,
                    "hopMs": rounded(stage.link_ms, 2) if stage else None,
                }
            )
    return {
        "revision": plan.revision,
        "value": rounded(plan.value, 3),
        "segments": segments,
        "predicted": _times(prediction),
        "explanation": list(plan.explanation),
    }


def _times(prediction: Prediction | None) -> Json | None:
    if prediction is None:
        return None
    return {
        "firstTokenMs": rounded(prediction.time_to_first_token_ms, 1),
        "nextTokenMs": rounded(prediction.time_per_output_token_ms, 1),
        "tokensPerSecond": rounded(prediction.tokens_per_s, 2),
    }


def _stay(plan: Plan, problem: Problem) -> Json:
    """The serving plan under the change: what it breaks, and its times where they can be told."""
    there = {node.name for node in problem.snapshot.nodes}
    gone = [f"{name} is gone" for name in dict.fromkeys(name for segment in plan.segments for name in segment.nodes) if name not in there]
    wrong = gone or [v.message for v in violations(plan, problem)]
    return {"violations": wrong[:20], "predicted": _times(_predicted(plan, problem))}


def _predicted(plan: Plan, problem: Problem) -> Prediction | None:
    try:
        return predict(plan, problem)
    except UnknownPlaceError:
        return None
